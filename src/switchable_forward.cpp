// Forward: moments of the channels of samples -> exchange -> moments of all three norms -> mixtures -> apply.
#include <utility>

#include "kernels/group_steps.hpp"
#include "src/arrays.hpp"
#include "src/parameters.hpp"
#include "src/switchable_operation.hpp"

namespace allnorm {

namespace {

constexpr std::int64_t scalars_size = sizeof(steps::SwitchedScalars) / sizeof(double);
static_assert(sizeof(steps::SwitchedScalars) % sizeof(double) == 0);

std::int64_t size_of_frames(std::int64_t samples, std::int64_t channels) {
  expect_fits("the number of channels of samples", samples, {channels, 9 * sizeof(double)}, Code::invalid_input);
  return 5 * samples * channels + 2 * samples + 2 * channels + scalars_size;
}

steps::SwitchedFrames lay_out(double* at, std::int64_t samples, std::int64_t channels) {
  steps::SwitchedFrames made;
  made.samples = samples;
  made.channels = channels;
  const auto next = [&at](std::int64_t size) { return std::exchange(at, at + size); };
  for (double** part : {&made.instance_mean, &made.instance_var, &made.mean, &made.var, &made.rstd})
    *part = next(samples * channels);
  for (double** part : {&made.layer_mean, &made.layer_var}) *part = next(samples);
  for (double** part : {&made.batch_mean, &made.batch_var}) *part = next(channels);
  made.scalars = reinterpret_cast<steps::SwitchedScalars*>(at);
  return made;
}

}  // namespace

/// Coefficients of the map (N * C), and the step that makes them of what x is normalized with.
struct SwitchableOperation::Map {
  Map(const Call& call, Queue& queue)
      : arrays(2, call.frames.sets(), queue),
        step{call.frames, parameter(call.weight, 1), parameter(call.bias, 0), arrays.apply(0)} {}

  void apply(const Call& call, const TensorView& output, Queue& queue) const {
    queue.ops().apply({.x = call.input.data,
                       .y = output.data,
                       .dtype = call.input.dtype,
                       .partition = call.partition,
                       .center = call.frames.mean,
                       .scale = arrays[0],
                       .shift = arrays[1]},
                      queue);
  }

  Arrays arrays;
  steps::SwitchedMap step;
};

std::unique_ptr<SavedCall> SwitchableOperation::run_forward(const InputSlots& inputs, const OutputSlots& outputs,
                                                            Queue& queue) {
  return forward(inputs, outputs["output"], false, queue);
}

void SwitchableOperation::run_infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) {
  forward(inputs, outputs["output"], true, queue);
}

std::unique_ptr<SavedCall> SwitchableOperation::run_replay(const SavedCall& earlier, const InputSlots& inputs,
                                                           const OutputSlots& outputs, Queue& queue) {
  const Call& was = own(earlier);
  const Shape shape = inputs["input"].shape;
  expect(shape == was.input.shape, Code::invalid_argument, [&] {
    return "the replayed input has shape " + to_string(shape) + ", must have " + to_string(was.input.shape) +
           " as in the earlier call";
  });
  check(inputs, outputs["output"], queue);
  auto call = call_with(inputs, queue);
  call->live = was.live;
  call->exchanged = was.exchanged;
  copy_on_device(call->memory.data(), was.memory.data(), was.memory.size() * sizeof(double), queue);
  const Map map(*call, queue);
  queue.ops().each({map.step}, call->frames.sets(), queue);
  map.apply(*call, outputs["output"], queue);
  return call;
}

std::unique_ptr<SwitchableOperation::Call> SwitchableOperation::call_with(const InputSlots& inputs,
                                                                          Queue& queue) const {
  auto call = std::make_unique<Call>();
  call->input = inputs["input"];
  call->weight = inputs["weight"];
  call->bias = inputs["bias"];
  call->partition = partition(each_instance, call->input.shape, call->input.order);
  const std::int64_t samples = call->input.samples(), channels = norm_.channels_;
  call->memory = Buffer<double>(index(size_of_frames(samples, channels)), queue, Fill::none);
  call->frames = lay_out(call->memory.data(), samples, channels);
  return call;
}

std::unique_ptr<SwitchableOperation::Call> SwitchableOperation::forward(const InputSlots& inputs,
                                                                        const TensorView& output, bool infers,
                                                                        Queue& queue) {
  if (exchanges(infers)) group().check();
  const bool live = layer_.options.training && !infers;
  if (live) norm_.expect_finite();
  std::unique_ptr<Call> call;
  RecordExchange exchange;
  tell_others(exchanges(infers), group(), [&] {
    check(inputs, output, queue);
    if (live) norm_.memory_.listen(queue);
    call = call_with(inputs, queue);
    call->live = live;
    call->exchanged = exchanges(infers);
    exchange = take_moments(*call, queue);
  });
  make_statistics(*call, exchange, inputs, queue);
  if (live && queue.device().kind == DeviceKind::cpu) norm_.expect_finite();
  const Map map(*call, queue);
  queue.ops().each({steps::SwitchedForward{layer_.options.eps, map.step}}, call->frames.sets(), queue);
  map.apply(*call, output, queue);
  if (live)
    queue.ops().each({steps::Advance{norm_.memory_.rules(), norm_.memory_.view(), &call->frames.scalars->settled}}, 1,
                     queue);
  return call;
}

RecordExchange SwitchableOperation::take_moments(const Call& call, Queue& queue) const {
  const ConstTensorView& x = call.input;
  const steps::SwitchedFrames& frames = call.frames;
  const auto values = static_cast<double>(call.partition.group_size());
  RecordExchange exchange;
  if (has_parts_of_samples()) {
    exchange = forward_exchange(call, frames.sets(), queue);
    const steps::Layout layout{frames.sets()};
    double* const payload = exchange.payload();
    queue.ops().moments({x.data, x.dtype, call.partition, payload + layout.mean(0), payload + layout.m2(0)}, queue);
    exchange.open_forward(values, queue);
    return exchange;
  }
  queue.ops().moments({x.data, x.dtype, call.partition, frames.instance_mean, frames.instance_var}, queue);
  if (!shares_batch(call)) {
    pool(call, {values}, frames.batch_mean, frames.batch_var, queue);
    return exchange;
  }
  exchange = forward_exchange(call, frames.channels, queue);
  const steps::Layout layout{frames.channels};
  pool(call, {values}, exchange.payload() + layout.mean(0), exchange.payload() + layout.m2(0), queue);
  exchange.open_forward(values * static_cast<double>(frames.samples), queue);
  return exchange;
}

RecordExchange SwitchableOperation::forward_exchange(const Call& call, std::int64_t groups, Queue& queue) const {
  Header header = norm_.header(call.input.dtype, groups, Direction::forward);
  header.set(Field::moments, static_cast<std::uint64_t>(groups));
  header.set(Field::co_moments, std::uint64_t{1});
  header.set(Field::inference, std::uint64_t{!call.live});
  return {norm_, header, steps::Layout{groups}.size(0), queue};
}

void SwitchableOperation::pool(const Call& call, const steps::SetCount& count, double* mean, double* m2,
                               Queue& queue) const {
  const steps::SwitchedFrames& frames = call.frames;
  queue.ops().each({steps::SwitchedInstances{frames, count, layer_.options.unbiased_instance_var}}, frames.sets(),
                   queue);
  const std::int64_t pools = frames.samples + (call.live ? frames.channels : 0);
  queue.ops().each({steps::SwitchedPools{frames, count, mean, m2}}, pools, queue);
}

void SwitchableOperation::make_statistics(const Call& call, RecordExchange& exchange, const InputSlots& inputs,
                                          Queue& queue) const {
  const steps::SwitchedFrames& frames = call.frames;
  const bool in_parts = has_parts_of_samples(), shared = shares_batch(call);
  const Gathered gathered = in_parts || shared ? exchange.gather(queue) : Gathered{};
  const steps::SetCount count{static_cast<double>(call.partition.group_size()), in_parts, gathered};
  if (in_parts) pool(call, count, frames.batch_mean, frames.batch_var, queue);
  const LayerState& state = norm_.memory_.view();
  const Rules& rules = norm_.memory_.rules();
  queue.ops().each(
      {steps::SwitchedTurn{frames, count, rules, state, parameter(inputs["mean_logits"], 1),
                           parameter(inputs["var_logits"], 1), call.live, shared, gathered, exchange.fails()}},
      1, queue);
  const steps::SwitchedBatch batch{frames,
                                   rules,
                                   state,
                                   call.live,
                                   shared,
                                   in_parts,
                                   layer_.options.unbiased_instance_var,
                                   queue.device().kind != DeviceKind::cpu,
                                   gathered};
  queue.ops().each({batch}, frames.channels, queue);
  if (call.live) queue.ops().each({steps::SwitchedSettle{batch}}, 1, queue);
}

}  // namespace allnorm
