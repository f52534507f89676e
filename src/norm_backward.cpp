// Backward: moments_grad -> exchange -> apply_grad, in two halves with the exchange between them.
#include <cstddef>

#include "src/failures.hpp"
#include "src/norm_impl.hpp"

namespace allnorm {

void NormImpl::backward(const Saved& saved, BackwardInputs inputs, const BackwardOutputs& outputs, Queue& queue) {
  expect(saved.inputs_.input.given(), Code::invalid_argument,
         "the Saved of a forward call is empty, must come from forward or replay");
  const bool exchanges = saved.training_ && group_->size() > 1;
  if (exchanges) group_->check();
  BackwardArgs args;
  Work work;
  Buffer<std::byte> zeros;
  tell_others(saved.training_, *group_, [&] {  // everything that can be wrong on this rank alone
    // Kernels always read a gradient of the output. Without one it is zeros, a write beside the pass's two reads and
    // one write of as many values: none of the kernels has a second kind for a call that autograd never makes.
    if (!inputs.output.given() && (inputs.mean.given() || inputs.sigma.given())) {
      inputs.output = saved.inputs_.input;
      zeros = Buffer<std::byte>(index(inputs.output.elements()) * size_of(inputs.output.dtype), queue);
      inputs.output.data = zeros.data();
    }
    check(saved.inputs_, inputs, outputs, queue);
    // Backward reads frame and mask.
    describe(saved.inputs_, inputs, outputs,
             {{}, const_cast<double*>(saved.memory_.data()), const_cast<std::uint8_t*>(saved.mask_.data())}, args);
    work = work_for(args, exchanges, nullptr, queue);
    queue.ops().backward_local(args, queue);
  });
  queue.ops().backward_finish(args, gather(work, exchanges, queue), queue);
}

}  // namespace allnorm
