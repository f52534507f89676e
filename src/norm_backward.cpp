// Backward: moments_grad -> exchange -> apply_grad, in two halves with the exchange between them.
#include "src/norm_impl.hpp"

namespace allnorm {

void NormImpl::backward(const Saved& saved, const ConstTensorView& grad_output, const BackwardOutputs& outputs,
                        Queue& queue) {
  expect(saved.inputs_.input.given(), Code::invalid_argument,
         "the Saved of a forward call is empty, must come from forward or replay");
  const bool exchanges = saved.training_ && group_->size() > 1;
  if (exchanges) group_->check();
  BackwardArgs args;
  Work work;
  try {  // everything that can be wrong on this rank alone
    check(saved, grad_output, outputs, queue);
    describe(saved, grad_output, outputs, args);
    work = work_for(args, exchanges, queue);
    queue.ops().backward_local(args, queue);
  } catch (const Error& error) {
    if (saved.training_) group_->decline(error);
    throw;
  }
  queue.ops().backward_finish(args, gather(work, exchanges, queue), queue);
}

}  // namespace allnorm
