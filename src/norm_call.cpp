// From the tensors of a call to what its two halves are given.
#include <utility>

#include "allnorm/sizes.hpp"
#include "src/norm_impl.hpp"
#include "src/parameters.hpp"

namespace allnorm {

namespace {

// A frame's arrays in one block: mean, var, rstd, share, r, d, sigma (G) each, then FrameScalars.
constexpr std::int64_t scalars_size = sizeof(steps::FrameScalars) / sizeof(double);
static_assert(sizeof(steps::FrameScalars) % sizeof(double) == 0);

// The frame in `memory` as kernels see it; also told to `frame`.
steps::FrameView lay_out(Buffer<double>& memory, Frame& frame, std::int64_t groups, bool renorm, bool has_sigma) {
  double* at = memory.data();
  const auto next = [&at, groups](std::span<const double>& part) {
    part = std::span<const double>(at, index(groups));
    return std::exchange(at, at + groups);
  };
  steps::FrameView view;
  view.mean = next(frame.mean);
  view.var = next(frame.var);
  view.rstd = next(frame.rstd);
  view.share = next(frame.share);
  if (renorm) {
    view.r = next(frame.r);
    view.d = next(frame.d);
  }
  if (has_sigma) view.sigma = next(frame.sigma);
  view.scalars = reinterpret_cast<steps::FrameScalars*>(at);
  return view;
}

// Backward only reads it.
steps::FrameView view_of(const Frame& frame, const Buffer<double>& memory) {
  const auto at = [](std::span<const double> part) { return const_cast<double*>(part.data()); };
  auto* end = const_cast<double*>(memory.data() + memory.size() - scalars_size);
  return {at(frame.mean),
          at(frame.var),
          at(frame.rstd),
          at(frame.r),
          at(frame.d),
          at(frame.share),
          reinterpret_cast<steps::FrameScalars*>(end)};
}

// What the level of a call leaves to y at it, as an activation that says what it takes at 0.
Activation activation_of(Tie tie) {
  if (tie == Tie::second) return {ActivationKind::relu};
  return {ActivationKind::leaky_relu, tie == Tie::half ? 0.5 : 1};
}

}  // namespace

// What the host knows of a message; counters and hashes are where the state is.
Header NormImpl::header(DType dtype, std::int64_t groups, Direction direction) const {
  Header h(name_, direction, 0);
  write_layer(layer_, h);
  h.set(Field::ranks, static_cast<std::uint64_t>(group_->size()));
  const bool of_channels = layer_.statistics() == Axes{Axis::channel};
  h.set(of_channels ? Field::channels : Field::groups, static_cast<std::uint64_t>(groups));
  h.set(Field::dtype, static_cast<std::uint64_t>(dtype));
  return h;
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
  call.activation = in.tau.given() ? activation_of(layer_.options.tie) : layer_.options.activation;
  call.weight = parameter(in.weight, 1);
  if (const TensorSpec* weight = layer_.row->tensor("weight")) call.weight.added = weight->added;
  call.bias = parameter(in.bias, 0);
  call.level = parameter(in.tau, 0);
  call.learned_eps = parameter(in.eps_learned, 0);
}

// The arrays of both halves, and the frame's memory.
void NormImpl::describe(const ForwardInputs& in, const TensorView& output, const Plan& plan, Saved& saved,
                        ForwardArgs& args, Queue& queue) const {
  saved.inputs_ = in;
  const std::int64_t groups = plan.norm.groups();
  const bool renorm = memory_.rules().renorm, has_sigma = layer_.row->output("std") != nullptr;
  const std::int64_t arrays = 4 + (renorm ? 2 : 0) + (has_sigma ? 1 : 0);
  saved.memory_ = Buffer<double>(index(arrays * groups + scalars_size), queue, Fill::none);
  args.frame = lay_out(saved.memory_, saved.frame_, groups, renorm, has_sigma);

  describe(in, plan, args);
  args.residual = in.residual.data;
  args.y = output.data;
  args.state = memory_.view();
  if (args.activation.kind == ActivationKind::identity || !in.residual.given()) return;
  saved.mask_ = Buffer<std::uint8_t>(index((in.input.elements() + 7) / 8), queue, Fill::none);
  args.mask = saved.mask_.data();
}

void NormImpl::describe(const Saved& saved, const BackwardInputs& in, const BackwardOutputs& out,
                        BackwardArgs& args) const {
  const ConstTensorView& x = saved.inputs_.input;
  const Plan plan = plan_for(layer_, x.shape, x.order);
  describe(saved.inputs_, plan, args);
  args.dy = in.output.data;
  args.direct = {parameter(in.mean, 0), parameter(in.sigma, 0)};
  args.dx = out.input.data;
  args.dresidual = out.residual.data;
  args.mask = saved.mask_.data();
  args.dweight = parameter_grad(out.weight);
  args.dbias = parameter_grad(out.bias);
  args.dlevel = parameter_grad(out.tau);
  args.deps = parameter_grad(out.eps_learned);
  args.wants_weight = out.weight.given() || out.bias.given();
  args.along = args.along || (plan.along && args.wants_weight);
  args.frame = view_of(saved.frame_, saved.memory_);
}

// `more` doubles of scratch follow the moments.
NormImpl::Work NormImpl::work_for(ForwardArgs& args, std::int64_t more, Queue& queue) const {
  const std::int64_t groups = args.norm.groups();
  args.header = header(args.dtype, groups, Direction::forward);
  args.header.set(Field::moments, static_cast<std::uint64_t>(groups));
  args.header.set(Field::co_moments, std::uint64_t{1});
  Work work = make_work(2 * groups + more, steps::Layout{groups}.size(args.entries), args.header, queue);
  args.mean = work.scratch;
  args.m2 = args.mean + groups;
  if (group_->size() > 1) args.record = work.record.data;  // a lone rank keeps its centred sums
  if (group_->size() > 1 || args.derives) args.reporter = group_->reporter(queue);
  return work;
}

NormImpl::Work NormImpl::work_for(BackwardArgs& args, bool exchanges, Queue& queue) const {
  const std::int64_t groups = args.norm.groups();
  args.header = header(args.dtype, groups, Direction::backward);
  Work work = make_work(backward_scratch(args), 2 * groups, args.header, queue);
  args.sums = steps::payload_of(work.record.data);
  args.scratch = work.scratch;
  if (!exchanges) return work;
  args.record = work.record.data;
  args.reporter = group_->reporter(queue);
  return work;
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

Gathered NormImpl::gather(const Work& work, bool exchanges, Queue& queue) const {
  if (exchanges) return group_->gather(work.record, queue);
  return {nullptr, 0, 0, steps::payload_of(work.record.data)};
}

}  // namespace allnorm
