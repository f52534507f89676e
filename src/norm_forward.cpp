// Forward: moments -> exchange -> history -> correction -> apply, in the two halves that a backend offers, with the
// exchange between them.
#include <algorithm>
#include <utility>

#include "allnorm/sizes.hpp"
#include "src/norm_impl.hpp"
#include "src/parameters.hpp"

namespace allnorm {

namespace {

std::string shape_of(const ConstTensorView& view) { return to_string(view.shape); }

// A frame's arrays in one block: mean, var, rstd, share, r, d (G) each, then FrameScalars.
constexpr std::int64_t scalars_size = sizeof(steps::FrameScalars) / sizeof(double);
static_assert(sizeof(steps::FrameScalars) % sizeof(double) == 0);

}  // namespace

void expect_like(const ConstTensorView& view, const ConstTensorView& input, const Queue& queue, const char* name) {
  expect(view.shape == input.shape, Code::invalid_input, [&] {
    return std::string(name) + " has shape " + shape_of(view) + ", must have " + shape_of(input) + " as input";
  });
  expect(view.dtype == input.dtype && view.order == input.order && view.device == input.device, Code::invalid_argument,
         [&] { return std::string(name) + " must have input's dtype, order of axes and device"; });
  expect(view.data != nullptr || view.elements() == 0, Code::invalid_argument,
         [&] { return std::string(name) + " has no data"; });
  expect_memory(view.data, queue, name);
}

void expect_listed(const Row& row, bool given, std::string_view name, std::string_view tensor) {
  const bool listed =
      std::any_of(row.tensors.begin(), row.tensors.end(), [&](const TensorSpec& spec) { return spec.name == tensor; });
  expect(!given || listed, Code::invalid_argument,
         [&] { return std::string(name) + " is given, must not be for " + std::string(row.name); });
}

namespace {

// The ranks that a layer is given, or this one alone where its sync asks for no others.
std::shared_ptr<Communicator> group_for(const Layer& layer, std::shared_ptr<Communicator> group) {
  const std::int64_t ranks = layer.options.sync.ranks;
  const std::string sync = ranks == Sync::world ? "world" : std::to_string(ranks);
  expect(group || ranks == Sync::none || ranks == 1, Code::invalid_argument, [&] {
    return "attribute sync is " + sync + ", must come with a group of ranks (self() where this rank is alone)";
  });
  if (!group) return self();
  expect(ranks <= 0 || group->size() <= ranks, Code::invalid_argument, [&] {
    return "the group has " + std::to_string(group->size()) + " ranks, must have at most " + sync +
           ", which attribute sync asks for";
  });
  return group;
}

}  // namespace

NormImpl::NormImpl(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                   std::string name)
    : layer_((layer.check(), layer)),
      channels_((expect(channels >= 0, Code::invalid_argument,
                        [&] { return "channels is " + std::to_string(channels) + ", must be at least 0"; }),
                 channels)),
      group_(group_for(layer, std::move(group))),
      name_(name.empty() ? std::string(layer.row->name) : std::move(name)),
      device_(queue.device()),
      memory_(layer, channels, queue) {}

Plan NormImpl::check(const ForwardInputs& in, const ConstTensorView& output, const Queue& queue) const {
  const ConstTensorView& x = in.input;
  expect(queue.device() == device_, Code::device, [&] {
    return "the queue is on " + to_string(queue.device()) + ", must be on the layer's " + to_string(device_);
  });
  expect(x.given(), Code::invalid_argument, "input is missing");
  expect(x.device == queue.device(), Code::device, [&] {
    return "input is on " + to_string(x.device) + ", must be on the queue's " + to_string(queue.device());
  });
  expect(x.data != nullptr || x.elements() == 0, Code::invalid_argument, "input has no data");
  expect_memory(x.data, queue, "input");
  const struct {
    const ConstTensorView& view;
    std::string_view name, tensor;
  } given[] = {{in.weight, "weight", "weight"},
               {in.bias, "bias", "bias"},
               {in.residual, "residual", "residual"},
               {in.conv_input, "conv_input", "conv_input"},
               {in.conv_weight, "conv_weight", "conv_weight"},
               {in.patch_sum, "patch_sum", "conv_input"},  // in its place
               {in.patch_product, "patch_product", "conv_input"}};
  for (const auto& [view, name, tensor] : given) expect_listed(*layer_.row, view.given(), name, tensor);
  const Plan plan = plan_for(layer_, x.shape, x.order);
  expect(!has_running() || x.shape[1] == channels_, Code::invalid_input, [&] {
    return "input has " + std::to_string(x.shape[1]) + " channels, must have " + std::to_string(channels_);
  });
  expect_like(output, x, queue, "output");
  if (in.residual.given()) expect_like(in.residual, x, queue, "residual");
  expect_parameters(in.weight, in.bias, x.shape, queue, {"weight", "bias"});
  return plan;
}

void NormImpl::expect_parameters(const ConstTensorView& weight, const ConstTensorView& bias, const Shape& input,
                                 const Queue& queue, std::pair<const char*, const char*> names) const {
  const TensorSpec* spec = layer_.row->tensor("weight");
  const Shape shape = layer_.shape_of(spec != nullptr ? spec->axes : Axes{}, input);
  expect_parameter(weight, shape, queue, names.first);
  expect_parameter(bias, shape, queue, names.second);
}

// What the host knows of a message; counters and hashes are where the state is.
Header NormImpl::header(DType dtype, std::int64_t groups, Direction direction) const {
  Header h(name_, direction, 0);
  write_layer(layer_, h);
  h.set(Field::ranks, static_cast<std::uint64_t>(group_->size()));
  h.set(Field::channels, static_cast<std::uint64_t>(groups));
  h.set(Field::dtype, static_cast<std::uint64_t>(dtype));
  return h;
}

steps::FrameView NormImpl::lay_out(Saved& saved, std::int64_t groups, bool renorm) {
  double* at = saved.memory_.data();
  const auto next = [&at, groups](std::span<const double>& part) {
    part = std::span<const double>(at, index(groups));
    return std::exchange(at, at + groups);
  };
  Frame& frame = saved.frame_;
  steps::FrameView view;
  view.mean = next(frame.mean);
  view.var = next(frame.var);
  view.rstd = next(frame.rstd);
  view.share = next(frame.share);
  if (renorm) {
    view.r = next(frame.r);
    view.d = next(frame.d);
  }
  view.scalars = reinterpret_cast<steps::FrameScalars*>(at);
  return view;
}

// Backward only reads it.
steps::FrameView NormImpl::frame_view(const Saved& saved) {
  const Frame& frame = saved.frame_;
  const auto at = [](std::span<const double> part) { return const_cast<double*>(part.data()); };
  auto* end = const_cast<double*>(saved.memory_.data() + saved.memory_.size() - scalars_size);
  return {at(frame.mean),
          at(frame.var),
          at(frame.rstd),
          at(frame.r),
          at(frame.d),
          at(frame.share),
          reinterpret_cast<steps::FrameScalars*>(end)};
}

void NormImpl::describe(const ForwardInputs& in, const Plan& plan, LayerCall& call) const {
  call.x = in.input.data;
  call.dtype = in.input.dtype;
  call.norm = plan.norm;
  call.affine = plan.affine;
  call.fine = plan.fine;
  call.to_norm = plan.to_norm;
  call.to_affine = plan.to_affine;
  call.along = plan.along && (in.weight.given() || in.bias.given());
  call.rules = memory_.rules();
  call.activation = layer_.options.activation;
  call.weight = parameter(in.weight, 1);
  call.bias = parameter(in.bias, 0);
}

// The arrays of both halves, and the frame's memory.
void NormImpl::describe(const ForwardInputs& in, const TensorView& output, const Plan& plan, Saved& saved,
                        ForwardArgs& args, Queue& queue) const {
  const ConstTensorView& x = in.input;
  saved.inputs_ = in;
  const std::int64_t groups = plan.norm.groups();
  const bool renorm = memory_.rules().renorm;
  saved.memory_ = Buffer<double>(index((renorm ? 6 : 4) * groups + scalars_size), queue, Fill::none);
  args.frame = lay_out(saved, groups, renorm);

  describe(in, plan, args);
  args.residual = in.residual.data;
  args.y = output.data;
  args.state = memory_.view();
  if (args.activation.kind == ActivationKind::identity || !in.residual.given()) return;
  saved.mask_ = Buffer<std::uint8_t>(index((x.elements() + 7) / 8), queue, Fill::none);
  args.mask = saved.mask_.data();
}

// `scratch` doubles, this rank's record of `count` doubles, and room for the group's.
NormImpl::Work NormImpl::make_work(std::int64_t scratch, std::int64_t count, Header& header, Queue& queue) const {
  expect_fits("the number of values in the message", count, {2 * sizeof(double), group_->size()});
  const auto in_lines = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
  const std::size_t own = in_lines(index(scratch) * sizeof(double));
  const std::size_t room = own + in_lines(sizeof(RecordHead) + index(count) * sizeof(double));
  header.set(Field::payload, static_cast<std::uint64_t>(count));
  Work work;
  work.memory = Buffer<std::byte>(room + group_->room(index(count), queue), queue, Fill::none);
  work.scratch = reinterpret_cast<double*>(work.memory.data());
  work.record = {work.memory.data() + own, index(count), work.memory.data() + room, header.get(Field::moments)};
  return work;
}

// A call of a layer with a window that compensates: its weights, and what their derivatives will need.
void NormImpl::derive(const ForwardInputs& in, Call& call, Queue& queue) {
  call.source = derivative_source(in, layer_.options.convolution, queue);
  const DerivativeSource& source = *call.source;
  memory_.expect_shape(source.shape);
  memory_.make_window(source.shape, source.wide, queue);
  call.args.state = memory_.view();
  call.args.derives = true;
  // A captured graph is the same for every call; where the host can see the counters, messages grow with the window.
  call.args.lanes = layer_.options.window - 1;
  if (queue.device().kind == DeviceKind::cpu) {
    const Counters now = memory_.counters(queue);
    call.args.lanes = now.batches < layer_.options.burn_in ? 0 : now.entries;
  }
}

// ---- forward -------------------------------------------------------------------------------------------------------

Saved NormImpl::forward(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  if (has_running() && !layer_.options.training) return map(inputs, output, FrameSource::running, nullptr, queue);
  group_->check();
  Saved saved;
  saved.training_ = true;
  Call call;
  ForwardArgs& args = call.args;
  const Ops& ops = queue.ops();
  try {  // everything that can be wrong on this rank alone
    const Plan plan = check(inputs, output, queue);
    describe(inputs, output, plan, saved, args, queue);
    if (memory_.rules().compensates()) derive(inputs, call, queue);

    const std::int64_t groups = plan.norm.groups();
    const std::int64_t count = steps::Layout{groups}.size(args.lanes);
    const WeightShape shape = call.source ? call.source->shape : WeightShape{};
    const std::int64_t derivatives = shape.mean_rows * shape.fan_in + shape.channels * shape.fan_in;
    args.header = header(inputs.input.dtype, groups, Direction::forward);
    args.header.set(Field::moments, static_cast<std::uint64_t>(groups));
    args.header.set(Field::co_moments, std::uint64_t{1});
    call.work = make_work(2 * groups + 2 + derivatives, count, args.header, queue);
    args.mean = call.work.scratch;
    args.m2 = args.mean + groups;
    auto* weights = reinterpret_cast<std::uint64_t*>(args.m2 + groups);
    if (group_->size() > 1) args.record = call.work.record.data;  // a lone rank keeps its centred sums
    if (group_->size() > 1 || call.source) args.reporter = group_->reporter(queue);
    if (call.source) {
      const DerivativeSource& source = *call.source;
      args.weights = weights;
      call.derivatives = {memory_.rules(), memory_.view(),       true,
                          source.patch,    source.supplied_sum,  source.supplied_product,
                          source.theta,    args.m2 + groups + 2, args.m2 + groups + 2 + shape.mean_rows * shape.fan_in};
      ops.lanes({memory_.rules(), memory_.view(), source.theta, args.lanes, steps::payload_of(call.work.record.data),
                 weights},
                queue);
      expect(queue.device().kind != DeviceKind::cpu || weights[1] == 0, Code::invalid_argument,
             "conv_weight has changed within a batch of mini-batches, must be the same until the batch ends");
    }
    ops.forward_local(args, queue);
  } catch (const Error& error) {
    group_->decline(error);
    throw;
  }

  const Record& record = call.work.record;
  Gathered gathered{nullptr, 0, 0, steps::payload_of(record.data)};
  if (args.record != nullptr) gathered = group_->gather(record, queue);
  ops.forward_finish(args, gathered, queue);
  if (call.source) ops.derivatives(call.derivatives, queue);
  return saved;
}

// A call that takes its frame from elsewhere: no exchange, no change of state.
Saved NormImpl::map(const ForwardInputs& inputs, const TensorView& output, FrameSource source, const Saved* earlier,
                    Queue& queue) const {
  const Plan plan = check(inputs, output, queue);
  Saved saved;
  ForwardArgs args;
  describe(inputs, output, plan, saved, args, queue);
  args.source = source;
  if (earlier != nullptr) {
    saved.training_ = earlier->training_;
    copy_on_device(saved.memory_.data(), earlier->memory_.data(), saved.memory_.size() * sizeof(double), queue);
  }
  queue.ops().forward_finish(args, {}, queue);
  return saved;
}

Saved NormImpl::replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue) {
  expect(inputs.input.shape == earlier.inputs_.input.shape, Code::invalid_argument, [&] {
    return "the replayed input has shape " + shape_of(inputs.input) + ", must have " + shape_of(earlier.inputs_.input) +
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
