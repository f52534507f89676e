// Forward, stage by stage: moments -> exchange -> history -> correction -> apply.
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "convolution.hpp"
#include "kernels/ops.hpp"
#include "norm_impl.hpp"
#include "parameters.hpp"

namespace allnorm {

namespace {

std::string shape_of(const ConstTensorView& view) { return to_string(view.shape); }

}  // namespace

void expect_like(const ConstTensorView& view, const ConstTensorView& input, const char* name) {
  expect(view.shape == input.shape, Code::invalid_input, [&] {
    return std::string(name) + " has shape " + shape_of(view) + ", must have " + shape_of(input) + " as input";
  });
  expect(view.dtype == input.dtype && view.order == input.order && view.device == input.device, Code::invalid_argument,
         [&] { return std::string(name) + " must have input's dtype, order of axes and device"; });
  expect(view.data != nullptr || view.elements() == 0, Code::invalid_argument,
         [&] { return std::string(name) + " has no data"; });
}

formulas::Correction correction_of(const Frame& frame, std::size_t g) noexcept {
  return frame.r.empty() ? formulas::Correction{} : formulas::Correction{frame.r[g], frame.d[g]};
}

FineCoefficients fine_coefficients(const Plan& plan, const Frame& frame, const Values& gamma, const Values& beta) {
  const auto size = index(plan.fine.groups());
  FineCoefficients fine{Values(size), Values(size), Values(size)};
  for (std::size_t f = 0; f < size; ++f) {
    const auto g = index(plan.to_norm(static_cast<std::int64_t>(f)));
    const auto c = index(plan.to_affine(static_cast<std::int64_t>(f)));
    const auto k = formulas::apply(frame.rstd[g], correction_of(frame, g), gamma[c], beta[c]);
    fine.center[f] = frame.mean[g];
    fine.scale[f] = k.scale;
    fine.shift[f] = k.shift;
  }
  return fine;
}

NormImpl::NormImpl(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                   std::string name)
    : layer_(layer),
      channels_(channels),
      group_(group ? std::move(group) : self()),
      name_(name.empty() ? std::string(layer.row->name) : std::move(name)),
      history_(layer.options, channels) {
  layer_.check();
  expect(channels >= 0, Code::invalid_argument,
         [&] { return "channels is " + std::to_string(channels) + ", must be at least 0"; });
  if (!has_running()) return;
  running_.mean = filled(index(channels), 0, queue);
  running_.spread = filled(index(channels), 1, queue);
  running_.pivot.assign(index(channels), 0);
}

Plan NormImpl::check(const ForwardInputs& in, const ConstTensorView& output, const Queue& queue) const {
  const ConstTensorView& x = in.input;
  expect(x.given(), Code::invalid_argument, "input is missing");
  expect(x.device == queue.device(), Code::device, [&] {
    return "input is on " + to_string(x.device) + ", must be on the queue's " + to_string(queue.device());
  });
  expect(x.data != nullptr || x.elements() == 0, Code::invalid_argument, "input has no data");
  const Plan plan = plan_for(layer_, x.shape, x.order);
  expect(!has_running() || x.shape[1] == channels_, Code::invalid_input, [&] {
    return "input has " + std::to_string(x.shape[1]) + " channels, must have " + std::to_string(channels_);
  });
  expect_like(output, x, "output");
  if (in.residual.given()) expect_like(in.residual, x, "residual");
  expect(!(in.residual.given() && plan.rows), Code::invalid_argument,
         [&] { return "residual is given, must not be for " + std::string(layer_.row->name); });
  const Shape parameters = parameter_shape(layer_, x.shape);
  expect_parameter(in.weight, parameters, x.device, "weight");
  expect_parameter(in.bias, parameters, x.device, "bias");
  return plan;
}

Header NormImpl::header(const ForwardInputs& in, const Plan& plan, Direction direction, std::uint64_t call) const {
  const NormOptions& o = layer_.options;
  Header h(name_, direction, call);
  const auto put = [&h](Field field, auto value) {
    if constexpr (std::is_floating_point_v<decltype(value)>)
      h.set(field, value);
    else
      h.set(field, static_cast<std::uint64_t>(value));
  };
  put(Field::kind, layer_.row->reduction);
  put(Field::channels, plan.norm.groups());
  put(Field::dtype, in.input.dtype);
  put(Field::eps, o.eps);
  if (!has_running()) return h;
  put(Field::momentum, o.cumulative ? -1.0 : o.momentum);
  put(Field::unbiased, o.unbiased_running_var);
  put(Field::renorm, o.renorm);
  put(Field::variant, o.variant);
  put(Field::r_max, bounds().first);
  put(Field::d_max, bounds().second);
  put(Field::minibatches, o.minibatches);
  put(Field::weighting, o.weighting);
  put(Field::running, o.running);
  put(Field::window, o.window);
  put(Field::burn_in, o.burn_in);
  put(Field::fill_in_burn_in, o.fill_in_burn_in);
  put(Field::compensate, o.compensate);
  put(Field::guard, o.guard);
  put(Field::running_source, o.running_source);
  if (direction != Direction::forward) return h;  // what follows may have moved on since
  put(Field::minibatch, history_.minibatch());
  put(Field::entries, history_.entries_used());
  put(Field::history_hash, history_.hash());
  put(Field::pivot_hash, hash_of(running_.pivot.data(), running_.pivot.size()));
  put(Field::running_hash,
      hash_of(running_.spread.data(), running_.spread.size(), hash_of(running_.mean.data(), running_.mean.size())));
  return h;
}

// ---- moments -------------------------------------------------------------------------------------------------------

NormImpl::LocalMoments NormImpl::local_moments(const ForwardInputs& in, const Plan& plan, Queue& queue) const {
  const auto groups = index(plan.norm.groups());
  LocalMoments local{static_cast<double>(plan.norm.group_size()), Values(groups), Values(groups)};
  queue.ops().moments({in.input.data, in.input.dtype, plan.norm, local.mean.data(), local.m2.data()}, queue);
  return local;
}

// ---- exchange ------------------------------------------------------------------------------------------------------

// Of the whole group's values. Payload: count, sums about the pivot (G), squares about it (G), the history's lanes.
Statistics NormImpl::exchanged(const LocalMoments& local, const ForwardInputs& in, const Plan& plan,
                               const DerivativeSource* source, Values& lanes, Queue& queue) const {
  const std::size_t groups = local.mean.size();
  Statistics all{local.count, Values(groups), Values(groups), Values(groups, 1.0)};
  if (group_->size() == 1) {  // a lone rank keeps its centred sums
    all.mean = local.mean;
    for (std::size_t g = 0; g < groups; ++g) all.var[g] = local.count > 0 ? local.m2[g] / local.count : 0;
    if (source) history_.lanes(*source, lanes);
    return all;
  }
  const auto pivot = [&](std::size_t g) { return running_.pivot.empty() ? 0.0 : running_.pivot[g]; };
  Message message{header(in, plan, Direction::forward, calls_), {}, 0, {}};
  if (source) message.header.set(Field::weight_hash, hash_of(source->theta.data(), source->theta.size()));
  Values& payload = message.payload;
  payload.reserve((1 + 2 * groups) + 2 * groups * static_cast<std::size_t>(source ? history_.entries_used() : 0));
  payload.resize(1 + 2 * groups);
  payload[0] = local.count;
  for (std::size_t g = 0; g < groups; ++g) {
    const auto sums = formulas::shift(local.count, local.mean[g], local.m2[g], pivot(g));
    payload[1 + g] = sums.sum;
    payload[1 + groups + g] = sums.squares;
  }
  if (source) history_.lanes(*source, payload);

  const Message sum = group_->exchange(std::move(message), queue);
  all.count = sum.payload[0];
  for (std::size_t g = 0; g < groups; ++g) {
    const auto m = formulas::unshift(all.count, {sum.payload[1 + g], sum.payload[1 + groups + g]}, pivot(g));
    all.mean[g] = m.mean;
    all.var[g] = m.var;
  }
  lanes.assign(sum.payload.begin() + static_cast<std::ptrdiff_t>(1 + 2 * groups), sum.payload.end());
  return all;
}

// ---- history -------------------------------------------------------------------------------------------------------

void NormImpl::advance_running(const RunningValues& values, Next& next, Queue& queue) const {
  if (!values.given) return;
  next.moves = true;
  next.mean = Buffer<double>(running_.mean.size(), queue);
  next.spread = Buffer<double>(running_.spread.size(), queue);
  advance(running_, values, layer_.options, layer_.keeps_std(), next.mean, next.spread);
}

NormImpl::Next NormImpl::history(const Statistics& current, const Values& lanes, const DerivativeSource* source,
                                 Queue& queue) const {
  Next next;
  next.counts = current.count > 0;
  next.history = history_.fold(current, lanes, source);
  if (next.counts) {  // a pivot that is not finite would spoil every later sum, so such a channel keeps the old one
    next.pivot = current.mean;
    for (std::size_t c = 0; c < next.pivot.size(); ++c)
      if (!std::isfinite(next.pivot[c])) next.pivot[c] = running_.pivot[c];
  }
  advance_running(next.history.running, next, queue);
  return next;
}

void NormImpl::commit(Next&& next) noexcept {
  history_.commit(std::move(next.history));
  if (next.counts) {
    running_.pivot = std::move(next.pivot);
    ++running_.calls;
  }
  if (!next.moves) return;
  running_.mean = std::move(next.mean);
  running_.spread = std::move(next.spread);
  ++running_.tracked;
}

void NormImpl::begin_batch(Queue& queue) {
  auto step = history_.cut_short();
  if (!step) return;
  Next next;
  next.history = std::move(*step);
  advance_running(next.history.running, next, queue);
  commit(std::move(next));
}

// ---- apply ---------------------------------------------------------------------------------------------------------

void NormImpl::apply(const ForwardInputs& in, const Plan& plan, const Frame& frame, const TensorView& output,
                     Buffer<std::uint8_t>& mask, Queue& queue) const {
  const ConstTensorView& x = in.input;
  const Values gamma = read_parameter(in.weight, plan.parameters, 1),
               beta = read_parameter(in.bias, plan.parameters, 0);
  if (plan.rows) {
    RowsArgs rows{};
    rows.x = x.data;
    rows.y = output.data;
    rows.dtype = x.dtype;
    rows.rows = plan.norm.groups();
    rows.columns = plan.norm.group_size();
    rows.weight = in.weight.given() ? gamma.data() : nullptr;
    rows.bias = in.bias.given() ? beta.data() : nullptr;
    rows.center = frame.mean.data();
    rows.scale = frame.rstd.data();
    queue.ops().apply_rows(rows, queue);
    return;
  }
  const Activation activation = layer_.options.activation;
  const FineCoefficients fine = fine_coefficients(plan, frame, gamma, beta);
  queue.ops().apply({x.data, in.residual.data, output.data, x.dtype, plan.fine, fine.center.data(), fine.scale.data(),
                     fine.shift.data(), activation},
                    queue);
  if (activation.kind == ActivationKind::identity || !in.residual.given()) return;
  mask = Buffer<std::uint8_t>(index((x.elements() + 7) / 8), queue);
  queue.ops().sign_mask({output.data, x.dtype, x.elements(), mask.data()}, queue);
}

// ---- forward -------------------------------------------------------------------------------------------------------

Saved NormImpl::forward(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  const bool inference = has_running() && !layer_.options.training;
  Plan plan;
  std::optional<DerivativeSource> source;
  LocalMoments local;
  try {  // everything that can be wrong on this rank alone
    plan = check(inputs, output, queue);
    if (has_running() && !inference && layer_.options.window > 1 && layer_.options.compensate) {
      source = derivative_source(inputs, layer_.options.convolution, queue);
      history_.check(*source);
    }
    if (!inference) local = local_moments(inputs, plan, queue);
  } catch (const Error& error) {
    if (!inference) group_->decline(error);
    throw;
  }

  Saved saved;
  saved.inputs_ = inputs;
  saved.call_ = calls_;
  saved.training_ = !inference;
  if (inference) {
    saved.frame_ = inference_frame(queue);
    apply(inputs, plan, saved.frame_, output, saved.mask_, queue);
    return saved;
  }

  Values lanes;
  const Statistics current = exchanged(local, inputs, plan, source ? &*source : nullptr, lanes, queue);

  std::optional<Next> next;
  if (has_running() && (current.count > 0 || layer_.options.minibatches > 1))
    next = history(current, lanes, source ? &*source : nullptr, queue);
  saved.frame_ = corrected(next ? next->history.use : current, current.count, queue);
  apply(inputs, plan, saved.frame_, output, saved.mask_, queue);

  if (next) {
    past_ = std::move(next->history.past);
    commit(std::move(*next));
  }
  ++calls_;
  return saved;
}

Saved NormImpl::replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue) {
  const Plan plan = check(inputs, output, queue);
  const Frame& from = earlier.frame_;
  expect(inputs.input.shape == earlier.inputs_.input.shape, Code::invalid_argument, [&] {
    return "the replayed input has shape " + shape_of(inputs.input) + ", must have " + shape_of(earlier.inputs_.input) +
           " as in the earlier call";
  });
  Saved saved;
  saved.inputs_ = inputs;
  saved.call_ = earlier.call_;
  saved.training_ = earlier.training_;
  saved.frame_ = {copy(from.mean, queue),
                  copy(from.var, queue),
                  copy(from.rstd, queue),
                  copy(from.r, queue),
                  copy(from.d, queue),
                  copy(from.share, queue),
                  from.count};
  apply(inputs, plan, saved.frame_, output, saved.mask_, queue);
  return saved;
}

void NormImpl::infer(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  expect(has_running(), Code::unsupported, [&] {
    return std::string(layer_.row->name) +
           " has no running statistics and is the same in inference, must be called with forward";
  });
  const Plan plan = check(inputs, output, queue);
  Buffer<std::uint8_t> unused;
  apply(inputs, plan, inference_frame(queue), output, unused, queue);
}

}  // namespace allnorm
