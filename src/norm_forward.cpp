// Forward: moments -> exchange -> history -> correction -> apply, in the two halves that a backend offers, with the
// exchange between them.
#include <utility>

#include "src/failures.hpp"
#include "src/norm_impl.hpp"

namespace allnorm {

Saved NormImpl::forward(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  if (has_running() && !layer_.options.training) return map(inputs, output, FrameSource::running, nullptr, queue);
  if (!memory_.rules().takes_moments()) return map(inputs, output, FrameSource::unit, nullptr, queue);
  group_->check();
  expect_finite();
  Saved saved;
  ForwardCall call;
  tell_others(true, *group_, [&] {  // everything that can be wrong on this rank alone
    memory_.listen(queue);
    const Plan plan = check(inputs, output, queue);
    saved = saved_for(inputs, plan.norm.groups(), queue);
    call.past = CrossIteration(inputs, layer_.options.convolution, memory_.rules(), queue);
    const std::int64_t entries = call.past.take_room(memory_, queue);
    open(call, inputs, output, plan, memory_of(saved), entries, nullptr, queue);
    first_half(call, queue);
  });
  saved.training_ = true;
  second_half(call, gather(call.work, call.args.record != nullptr, queue), queue);
  if (queue.device().kind == DeviceKind::cpu) {
    expect_counted(*memory_.view().last);
    expect_finite();
  }
  return saved;
}

void NormImpl::open(ForwardCall& call, const ForwardInputs& inputs, const TensorView& output, const Plan& plan,
                    const CallMemory& memory, std::int64_t entries, const Place* place, Queue& queue) const {
  describe(inputs, output, plan, memory, call.args);
  call.past.join(call.args, entries);
  call.work = work_for(call.args, call.past.scratch(), place, queue);
  call.past.lay_out(call.args, call.args.m2 + plan.norm.groups());
}

void NormImpl::first_half(ForwardCall& call, Queue& queue) const {
  call.past.before(call.args, steps::payload_of(call.work.record.data), queue);
  queue.ops().forward_local(call.args, queue);
}

void NormImpl::second_half(const ForwardCall& call, const Gathered& gathered, Queue& queue) const {
  queue.ops().forward_finish(call.args, gathered, queue);
  call.past.after(queue);
}

Saved NormImpl::saved_for(const ForwardInputs& inputs, std::int64_t groups, Queue& queue) const {
  Saved saved;
  saved.inputs_ = inputs;
  saved.memory_ = Buffer<double>(index(frame_size(groups)), queue, Fill::none);
  saved.frame_ = frame_in(saved.memory_.data(), groups);
  if (has_mask(inputs)) saved.mask_ = Buffer<std::uint8_t>(index((inputs.input.elements() + 7) / 8), queue, Fill::none);
  return saved;
}

// A call that takes its frame from elsewhere: no exchange, no change of state.
Saved NormImpl::map(const ForwardInputs& inputs, const TensorView& output, FrameSource source, const Saved* earlier,
                    Queue& queue) const {
  const Plan plan = check(inputs, output, queue);
  Saved saved = saved_for(inputs, plan.norm.groups(), queue);
  ForwardArgs args;
  describe(inputs, output, plan, memory_of(saved), args);
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
