// The five stages of a layer, once each: moments -> exchange -> history -> correction -> apply, and back.
#include "allnorm/norm.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "convolution.hpp"
#include "history.hpp"
#include "kernels/formulas.hpp"
#include "kernels/ops.hpp"
#include "parameters.hpp"
#include "plan.hpp"
#include "running.hpp"
#include "state_reader.hpp"

namespace allnorm {

namespace {

using Values = std::vector<double>;

std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

std::string shape_of(const ConstTensorView& view) { return to_string(view.shape); }

Buffer<double> copy(const double* values, std::size_t size, Queue& queue) {
  Buffer<double> buffer(size, queue);
  std::copy_n(values, size, buffer.data());
  return buffer;
}
Buffer<double> copy(const Values& values, Queue& queue) { return copy(values.data(), values.size(), queue); }
Buffer<double> copy(const Buffer<double>& values, Queue& queue) { return copy(values.data(), values.size(), queue); }

Buffer<double> filled(std::size_t size, double value, Queue& queue) {
  Buffer<double> buffer(size, queue);
  std::fill(buffer.begin(), buffer.end(), value);
  return buffer;
}

void expect_like(const ConstTensorView& view, const ConstTensorView& input, const char* name) {
  expect(view.shape == input.shape, Code::invalid_input, [&] {
    return std::string(name) + " has shape " + shape_of(view) + ", must have " + shape_of(input) + " as input";
  });
  expect(view.dtype == input.dtype && view.order == input.order && view.device == input.device, Code::invalid_argument,
         [&] { return std::string(name) + " must have input's dtype, order of axes and device"; });
  expect(view.data != nullptr || view.elements() == 0, Code::invalid_argument,
         [&] { return std::string(name) + " has no data"; });
}

void expect_parameter(const ConstTensorView& view, const Shape& shape, const char* name) {
  if (!view.given()) return;
  expect(view.shape == shape, Code::invalid_input, [&] {
    return std::string(name) + " has shape " + shape_of(view) + ", must have " + to_string(shape);
  });
  expect(view.data != nullptr || view.elements() == 0, Code::invalid_argument,
         [&] { return std::string(name) + " has no data"; });
}

}  // namespace

class NormImpl {
 public:
  NormImpl(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
           std::string name);

  Saved forward(const ForwardInputs& inputs, TensorView output, Queue& queue);
  Saved replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue);
  void backward(const Saved& saved, const ConstTensorView& grad_output, const BackwardOutputs& outputs, Queue& queue);
  void infer(const ForwardInputs& inputs, TensorView output, Queue& queue);
  void begin_batch(Queue& queue);
  State save() const;
  void load(const State& state, const LoadOptions& options);

  bool has_running() const noexcept { return layer_.row->reduction == Reduction::batch_and_space; }
  std::pair<double, double> bounds() const noexcept {
    return {ramp_value(layer_.options.r_max_ramp, running_.calls, layer_.options.r_max),
            ramp_value(layer_.options.d_max_ramp, running_.calls, layer_.options.d_max)};
  }

  Layer layer_;
  std::int64_t channels_;
  std::shared_ptr<Communicator> group_;
  std::string name_;
  Running running_;
  History history_;
  Norm::PastStatistics past_;
  std::uint64_t calls_ = 0;  // training forward calls: the call number of messages

 private:
  // What a training call will leave behind; nothing of it shows before commit().
  struct Next {
    History::Step history{};
    Buffer<double> mean{}, spread{};  // (C) running statistics, where they move
    Values pivot{};                   // (C)
    bool counts = false;              // the call had values
  };

  Plan check(const ForwardInputs& inputs, const ConstTensorView& output, const Queue& queue) const;
  Header header(const ForwardInputs& inputs, const Plan& plan, Direction direction, std::uint64_t call) const;

  Statistics local_moments(const ForwardInputs& inputs, const Plan& plan, Queue& queue) const;
  Statistics exchanged(const Statistics& local, const ForwardInputs& inputs, const Plan& plan,
                       const DerivativeSource* source, Values& lanes, Queue& queue) const;
  Next history(const Statistics& current, const Values& lanes, const DerivativeSource* source, Queue& queue) const;
  Frame corrected(const Statistics& use, double count, Queue& queue) const;
  Frame inference_frame(Queue& queue) const;
  void apply(const ForwardInputs& inputs, const Plan& plan, const Frame& frame, const TensorView& output,
             Buffer<std::uint8_t>& mask, Queue& queue) const;
  void commit(Next&& next) noexcept;
  void advance_running(const RunningValues& values, Next& next, Queue& queue) const;
};

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
  expect_parameter(in.weight, parameters, "weight");
  expect_parameter(in.bias, parameters, "bias");
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
  put(Field::training, o.training);
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
  put(Field::entries, history_.entries());
  put(Field::pivot_hash, hash_of(running_.pivot.data(), running_.pivot.size()));
  put(Field::running_hash, hash_of(running_.spread.data(), running_.spread.size(),
                                   hash_of(running_.mean.data(), running_.mean.size())));
  return h;
}

// ---- moments -------------------------------------------------------------------------------------------------------

// Of this rank's values; var holds M2, the sum of squared deviations.
Statistics NormImpl::local_moments(const ForwardInputs& in, const Plan& plan, Queue& queue) const {
  const auto groups = index(plan.norm.groups());
  Statistics local{static_cast<double>(plan.norm.group_size()), Values(groups), Values(groups), {}};
  queue.ops().moments({in.input.data, in.input.dtype, plan.norm, local.mean.data(), local.var.data()}, queue);
  return local;
}

// ---- exchange ------------------------------------------------------------------------------------------------------

// Of the whole group's values. Payload: count, sums about the pivot (G), squares about it (G), the history's lanes.
Statistics NormImpl::exchanged(const Statistics& local, const ForwardInputs& in, const Plan& plan,
                               const DerivativeSource* source, Values& lanes, Queue& queue) const {
  const std::size_t groups = local.mean.size();
  Statistics all{local.count, Values(groups), Values(groups), Values(groups, 1.0)};
  if (group_->size() == 1) {  // a lone rank keeps its centred sums
    all.mean = local.mean;
    for (std::size_t g = 0; g < groups; ++g) all.var[g] = local.count > 0 ? local.var[g] / local.count : 0;
    if (source) history_.lanes(*source, lanes);
    return all;
  }
  const auto pivot = [&](std::size_t g) { return running_.pivot.empty() ? 0.0 : running_.pivot[g]; };
  Message message{header(in, plan, Direction::forward, calls_), {}, 0, {}};
  if (source)
    message.header.set(Field::weight_hash, hash_of(source->theta.data(), source->theta.size()));
  Values& payload = message.payload;
  payload.reserve(1 + 2 * groups);
  payload.resize(1 + 2 * groups);
  payload[0] = local.count;
  for (std::size_t g = 0; g < groups; ++g) {
    const auto sums = formulas::shift(local.count, local.mean[g], local.var[g], pivot(g));
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
  if (values.mean.empty()) return;
  next.mean = Buffer<double>(running_.mean.size(), queue);
  next.spread = Buffer<double>(running_.spread.size(), queue);
  advance(running_, values, layer_.options, layer_.keeps_std(), next.mean, next.spread);
}

NormImpl::Next NormImpl::history(const Statistics& current, const Values& lanes, const DerivativeSource* source,
                                 Queue& queue) const {
  Next next;
  next.counts = current.count > 0;
  next.history = history_.fold(current, lanes, source);
  if (next.counts) next.pivot = current.mean;
  advance_running(next.history.running, next, queue);
  return next;
}

void NormImpl::commit(Next&& next) noexcept {
  history_.commit(std::move(next.history));
  if (next.counts) {
    running_.pivot = std::move(next.pivot);
    ++running_.calls;
  }
  if (next.mean.empty() && next.spread.empty()) return;
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

// ---- correction ----------------------------------------------------------------------------------------------------

// `count`: values per group of this call alone; use.count is that behind the statistics, 0 when there are none yet.
Frame NormImpl::corrected(const Statistics& use, double count, Queue& queue) const {
  const NormOptions& o = layer_.options;
  const std::size_t groups = use.mean.size();
  Frame frame{copy(use.mean, queue), copy(use.var, queue), Buffer<double>(groups, queue), {}, {},
              copy(use.share, queue), count};
  for (std::size_t g = 0; g < groups; ++g) frame.rstd[g] = 1 / std::sqrt(use.var[g] + o.eps);
  if (!o.renorm || !has_running()) return frame;
  frame.r = Buffer<double>(groups, queue);
  frame.d = Buffer<double>(groups, queue);
  const auto [r_max, d_max] = bounds();
  for (std::size_t c = 0; c < groups; ++c) {
    const auto correction =
        use.count == 0 ? formulas::Correction{} :
        formulas::renorm({use.mean[c], use.var[c]}, o.eps, running_.mean[c],
                         running_sigma(running_, c, o.eps, layer_.keeps_std()), r_max, d_max);
    frame.r[c] = correction.r;
    frame.d[c] = correction.d;
  }
  return frame;
}

Frame NormImpl::inference_frame(Queue& queue) const {
  const std::size_t C = running_.mean.size();
  const double eps = layer_.options.eps;
  Frame frame{copy(running_.mean, queue), copy(running_.spread, queue), Buffer<double>(C, queue), {}, {},
              filled(C, 0, queue), 0};
  for (std::size_t c = 0; c < C; ++c) {
    const double sigma = running_sigma(running_, c, eps, layer_.keeps_std());
    frame.rstd[c] = 1 / sigma;
    if (layer_.keeps_std()) frame.var[c] = sigma * sigma - eps;
  }
  if (layer_.options.renorm) {
    frame.r = filled(C, 1, queue);
    frame.d = filled(C, 0, queue);
  }
  return frame;
}

// ---- apply ---------------------------------------------------------------------------------------------------------

namespace {

formulas::Correction correction_of(const Frame& frame, std::size_t g) {
  return frame.r.empty() ? formulas::Correction{} : formulas::Correction{frame.r[g], frame.d[g]};
}

// Per fine group: (x - center) * scale + shift.
struct FineCoefficients {
  Values center, scale, shift;
};
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

}  // namespace

void NormImpl::apply(const ForwardInputs& in, const Plan& plan, const Frame& frame, const TensorView& output,
                     Buffer<std::uint8_t>& mask, Queue& queue) const {
  const ConstTensorView& x = in.input;
  const Values gamma = read_parameter(in.weight, plan.parameters, 1), beta = read_parameter(in.bias, plan.parameters, 0);
  if (plan.rows) {
    const Values zero(frame.mean.size());
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
    rows.shift = zero.data();
    queue.ops().apply_rows(rows, queue);
    return;
  }
  const Activation activation = has_running() ? layer_.options.activation : Activation{};
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
  const Plan plan = check(inputs, output, queue);
  Saved saved;
  saved.inputs_ = inputs;
  saved.call_ = calls_;
  saved.training_ = layer_.options.training;
  if (has_running() && !layer_.options.training) {
    saved.frame_ = inference_frame(queue);
    apply(inputs, plan, saved.frame_, output, saved.mask_, queue);
    return saved;
  }

  std::optional<DerivativeSource> source;
  if (has_running() && layer_.options.window > 1 && layer_.options.compensate) {
    source = derivative_source(inputs, layer_.options.convolution, queue);
    history_.check(source->shape);
  }
  Values lanes;
  const Statistics local = local_moments(inputs, plan, queue);
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
  expect(from.mean.size() == index(plan.norm.groups()), Code::invalid_argument, [&] {
    return "the replayed input has " + std::to_string(plan.norm.groups()) + " groups, must have " +
           std::to_string(from.mean.size()) + " as in the earlier call";
  });
  Saved saved;
  saved.inputs_ = inputs;
  saved.call_ = earlier.call_;
  saved.training_ = earlier.training_;
  saved.frame_ = {copy(from.mean, queue), copy(from.var, queue), copy(from.rstd, queue), copy(from.r, queue),
                  copy(from.d, queue),    copy(from.share, queue), from.count};
  apply(inputs, plan, saved.frame_, output, saved.mask_, queue);
  return saved;
}

void NormImpl::infer(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  expect(has_running(), Code::unsupported, [&] {
    return std::string(layer_.row->name) + " has no running statistics and is the same in inference, must be called with forward";
  });
  const Plan plan = check(inputs, output, queue);
  Buffer<std::uint8_t> unused;
  apply(inputs, plan, inference_frame(queue), output, unused, queue);
}

// ---- backward ------------------------------------------------------------------------------------------------------

void NormImpl::backward(const Saved& saved, const ConstTensorView& dy, const BackwardOutputs& out, Queue& queue) {
  const ForwardInputs& in = saved.inputs_;
  const ConstTensorView& x = in.input;
  expect(x.given(), Code::invalid_argument, "the Saved of a forward call is empty, must come from forward or replay");
  const Plan plan = plan_for(layer_, x.shape, x.order);
  const Shape parameters = parameter_shape(layer_, x.shape);
  expect_like(dy, x, "grad_output");
  if (out.input.given()) expect_like(out.input, x, "grad_input");
  if (out.residual.given()) {
    expect_like(out.residual, x, "grad_residual");
    expect(in.residual.given(), Code::invalid_argument, "grad_residual is asked for, must not be where forward had no residual");
  }
  expect_parameter(out.weight, parameters, "grad_weight");
  expect_parameter(out.bias, parameters, "grad_bias");

  const Frame& frame = saved.frame_;
  const std::size_t groups = frame.mean.size();
  const Values gamma = read_parameter(in.weight, plan.parameters, 1), beta = read_parameter(in.bias, plan.parameters, 0);
  Values sums(2 * groups);  // s1 (G), s2 (G)
  Values dgamma(index(plan.parameters)), dbeta(index(plan.parameters));

  // moments_grad, coarsened to the groups and to gamma and beta
  RowsArgs rows{};
  FineCoefficients fine;
  Gate gate{};
  if (plan.rows) {
    rows.x = x.data;
    rows.dy = dy.data;
    rows.dx = out.input.data;
    rows.dtype = x.dtype;
    rows.rows = plan.norm.groups();
    rows.columns = plan.norm.group_size();
    rows.weight = in.weight.given() ? gamma.data() : nullptr;
    rows.center = frame.mean.data();
    rows.scale = frame.rstd.data();
    rows.sum_g = sums.data();
    rows.sum_gx = sums.data() + groups;
    rows.dweight = dgamma.data();
    rows.dbias = dbeta.data();
    const Values zero(groups);
    rows.shift = zero.data();
    queue.ops().moments_grad_rows(rows, queue);
    if (out.weight.given() || out.bias.given()) queue.ops().affine_grad_rows(rows, queue);
  } else {
    fine = fine_coefficients(plan, frame, gamma, beta);
    gate = {has_running() ? layer_.options.activation : Activation{}, saved.mask_.data(), fine.scale.data(),
            fine.shift.data()};
    const std::size_t size = fine.center.size();
    Values sum_g(size), sum_gx(size);
    queue.ops().moments_grad(
        {x.data, dy.data, x.dtype, plan.fine, fine.center.data(), gate, sum_g.data(), sum_gx.data()}, queue);
    for (std::size_t f = 0; f < size; ++f) {
      const auto g = index(plan.to_norm(static_cast<std::int64_t>(f)));
      const auto c = index(plan.to_affine(static_cast<std::int64_t>(f)));
      const auto correction = correction_of(frame, g);
      sums[g] += gamma[c] * correction.r * sum_g[f];
      sums[groups + g] += gamma[c] * correction.r * sum_gx[f];
      dgamma[c] += formulas::gamma_grad(frame.rstd[g], correction, sum_g[f], sum_gx[f]);
      dbeta[c] += sum_g[f];
    }
  }

  // exchange: the same call as forward's, two numbers per group
  if (saved.training_ && group_->size() > 1) {
    Message message{header(in, plan, Direction::backward, saved.call_), std::move(sums), 0, {}};
    sums = group_->exchange(std::move(message), queue).payload;
  }

  // apply_grad
  const bool elementwise = out.input.given() || out.residual.given();
  if (elementwise) {
    const std::size_t size = plan.rows ? groups : fine.center.size();
    Values gain(size), slope(size), offset(size);
    for (std::size_t f = 0; f < size; ++f) {
      const auto g = plan.rows ? f : index(plan.to_norm(static_cast<std::int64_t>(f)));
      const double weight = plan.rows ? 1 : gamma[index(plan.to_affine(static_cast<std::int64_t>(f)))];
      const auto k = formulas::apply_grad(frame.rstd[g], correction_of(frame, g).r, weight, frame.share[g], frame.count,
                                          sums[g], sums[groups + g]);
      gain[f] = k.gain;
      slope[f] = k.slope;
      offset[f] = k.offset;
    }
    if (plan.rows) {
      rows.gain = gain.data();
      rows.slope = slope.data();
      rows.offset = offset.data();
      queue.ops().apply_grad_rows(rows, queue);
    } else {
      queue.ops().apply_grad({x.data, dy.data, out.input.data, out.residual.data, x.dtype, plan.fine, fine.center.data(),
                              gate, gain.data(), slope.data(), offset.data()},
                             queue);
    }
  }
  if (out.weight.given()) write_parameter(dgamma, out.weight);
  if (out.bias.given()) write_parameter(dbeta, out.bias);
}

// ---- state ---------------------------------------------------------------------------------------------------------

namespace {

constexpr std::int64_t state_version = 1;
constexpr std::string_view layer_prefix = "allnorm.layer.";

void save_ramp(State& state, const char* name, const Ramp& ramp) {
  if (ramp.empty()) return;
  Values points;
  for (const auto& [call, value] : ramp) {
    points.push_back(static_cast<double>(call));
    points.push_back(value);
  }
  state.add(name, points.data(), Shape{static_cast<std::int64_t>(ramp.size()), 2});
}

Ramp load_ramp(const State& state, const char* name) {
  const StateEntry* entry = state.find(name);
  if (!entry) return {};
  expect(entry->shape.rank() == 2 && entry->shape[1] == 2, Code::invalid_input, [&] {
    return "state " + std::string(name) + " has shape " + to_string(entry->shape) + ", must have (points,2)";
  });
  const Values points = state_reader::doubles(state, name, entry->shape);
  Ramp ramp;
  for (std::size_t i = 0; i < points.size(); i += 2) {
    expect(points[i] >= 0 && points[i] < 0x1p62, Code::invalid_input,
           [&] { return "state " + std::string(name) + " has a point at call " + std::to_string(points[i]) + ", must be from 0 to 2^62"; });
    ramp.emplace_back(static_cast<std::int64_t>(points[i]), points[i + 1]);
  }
  return ramp;
}

}  // namespace

State NormImpl::save() const {
  State state;
  if (!has_running()) return state;
  allnorm::save(running_, layer_.keeps_std(), state);
  state.add(std::string(layer_prefix) + std::string(layer_.row->name), state_version);
  state.add("allnorm.ranks", group_->size());
  state.add("allnorm.rank", group_->rank());
  state.add("allnorm.window", layer_.options.window);
  state.add("allnorm.minibatches", layer_.options.minibatches);
  save_ramp(state, "allnorm.r_max_ramp", layer_.options.r_max_ramp);
  save_ramp(state, "allnorm.d_max_ramp", layer_.options.d_max_ramp);
  history_.save(state);
  return state;
}

void NormImpl::load(const State& state, const LoadOptions& options) {
  using state_reader::integer;
  expect(has_running(), Code::invalid_input,
         [&] { return std::string(layer_.row->name) + " has no state, must be loaded with none"; });
  Layer layer = layer_;
  bool drop = false;
  const auto ours = std::find_if(state.entries.begin(), state.entries.end(),
                                 [](const StateEntry& e) { return e.name.starts_with(layer_prefix); });
  if (ours != state.entries.end()) {  // otherwise a framework's: running statistics alone
    const std::string of = ours->name.substr(layer_prefix.size());
    expect(of == layer_.row->name, Code::invalid_input,
           [&] { return "state is of layer " + of + ", must be of " + std::string(layer_.row->name); });
    const std::int64_t version = integer(state, ours->name, 1);
    expect(version == state_version, Code::invalid_input, [&] {
      return "state has version " + std::to_string(version) + ", must have " + std::to_string(state_version);
    });
    const auto agree = [&](const char* name, std::int64_t value) {
      const std::int64_t held = integer(state, std::string("allnorm.") + name, 1);
      expect(held == value, Code::invalid_input, [&] {
        return "state was made with " + std::string(name) + " = " + std::to_string(held) + ", must be made with " +
               std::to_string(value);
      });
    };
    agree("window", layer_.options.window);
    agree("minibatches", layer_.options.minibatches);
    const std::int64_t ranks = integer(state, "allnorm.ranks", 1), rank = integer(state, "allnorm.rank", 0);
    if (History::has_per_rank_parts(state) && (ranks != group_->size() || rank != group_->rank())) {
      expect(options.drop_window, Code::invalid_input, [&] {
        return "state is of rank " + std::to_string(rank) + " of " + std::to_string(ranks) + ", must be of rank " +
               std::to_string(group_->rank()) + " of " + std::to_string(group_->size()) +
               ": its window holds that rank's share of sums over all ranks; it can be loaded without its window";
      });
      drop = true;
    }
    layer.options.r_max_ramp = load_ramp(state, "allnorm.r_max_ramp");
    layer.options.d_max_ramp = load_ramp(state, "allnorm.d_max_ramp");
    try {
      layer.check();
    } catch (const Error& error) {
      fail(Code::invalid_input, "state: " + error.message());
    }
  }
  History history(layer.options, channels_);
  history.load(state, drop);
  allnorm::load(running_, layer_.keeps_std(), state);  // the last that can throw
  layer_ = std::move(layer);
  history_ = std::move(history);
}

// ---- the public face -----------------------------------------------------------------------------------------------

Norm::Norm(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
           std::string name)
    : impl_(std::make_unique<NormImpl>(layer, channels, std::move(group), queue, std::move(name))) {}
Norm::Norm(Norm&&) noexcept = default;
Norm& Norm::operator=(Norm&&) noexcept = default;
Norm::~Norm() = default;

Saved Norm::forward(const ForwardInputs& inputs, TensorView output, Queue& queue) {
  return impl_->forward(inputs, output, queue);
}
Saved Norm::replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue) {
  return impl_->replay(earlier, inputs, output, queue);
}
void Norm::backward(const Saved& saved, ConstTensorView grad_output, const BackwardOutputs& outputs, Queue& queue) {
  impl_->backward(saved, grad_output, outputs, queue);
}
void Norm::infer(const ForwardInputs& inputs, TensorView output, Queue& queue) { impl_->infer(inputs, output, queue); }
void Norm::begin_batch(Queue& queue) { impl_->begin_batch(queue); }

void Norm::set_training(bool training) noexcept { impl_->layer_.options.training = training; }
const Layer& Norm::layer() const noexcept { return impl_->layer_; }
const std::string& Norm::name() const noexcept { return impl_->name_; }
Communicator& Norm::group() const noexcept { return *impl_->group_; }
std::int64_t Norm::channels() const noexcept { return impl_->channels_; }

State Norm::save() const { return impl_->save(); }
void Norm::load(const State& state, const LoadOptions& options) { impl_->load(state, options); }

Buffer<double>& Norm::running_mean() noexcept { return impl_->running_.mean; }
Buffer<double>& Norm::running_spread() noexcept { return impl_->running_.spread; }
std::int64_t Norm::batches_tracked() const noexcept { return impl_->running_.tracked; }
void Norm::set_batches_tracked(std::int64_t count) noexcept { impl_->running_.tracked = count; }
const Norm::PastStatistics& Norm::past() const noexcept { return impl_->past_; }
std::pair<double, double> Norm::renorm_bounds() const noexcept { return impl_->bounds(); }
std::size_t Norm::state_bytes() const noexcept {
  return (impl_->running_.mean.size() + impl_->running_.spread.size() + impl_->running_.pivot.size()) * sizeof(double) +
         impl_->history_.bytes();
}

}  // namespace allnorm
