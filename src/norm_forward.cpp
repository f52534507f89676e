// Forward: moments -> exchange -> history -> correction -> apply, in the two halves that a backend offers, with the
// exchange between them.
#include <utility>

#include "src/cross_iteration.hpp"
#include "src/failures.hpp"
#include "src/norm_impl.hpp"

namespace allnorm {

Saved NormImpl::forward(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  if (has_running() && !layer_.options.training) return map(inputs, output, FrameSource::running, nullptr, queue);
  if (!memory_.rules().takes_moments()) return map(inputs, output, FrameSource::unit, nullptr, queue);
  group_->check();
  expect_finite();
  Saved saved;
  saved.training_ = true;
  ForwardArgs args;
  Work work;
  CrossIteration past;
  tell_others(true, *group_, [&] {  // everything that can be wrong on this rank alone
    memory_.listen(queue);
    describe(inputs, output, check(inputs, output, queue), saved, args, queue);
    past = CrossIteration(inputs, layer_.options.convolution, memory_, args, queue);
    work = work_for(args, past.scratch(), queue);
    past.before(args, args.m2 + args.norm.groups(), steps::payload_of(work.record.data), queue);
    queue.ops().forward_local(args, queue);
  });
  queue.ops().forward_finish(args, gather(work, args.record != nullptr, queue), queue);
  past.after(queue);
  if (queue.device().kind == DeviceKind::cpu) {
    expect_counted();
    expect_finite();
  }
  return saved;
}

// A call that takes its frame from elsewhere: no exchange, no change of state.
Saved NormImpl::map(const ForwardInputs& inputs, const TensorView& output, FrameSource source, const Saved* earlier,
                    Queue& queue) const {
  Saved saved;
  ForwardArgs args;
  describe(inputs, output, check(inputs, output, queue), saved, args, queue);
  args.source = source;
  if (earlier != nullptr) {
    saved.training_ = earlier->training_;
    copy_on_device(saved.memory_.data(), earlier->memory_.data(), saved.memory_.size() * sizeof(double), queue);
  }
  queue.ops().forward_finish(args, {}, queue);
  return saved;
}

Saved NormImpl::replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue) {
  const Shape &shape = inputs.input.shape, &was = earlier.inputs_.input.shape;
  expect(shape == was, Code::invalid_argument, [&] {
    return "the replayed input has shape " + to_string(shape) + ", must have " + to_string(was) +
           " as in the earlier call";
  });
  return map(inputs, output, FrameSource::given, &earlier, queue);
}

void NormImpl::infer(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  expect(has_running(), Code::unsupported, [&] {
    return std::string(layer_.row->name) +
           " has no running statistics and is the same in inference, must be called with forward";
  });
  map(inputs, output, FrameSource::running, nullptr, queue);
}

void NormImpl::begin_batch(Queue& queue) {
  if (memory_.rules().minibatches > 1) queue.ops().begin_batch(memory_.rules(), memory_.view(), queue);
}

std::pair<double, double> NormImpl::renorm_bounds(Queue& queue) const {
  const NormOptions& o = layer_.options;
  const std::int64_t calls = has_running() ? memory_.counters(queue).counted : 0;
  return {ramp_value(o.r_max_ramp, calls, o.r_max), ramp_value(o.d_max_ramp, calls, o.d_max)};
}

}  // namespace allnorm
