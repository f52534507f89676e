// Backward: moments_grad -> exchange -> apply_grad, in two halves with the exchange between them.
#include <utility>

#include "src/norm_impl.hpp"
#include "src/parameters.hpp"

namespace allnorm {

void NormImpl::backward(const Saved& saved, const ConstTensorView& dy, const BackwardOutputs& out, Queue& queue) {
  const ForwardInputs& in = saved.inputs_;
  const ConstTensorView& x = in.input;
  expect(x.given(), Code::invalid_argument, "the Saved of a forward call is empty, must come from forward or replay");
  const Plan plan = plan_for(layer_, x.shape, x.order);
  const std::int64_t groups = plan.norm.groups();
  const bool exchanges = saved.training_ && group_->size() > 1;
  if (exchanges) group_->check();

  BackwardArgs args;
  Work work;
  try {  // everything that can be wrong on this rank alone
    expect_like(dy, x, queue, "grad_output");
    expect_listed(*layer_.row, out.residual.given(), "grad_residual", "residual");
    expect_listed(*layer_.row, out.weight.given(), "grad_weight", "weight");
    expect_listed(*layer_.row, out.bias.given(), "grad_bias", "bias");
    if (out.input.given()) expect_like(out.input, x, queue, "grad_input");
    if (out.residual.given()) {
      expect_like(out.residual, x, queue, "grad_residual");
      expect(in.residual.given(), Code::invalid_argument,
             "grad_residual is asked for, must not be where forward had no residual");
    }
    expect_parameters(out.weight, out.bias, x.shape, queue, {"grad_weight", "grad_bias"});

    describe(in, plan, args);
    args.dy = dy.data;
    args.dx = out.input.data;
    args.dresidual = out.residual.data;
    args.mask = saved.mask_.data();
    args.dweight = parameter_grad(out.weight);
    args.dbias = parameter_grad(out.bias);
    args.wants_weight = out.weight.given() || out.bias.given();
    args.along = args.along || (plan.along && args.wants_weight);
    args.frame = frame_view(saved);
    args.header = header(x.dtype, groups, Direction::backward);
    work = make_work(backward_scratch(args), 2 * groups, args.header, queue);
    args.sums = steps::payload_of(work.record.data);
    args.scratch = work.scratch;
    if (exchanges) {
      args.record = work.record.data;
      args.reporter = group_->reporter(queue);
    }
    queue.ops().backward_local(args, queue);
  } catch (const Error& error) {
    if (saved.training_) group_->decline(error);
    throw;
  }

  // the same call as forward's, two numbers per group
  const Gathered gathered = exchanges ? group_->gather(work.record, queue) : Gathered{nullptr, 0, 0, args.sums};
  queue.ops().backward_finish(args, gathered, queue);
}

}  // namespace allnorm
