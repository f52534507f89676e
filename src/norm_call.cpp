// From the tensors of a call to what its two halves are given.
#include <utility>

#include "allnorm/sizes.hpp"
#include "src/norm_impl.hpp"
#include "src/parameters.hpp"

namespace allnorm {

namespace {

constexpr std::int64_t scalars_size = sizeof(steps::FrameScalars) / sizeof(double);
static_assert(sizeof(steps::FrameScalars) % sizeof(double) == 0);

// What the level of a call leaves to y at it, as an activation that says what it takes at 0.
Activation activation_of(Tie tie) {
  if (tie == Tie::second) return {ActivationKind::relu};
  return {ActivationKind::leaky_relu, tie == Tie::half ? 0.5 : 1};
}

}  // namespace

std::int64_t NormImpl::frame_size(std::int64_t groups) const noexcept {
  const std::int64_t arrays = 4 + (memory_.rules().renorm ? 2 : 0) + (layer_.row->output("std") != nullptr ? 1 : 0);
  return arrays * groups + scalars_size;
}

// A frame's arrays in one block: mean, var, rstd, share, r, d, sigma (G) each, then FrameScalars.
steps::FrameView NormImpl::lay_out(double* memory, std::int64_t groups) const noexcept {
  const auto next = [&memory, groups] { return std::exchange(memory, memory + groups); };
  steps::FrameView view;
  view.mean = next();
  view.var = next();
  view.rstd = next();
  view.share = next();
  if (memory_.rules().renorm) {
    view.r = next();
    view.d = next();
  }
  if (layer_.row->output("std") != nullptr) view.sigma = next();
  view.scalars = reinterpret_cast<steps::FrameScalars*>(memory);
  return view;
}

Frame NormImpl::frame_in(const double* memory, std::int64_t groups) const noexcept {
  const auto view = lay_out(const_cast<double*>(memory), groups);
  const auto span = [groups](const double* part) {
    return part != nullptr ? std::span(part, index(groups)) : std::span<const double>();
  };
  return {span(view.mean), span(view.var),   span(view.rstd), span(view.r),
          span(view.d),    span(view.sigma), span(view.share)};
}

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

// The arrays of both halves.
void NormImpl::describe(const ForwardInputs& in, const TensorView& output, const Plan& plan, const CallMemory& memory,
                        ForwardArgs& args) const {
  describe(in, plan, args);
  args.frame = lay_out(memory.frame, plan.norm.groups());
  args.residual = in.residual.data;
  args.y = output.data;
  args.state = memory.state;
  args.mask = memory.mask;
}

void NormImpl::describe(const ForwardInputs& in, const BackwardInputs& gradients, const BackwardOutputs& out,
                        const CallMemory& memory, BackwardArgs& args) const {
  const ConstTensorView& x = in.input;
  const Plan plan = plan_for(layer_, x.shape, x.order);
  describe(in, plan, args);
  args.dy = gradients.output.data;
  args.direct = {parameter(gradients.mean, 0), parameter(gradients.sigma, 0)};
  args.dx = out.input.data;
  args.dresidual = out.residual.data;
  args.mask = memory.mask;
  args.dweight = parameter_grad(out.weight);
  args.dbias = parameter_grad(out.bias);
  args.dlevel = parameter_grad(out.tau);
  args.deps = parameter_grad(out.eps_learned);
  args.wants_weight = out.weight.given() || out.bias.given();
  args.along = args.along || (plan.along && args.wants_weight);
  args.frame = lay_out(memory.frame, plan.norm.groups());
}

// `more` doubles of scratch follow the moments.
NormImpl::Work NormImpl::work_for(ForwardArgs& args, std::int64_t more, const Place* place, Queue& queue) const {
  const std::int64_t groups = args.norm.groups();
  args.header = header(args.dtype, groups, Direction::forward);
  args.header.set(Field::moments, static_cast<std::uint64_t>(groups));
  args.header.set(Field::co_moments, std::uint64_t{1});
  Work work = make_work(2 * groups + more, steps::Layout{groups}.size(args.entries), args.header, queue, place);
  args.mean = work.scratch;
  args.m2 = args.mean + groups;
  if (group_->size() > 1) args.record = work.record.data;  // a lone rank keeps its centred sums
  if (group_->size() > 1 || args.derives) args.reporter = group_->reporter(queue);
  return work;
}

NormImpl::Work NormImpl::work_for(BackwardArgs& args, bool exchanges, const Place* place, Queue& queue) const {
  const std::int64_t groups = args.norm.groups();
  args.header = header(args.dtype, groups, Direction::backward);
  Work work = make_work(backward_scratch(args), 2 * groups, args.header, queue, place);
  args.sums = steps::payload_of(work.record.data);
  args.scratch = work.scratch;
  if (!exchanges) return work;
  args.record = work.record.data;
  args.reporter = group_->reporter(queue);
  return work;
}

// `scratch` doubles, this rank's record of `count` doubles, and room for the group's.
NormImpl::Work NormImpl::make_work(std::int64_t scratch, std::int64_t count, Header& header, Queue& queue,
                                   const Place* place) const {
  expect_fits("the number of values in the message", count, {2 * sizeof(double), group_->size()});
  const auto in_lines = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
  const std::size_t own = in_lines(index(scratch) * sizeof(double));
  const std::size_t room = own + in_lines(sizeof(RecordHead) + index(count) * sizeof(double));
  header.set(Field::payload, static_cast<std::uint64_t>(count));
  Work work;
  if (place != nullptr) {
    work.scratch = reinterpret_cast<double*>(place->scratch);
    work.record = {place->record, index(count), nullptr, header.get(Field::moments)};
    return work;
  }
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
