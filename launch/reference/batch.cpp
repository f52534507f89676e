// The oracle of the batch-statistics family: one call of the whole composition, in the order of equations 1, section 8.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "launch/reference/reference.hpp"

namespace reference {

namespace {

Int channels_of(const Array& x) { return x.shape.at(1); }
Int space_of(const Array& x) {
  Int space = 1;
  for (std::size_t axis = 2; axis < x.shape.size(); ++axis) space *= x.shape[axis];
  return space;
}

/// The channel of element i of x.
std::size_t channel(const Array& x, std::size_t i) {
  return i / static_cast<std::size_t>(space_of(x)) % static_cast<std::size_t>(channels_of(x));
}

Doubles to_doubles(const Reals& values) { return Doubles(values.begin(), values.end()); }

/// Whether past entries are brought to the present weights, which takes derivatives with respect to the weights.
bool compensates(const BatchOptions& options) { return options.window > 1 && options.compensate; }

/// This call's own statistics: sums over all ranks, in two rounds. (Section 2; derivatives section 4.)
Statistics own_statistics(const BatchOptions& options, const Inputs& inputs, std::size_t channels, bool derivatives) {
  Statistics s;
  s.mean.assign(channels, 0);
  s.var.assign(channels, 0);
  for (const Array& x : inputs.x) s.count += x.shape[0] * space_of(x);
  if (s.count == 0) return s;
  const Real m = static_cast<Real>(s.count);

  for (const Array& x : inputs.x)
    for (std::size_t i = 0; i < x.v.size(); ++i) s.mean[channel(x, i)] += x.v[i];
  for (Real& mean : s.mean) mean /= m;
  for (const Array& x : inputs.x)
    for (std::size_t i = 0; i < x.v.size(); ++i) {
      const Real distance = x.v[i] - s.mean[channel(x, i)];
      s.var[channel(x, i)] += distance * distance;
    }
  for (Real& var : s.var) var /= m;

  if (compensates(options)) s.theta = inputs.conv_weight.v;
  if (compensates(options) && derivatives) {
    s.dmean.assign(s.theta.size(), 0);
    s.dsecond.assign(s.theta.size(), 0);
    for (std::size_t k = 0; k < inputs.x.size(); ++k)
      add_patch_sums(inputs.conv_input.at(k), inputs.x[k], inputs.conv_weight.shape, options.convolution, s.dmean,
                     s.dsecond);
    for (Real& v : s.dmean) v /= m;
    for (Real& v : s.dsecond) v *= 2 / m;
  }
  return s;
}

Real weight_of(const BatchOptions& options, const Statistics& minibatch) {
  return options.weighting == Weighting::uniform ? Real(1) : static_cast<Real>(minibatch.count);
}

/// The batch so far, from its non-empty mini-batches with their final weights f_i = w_i/sum w: mean, second moment and
/// derivatives are averages with these weights; the variance is the average of var_i + (mean_i - mean)^2. (Section 5)
Statistics accumulate(const BatchOptions& options, const std::vector<Statistics>& minibatches, std::size_t channels) {
  Statistics batch;
  batch.mean.assign(channels, 0);
  batch.var.assign(channels, 0);
  Real sum = 0;
  for (const Statistics& m : minibatches) sum += weight_of(options, m);
  for (const Statistics& m : minibatches) {
    const Real f = weight_of(options, m) / sum;
    batch.count += m.count;
    batch.theta = m.theta;
    batch.dmean.resize(m.dmean.size(), 0);
    batch.dsecond.resize(m.dsecond.size(), 0);
    for (std::size_t c = 0; c < channels; ++c) batch.mean[c] += f * m.mean[c];
    for (std::size_t i = 0; i < m.dmean.size(); ++i) {
      batch.dmean[i] += f * m.dmean[i];
      batch.dsecond[i] += f * m.dsecond[i];
    }
  }
  for (const Statistics& m : minibatches)
    for (std::size_t c = 0; c < channels; ++c) {
      const Real distance = m.mean[c] - batch.mean[c];
      batch.var[c] += weight_of(options, m) / sum * (m.var[c] + distance * distance);
    }
  return batch;
}

/// The average of the current batch and of the past ones that pass the guard. (Section 4)
struct Average {
  Reals mean, var;                   // (C)
  std::vector<Int> entries, counts;  // (C): entries used, the current one included, and the sum of their M
};

Average average_window(const BatchOptions& options, const Statistics& current, const std::deque<Statistics>& past) {
  Average average;
  const std::size_t fan_in = current.mean.empty() ? 0 : current.theta.size() / current.mean.size();
  for (std::size_t c = 0; c < current.mean.size(); ++c) {
    Reals means{current.mean[c]}, vars{current.var[c]};
    Int count = current.count;
    for (const Statistics& entry : past) {
      Real change = 0, second_change = 0;  // <dmean, D> and <dsecond, D> with D = theta_now - theta_then
      for (std::size_t f = c * fan_in; f < (c + 1) * fan_in; ++f) {
        change += entry.dmean[f] * (Real(current.theta[f]) - entry.theta[f]);
        second_change += entry.dsecond[f] * (Real(current.theta[f]) - entry.theta[f]);
      }
      // (second + second_change) - (mean + change)^2 with second = var + mean^2, multiplied out: exactly var for D = 0
      const Real var = entry.var[c] + (second_change - 2 * entry.mean[c] * change) - change * change;
      if (options.guard == Guard::drop && var < 0) continue;
      means.push_back(entry.mean[c] + change);
      vars.push_back(std::max(var, Real(0)));
      count += entry.count;
    }
    const Real n = static_cast<Real>(means.size());
    Real mean = 0, var = 0;
    for (const Real m : means) mean += m / n;
    for (std::size_t j = 0; j < means.size(); ++j) var += (vars[j] + (means[j] - mean) * (means[j] - mean)) / n;
    average.mean.push_back(mean);
    average.var.push_back(var);
    average.entries.push_back(static_cast<Int>(means.size()));
    average.counts.push_back(count);
  }
  return average;
}

/// What values are divided by, and how much of it a change of the variance is; a root of 0 has no derivative. (Section
/// 1)
/// A bound of r or d at a call: a number, or on the line between the two points around it.
Real bound_at(double constant, const Ramp& ramp, Int call) {
  if (ramp.empty()) return constant;
  if (call >= ramp.back().call) return ramp.back().value;
  std::size_t after = 0;
  while (ramp[after].call <= call) ++after;
  if (after == 0) return ramp.front().value;
  const RampPoint &from = ramp[after - 1], &to = ramp[after];
  return from.value + (Real(to.value) - from.value) * Real(call - from.call) / Real(to.call - from.call);
}

Real deviation_of(const BatchOptions& options, Real var) {
  return options.eps_place == EpsPlace::outside ? std::sqrt(var) + options.eps : std::sqrt(var + options.eps);
}
Real deviation_slope(const BatchOptions& options, Real var) {
  const Real root = std::sqrt(options.eps_place == EpsPlace::outside ? var : var + options.eps);
  return root > 0 ? 1 / (2 * root) : Real(0);
}

bool burning_in(const BatchOptions& options, const BatchState& state) { return state.batches < options.burn_in; }

/// Running statistics after an update with the batch under way, or with the window around it.
void update_running(const BatchOptions& options, const Statistics& batch, BatchState& state) {
  const bool windowed = options.running_source == RunningSource::window && !burning_in(options, state);
  const Average source = average_window(options, batch, windowed ? state.window : std::deque<Statistics>{});
  state.num_batches_tracked += 1;
  const Real f = options.cumulative ? 1 / static_cast<Real>(state.num_batches_tracked) : Real(options.momentum);
  const auto move = [f](double& running, Real to) { running = static_cast<double>((1 - f) * running + f * to); };
  for (std::size_t c = 0; c < source.mean.size(); ++c) {
    const Real m = static_cast<Real>(source.counts[c]);
    const Real bessel = options.unbiased_running_var && m > 1 ? m / (m - 1) : Real(1);
    move(state.running_mean[c], source.mean[c]);
    if (options.renorm && options.variant == RenormVariant::paper)
      move(state.running_std[c], deviation_of(options, source.var[c]));
    else
      move(state.running_var[c], source.var[c] * bessel);
  }
}

/// The batch under way is over, complete or not: rule `last`, the window's new entry, the counters.
void close_batch(const BatchOptions& options, std::size_t channels, BatchState& state) {
  const Statistics batch = accumulate(options, state.minibatches, channels);
  if (batch.count > 0) {
    if (options.running == RunningUpdate::last) update_running(options, batch, state);
    if (options.window > 1 && (!burning_in(options, state) || options.fill_in_burn_in)) {
      state.window.push_front(batch);
      while (static_cast<Int>(state.window.size()) > options.window - 1) state.window.pop_back();
    }
    state.batches += 1;
  }
  state.minibatches.clear();
  state.t = 0;
}

double activate(const BatchOptions& options, double pre) {
  if (options.activation.kind == ActivationKind::identity || pre > 0) return pre;
  return options.activation.kind == ActivationKind::relu ? 0.0 : options.activation.slope * pre;
}

/// The slope of the activation; at 0 that of the negative side.
double gate(const BatchOptions& options, double pre) {
  if (options.activation.kind == ActivationKind::identity || pre > 0) return 1;
  return options.activation.kind == ActivationKind::relu ? 0.0 : options.activation.slope;
}

/// y = act(gamma ((x - mean) inv r + d) + beta + residual)
void apply(const Layer& layer, const Inputs& inputs, const Reals& mean, const Reals& inv, Result& result) {
  result.mean = to_doubles(mean);
  result.inv = to_doubles(inv);
  for (std::size_t k = 0; k < inputs.x.size(); ++k) {
    const Array& x = inputs.x[k];
    Array pre = zeros(x.shape), y = zeros(x.shape);
    for (std::size_t i = 0; i < x.v.size(); ++i) {
      const std::size_t c = channel(x, i);
      const Real z = (x.v[i] - mean[c]) * inv[c] * result.r[c] + result.d[c];
      const Real residual = inputs.residual.empty() ? 0.0 : inputs.residual.at(k).v.at(i);
      pre.v[i] = static_cast<double>(layer.gamma[c] * z + layer.beta[c] + residual);
      y.v[i] = activate(layer.options, pre.v[i]);
    }
    result.pre.push_back(std::move(pre));
    result.y.push_back(std::move(y));
  }
}

Result identity_result(const Layer& layer, const Inputs& inputs) {
  const std::size_t channels = layer.gamma.size();
  for (const Array& x : inputs.x)
    if (static_cast<std::size_t>(channels_of(x)) != channels) throw std::invalid_argument("x does not fit the layer");
  Result result;
  result.r.assign(channels, 1);
  result.d.assign(channels, 0);
  result.a.assign(channels, 0);
  result.state = layer.state;
  return result;
}

}  // namespace

Layer make_layer(Int channels, const BatchOptions& options) {
  const auto c = static_cast<std::size_t>(channels);
  Layer layer;
  layer.options = options;
  layer.gamma.assign(c, 1);
  layer.beta.assign(c, 0);
  layer.state.running_mean.assign(c, 0);
  layer.state.running_var.assign(c, 1);
  layer.state.running_std.assign(c, 1);
  return layer;
}

Result infer(const Layer& layer, const Inputs& inputs) {
  Result result = identity_result(layer, inputs);
  const BatchOptions& options = layer.options;
  const BatchState& state = layer.state;
  Reals mean(state.running_mean.begin(), state.running_mean.end()), inv;
  for (std::size_t c = 0; c < mean.size(); ++c)
    if (options.renorm && options.variant == RenormVariant::paper) {
      inv.push_back(1 / Real(state.running_std[c]));  // eps is inside the running deviation
      const Real root = Real(state.running_std[c]) - options.eps;
      result.var.push_back(static_cast<double>(options.eps_place == EpsPlace::outside
                                                   ? root * root
                                                   : Real(state.running_std[c]) * state.running_std[c] - options.eps));
    } else {
      inv.push_back(1 / deviation_of(options, state.running_var[c]));
      result.var.push_back(state.running_var[c]);
    }
  for (const Array& x : inputs.x) result.count += x.shape[0] * space_of(x);
  apply(layer, inputs, mean, inv, result);
  return result;
}

Result evaluate(const Layer& layer, const Inputs& inputs, const Result* frozen) {
  const BatchOptions& options = layer.options;
  if (!options.training) return infer(layer, inputs);
  Result result = identity_result(layer, inputs);
  const std::size_t channels = layer.gamma.size();

  // This call, over the ranks. A frozen call is only asked for y, and derivatives serve later calls.
  const Statistics own = own_statistics(options, inputs, channels, frozen == nullptr);
  result.count = own.count;
  BatchState& state = result.state;

  // This batch.
  if (own.count > 0) state.minibatches.push_back(own);
  const Statistics batch = accumulate(options, state.minibatches, channels);
  Real share = 0;  // of this call in the batch, f
  for (const Statistics& m : state.minibatches) share += weight_of(options, m);
  share = own.count > 0 ? weight_of(options, own) / share : Real(0);

  // The window around it.
  const bool alone = burning_in(options, state);
  const bool windowed = !alone && batch.count > 0;
  const Average used = average_window(options, alone ? own : batch, windowed ? state.window : std::deque<Statistics>{});
  if (own.count > 0)
    for (std::size_t c = 0; c < channels; ++c)
      result.a[c] = static_cast<double>(alone ? Real(1) : share / static_cast<Real>(used.entries[c]));

  // Against the running statistics from before the call.
  Reals inv;
  const Real r_max = bound_at(options.r_max, options.r_max_ramp, state.counted);
  const Real d_max = bound_at(options.d_max, options.d_max_ramp, state.counted);
  for (std::size_t c = 0; c < channels; ++c) {
    const Real deviation = deviation_of(options, used.var[c]);
    inv.push_back(1 / deviation);
    if (!options.renorm || own.count == 0) continue;
    const Real reference = options.variant == RenormVariant::paper ? Real(layer.state.running_std[c])
                                                                   : deviation_of(options, layer.state.running_var[c]);
    const Real r = deviation / reference, d = (used.mean[c] - layer.state.running_mean[c]) / reference;
    result.r[c] = frozen ? frozen->r[c] : static_cast<double>(std::clamp<Real>(r, 1 / r_max, r_max));
    result.d[c] = frozen ? frozen->d[c] : static_cast<double>(std::clamp<Real>(d, -d_max, d_max));
  }
  result.var = to_doubles(used.var);
  apply(layer, inputs, used.mean, inv, result);

  // State. A call without a value only takes its place in a batch of mini-batches.
  state.t += 1;
  if (own.count > 0) state.counted += 1;
  if (options.running == RunningUpdate::every && own.count > 0) update_running(options, batch, state);
  if (state.t == options.minibatches) close_batch(options, channels, state);
  return result;
}

Result forward(Layer& layer, const Inputs& inputs) {
  Result result = evaluate(layer, inputs);
  layer.state = result.state;
  return result;
}

void begin_batch(Layer& layer) {
  if (layer.state.t > 0) close_batch(layer.options, layer.gamma.size(), layer.state);
}

Gradients backward(const Layer& layer, const Inputs& inputs, const Result& result, const Ranks& dy) {
  const std::size_t channels = layer.gamma.size();
  const std::size_t ranks = inputs.x.size();
  Gradients gradients;
  Reals s1(channels, 0), s2(channels, 0);  // over the ranks: sums of gamma r g, and of gamma r g (x - mean)
  for (std::size_t k = 0; k < ranks; ++k) {
    const Array& x = inputs.x[k];
    Array gated = zeros(x.shape);
    Reals sum(channels, 0), sum_centred(channels, 0);  // this rank's sums of g and of g (x - mean)
    for (std::size_t i = 0; i < x.v.size(); ++i) {
      const std::size_t c = channel(x, i);
      gated.v[i] = gate(layer.options, result.pre[k].v[i]) * dy.at(k).v.at(i);
      sum[c] += gated.v[i];
      sum_centred[c] += gated.v[i] * (Real(x.v[i]) - result.mean[c]);
    }
    Doubles dgamma(channels);
    for (std::size_t c = 0; c < channels; ++c) {
      const Real q = result.r[c];
      dgamma[c] = static_cast<double>(q * result.inv[c] * sum_centred[c] + result.d[c] * sum[c]);
      s1[c] += layer.gamma[c] * q * sum[c];
      s2[c] += layer.gamma[c] * q * sum_centred[c];
    }
    gradients.dgamma.push_back(std::move(dgamma));
    gradients.dbeta.push_back(to_doubles(sum));
    gradients.dresidual.push_back(std::move(gated));  // the residual is added before the activation
  }
  for (std::size_t k = 0; k < ranks; ++k) {
    const Array& x = inputs.x[k];
    Array dx = zeros(x.shape);
    for (std::size_t i = 0; i < x.v.size(); ++i) {
      const std::size_t c = channel(x, i);
      const Real inv = result.inv[c], mean = result.mean[c], share = result.a[c] / static_cast<Real>(result.count);
      const Real dvar = -inv * inv * deviation_slope(layer.options, result.var[c]) * s2[c];
      const Real dmean = -inv * s1[c] - 2 * mean * dvar;
      dx.v[i] = static_cast<double>(layer.gamma[c] * result.r[c] * inv * gradients.dresidual[k].v[i] + share * dmean +
                                    2 * share * x.v[i] * dvar);
    }
    gradients.dx.push_back(std::move(dx));
  }
  return gradients;
}

}  // namespace reference
