// The steps of Switchable Normalization between its kernels, host and device; formulas are switchable.hpp's. N samples,
// C channels; i = n * C + c is a channel of a sample, a set of the only pass over x.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/arrays.hpp"
#include "kernels/hits.hpp"
#include "kernels/steps.hpp"
#include "kernels/switchable.hpp"

namespace allnorm::steps {

/// What does not depend on the set.
struct SwitchedScalars {
  formulas::SwitchWeights weights{};
  double count = 0, batch_count = 0;  // values of a set and of a channel, over the ranks
  Turn turn{};
  Turn settled{};  // what the call does to the state, when it is known which channels are finite
};

/// What a call leaves in memory.
struct SwitchedFrames {
  std::int64_t samples = 0, channels = 0;
  double *instance_mean = nullptr, *instance_var = nullptr;  // (N * C)
  double *mean = nullptr, *var = nullptr, *rstd = nullptr;   // (N * C): the mixtures
  double *layer_mean = nullptr, *layer_var = nullptr;        // (N)
  double *batch_mean = nullptr, *batch_var = nullptr;        // (C)
  SwitchedScalars* scalars = nullptr;

  ALLNORM_HOST_DEVICE std::int64_t sets() const { return samples * channels; }
  ALLNORM_HOST_DEVICE formulas::Moments instance(std::int64_t i) const { return {instance_mean[i], instance_var[i]}; }
  ALLNORM_HOST_DEVICE formulas::Moments layer(std::int64_t i) const {
    return {layer_mean[i / channels], layer_var[i / channels]};
  }
  ALLNORM_HOST_DEVICE formulas::Moments batch(std::int64_t i) const {
    return {batch_mean[i % channels], batch_var[i % channels]};
  }
  ALLNORM_HOST_DEVICE formulas::SwitchedFrame operator[](std::int64_t i) const {
    return {instance(i), layer(i), batch(i), mean[i], var[i], rstd[i]};
  }
};

/// How many values a set has: this rank's, or where ranks hold parts of samples those of all.
struct SetCount {
  double own = 0;
  bool in_parts = false;
  Gathered parts{};  // of in_parts

  ALLNORM_HOST_DEVICE double operator()() const { return in_parts ? summed(parts, 0) : own; }
};

// ---- forward -------------------------------------------------------------------------------------------------------

/// For every set: what the kernel left in `frames`, means and sums of squares about them, or what ranks sent of their
/// parts, becomes the moments of instance norm.
struct SwitchedInstances {
  SwitchedFrames frames{};
  SetCount count{};
  bool unbiased = false;

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    const double values = count();
    if (count.in_parts) {
      const auto all = moments_of(count.parts, Layout{frames.sets()}, i);
      frames.instance_mean[i] = all.mean;
      frames.instance_var[i] = all.var * values;
    }
    const auto moments = formulas::instance_moments(unbiased, values, frames.instance_mean[i], frames.instance_var[i]);
    frames.instance_mean[i] = moments.mean;
    frames.instance_var[i] = moments.var;
  }
};

/// For N + C groups: the moments of layer norm of every sample; then, of every channel of this rank's samples, mean and
/// sum of squares about it.
struct SwitchedPools {
  SwitchedFrames frames{};
  SetCount count{};
  double *mean = nullptr, *m2 = nullptr;  // (C)

  ALLNORM_HOST_DEVICE void operator()(std::int64_t g) const {
    const std::int64_t N = frames.samples, C = frames.channels;
    const double values = count();
    formulas::Pool pool;
    if (g < N) {
      for (std::int64_t i = g * C; i < (g + 1) * C; ++i) pool.add(values, frames.instance(i));
      const auto moments = pool.moments();
      frames.layer_mean[g] = moments.mean;
      frames.layer_var[g] = moments.var;
    } else {
      for (std::int64_t i = g - N; i < N * C; i += C) pool.add(values, frames.instance(i));
      mean[g - N] = pool.mean;
      m2[g - N] = pool.m2;
    }
  }
};

/// For one group: the weights, and what the call does to the state.
struct SwitchedTurn {
  SwitchedFrames frames{};
  SetCount count{};
  Rules rules{};
  LayerState state{};
  Parameter mean_logits{}, var_logits{};  // (3)
  bool live = false;                      // the batch's statistics are this call's, not the running ones
  bool exchanged = false;                 // and other ranks' samples are part of it
  Gathered batch{};                       // of exchanged
  const std::uint64_t* fails = nullptr;   // the ranks disagree; null for a lone one

  ALLNORM_HOST_DEVICE void operator()(std::int64_t) const {
    SwitchedScalars& to = *frames.scalars;
    to.weights = {formulas::softmax(mean_logits), formulas::softmax(var_logits)};
    to.count = count();
    to.batch_count = exchanged ? summed(batch, 0) : to.count * static_cast<double>(frames.samples);
    to.turn = {};
    to.turn.fails = fails != nullptr && *fails != 0;
    if (live && !to.turn.fails) to.turn = turn_of(rules, state.now(), to.batch_count, false);
    to.turn.call = state.now().calls;
    if (live && state.hits != nullptr) *state.hits = {};  // of a call that did not come to its end
  }
};

/// For every channel: the moments of batch norm, from what the pools left in `frames`, what ranks sent or the running
/// statistics; and their next state.
struct SwitchedBatch {
  SwitchedFrames frames{};
  Rules rules{};
  LayerState state{};
  bool live = false, exchanged = false;
  bool in_parts = false, unbiased = false;  // as of SetCount and SwitchedInstances
  bool notes = false;                       // what is not finite, from threads of a grid; otherwise SwitchedSettle does
  Gathered batch{};                         // of exchanged, or the parts

  ALLNORM_HOST_DEVICE void operator()(std::int64_t c) const {
    const SwitchedScalars& call = *frames.scalars;
    formulas::Moments moments{state.now(LayerState::running_mean)[c], state.now(LayerState::running_spread)[c]};
    if (live) {
      moments = exchanged ? moments_of(batch, Layout{frames.channels}, c)
                          : moments_of(call.batch_count, frames.batch_mean[c], frames.batch_var[c]);
      write_next(rules, state, call.turn, c, {}, {moments.mean, moments.var, moments.var});
    }
    frames.batch_mean[c] = moments.mean;
    frames.batch_var[c] = moments.var;
    if (live && notes) note(c);
  }
  /// Of a channel that is done.
  ALLNORM_HOST_DEVICE void note(std::int64_t c) const {
    if (frames.scalars->turn.fails || is_finite(frames.batch_mean[c], frames.batch_var[c])) return;
    note_hit(state, c, ranks_hit(c));
  }

 private:
  // Of one value there is no unbiased variance, however finite it is.
  ALLNORM_HOST_DEVICE bool is_finite(double mean, double spread) const {
    return formulas::usable({mean, unbiased && frames.scalars->count == 1 ? 0 : spread});
  }
  ALLNORM_HOST_DEVICE std::uint64_t ranks_hit(std::int64_t c) const {
    if (!exchanged && !in_parts) return rank_bit(0);
    if (batch.sums != nullptr) return batch.nonfinite;
    const Layout layout{in_parts ? frames.sets() : frames.channels};
    std::uint64_t ranks = 0;
    for (int rank = 0; rank < batch.ranks; ++rank) {
      const double* const part = payload_of(batch, rank);
      for (std::int64_t i = c; i < layout.groups; i += frames.channels)
        if (!is_finite(part[layout.mean(i)], part[layout.m2(i)])) ranks |= rank_bit(rank);
    }
    return ranks;
  }
};

/// When all channels are done, for one group: what was noted of them is told, and what the call does to the state then.
struct SwitchedSettle {
  SwitchedBatch channels{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t) const {
    for (std::int64_t c = 0; !channels.notes && c < channels.frames.channels; ++c) channels.note(c);
    SwitchedScalars& call = *channels.frames.scalars;
    call.settled = settle(channels.rules, channels.state, call.turn);
  }
};

/// For every set: y = (x - mean) * scale + shift.
struct SwitchedMap {
  SwitchedFrames frames{};
  Parameter gamma{.otherwise = 1}, beta{};  // (C)
  ApplyArrays made{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    const std::int64_t c = i % frames.channels;
    made.set(i, formulas::apply(frames.rstd[i], {}, gamma[c], beta[c]));
  }
};

/// For every set: what it is normalized with, NaN where the call fails, and the map.
struct SwitchedForward {
  double eps = 0;
  SwitchedMap map{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    const SwitchedFrames& to = map.frames;
    const SwitchedScalars& call = *to.scalars;
    const auto frame = formulas::switched(call.weights, to.instance(i), to.layer(i), to.batch(i), eps);
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    to.mean[i] = call.turn.fails ? nan : frame.mean;
    to.var[i] = call.turn.fails ? nan : frame.var;
    to.rstd[i] = call.turn.fails ? nan : frame.rstd;
    map(i);
  }
};

// ---- backward ------------------------------------------------------------------------------------------------------

/// Derivatives by means and variances, of some sets.
struct TermArrays {
  double *mean = nullptr, *var = nullptr;

  ALLNORM_HOST_DEVICE formulas::MomentTerms operator[](std::int64_t i) const { return {mean[i], var[i]}; }
  ALLNORM_HOST_DEVICE void set(std::int64_t i, formulas::MomentTerms terms) const {
    mean[i] = terms.mean;
    var[i] = terms.var;
  }
};

/// For every set: the terms that the sums of dy (N * C) and of dy * (x - mean) (N * C) make.
struct SwitchedTerms {
  SwitchedFrames frames{};
  Parameter gamma{.otherwise = 1};
  Gathered sums{};  // this rank's, or those of ranks with parts of samples
  TermArrays made{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    if (!(frames.scalars->count > 0)) return made.set(i, {});
    made.set(i, formulas::switched_terms(frames[i], gamma[i % frames.channels], summed(sums, i),
                                         summed(sums, frames.sets() + i)));
  }
};

/// For N + C groups: the weighted terms of a sample's layer norm; then those of a channel's batch norm, over this
/// rank's samples, with the gradients of gamma and beta and what the channel adds to those of the logits.
struct SwitchedShares {
  SwitchedFrames frames{};
  Parameter gamma{.otherwise = 1};
  const double *sum_g = nullptr, *sum_gx = nullptr;  // (N * C) of this rank
  TermArrays terms{}, layers{}, batches{};           // (N * C), (N), (C)
  bool live = false;
  ParameterGrad dgamma{}, dbeta{};
  double* logits = nullptr;  // (6, C)

  ALLNORM_HOST_DEVICE void operator()(std::int64_t g) const {
    if (g < frames.samples)
      of_sample(g);
    else
      of_channel(g - frames.samples);
  }

 private:
  ALLNORM_HOST_DEVICE void of_sample(std::int64_t n) const {
    const auto& [of_mean, of_var] = frames.scalars->weights;
    formulas::MomentTerms sample;
    for (std::int64_t i = n * frames.channels; i < (n + 1) * frames.channels; ++i)
      sample.add(terms[i].times(of_mean, of_var, &formulas::Mixture::layer));
    layers.set(n, sample);
  }
  ALLNORM_HOST_DEVICE void of_channel(std::int64_t c) const {
    const formulas::SwitchWeights& weights = frames.scalars->weights;
    const double own_gamma = gamma[c];
    formulas::MomentTerms batch;
    formulas::LogitTerms share;
    double to_gamma = 0, to_beta = 0;
    for (std::int64_t i = c; i < frames.sets() && frames.scalars->count > 0; i += frames.channels) {
      const auto frame = frames[i];
      if (live) batch.add(terms[i].times(weights.mean, weights.var, &formulas::Mixture::batch));
      to_gamma += formulas::gamma_grad(frame.rstd, {}, sum_g[i], sum_gx[i]);
      to_beta += sum_g[i];
      share.add(weights, frame, formulas::switched_terms(frame, own_gamma, sum_g[i], sum_gx[i]));
    }
    batches.set(c, batch);
    dgamma.set(c, to_gamma);
    dbeta.set(c, to_beta);
    for (int k = 0; k < 3; ++k) {
      logits[k * frames.channels + c] = share.mean[k];
      logits[(3 + k) * frames.channels + c] = share.var[k];
    }
  }
};

/// For each of the six logits: its gradient.
struct SwitchedLogits {
  static constexpr std::int64_t count = 6;
  std::int64_t channels = 0;
  const double* shares = nullptr;  // (6, C)
  ParameterGrad dmean{}, dvar{};   // (3)

  ALLNORM_HOST_DEVICE void operator()(std::int64_t k) const {
    double sum = 0;
    for (std::int64_t c = 0; c < channels; ++c) sum += shares[k * channels + c];
    if (k < 3)
      dmean.set(k, sum);
    else
      dvar.set(k - 3, sum);
  }
};

/// For every set: the coefficients of dx, NaN where the ranks disagree.
struct SwitchedInput {
  SwitchedFrames frames{};
  Parameter gamma{.otherwise = 1};
  TermArrays terms{}, layers{}, batches{};  // (N * C), (N), (C); of batches over the ranks
  bool live = false, unbiased = false;
  const std::uint64_t* fails = nullptr;  // null for a lone rank
  GradArrays made{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    const SwitchedScalars& call = *frames.scalars;
    const std::int64_t n = i / frames.channels, c = i % frames.channels;
    const double of_layer = 1 / static_cast<double>(frames.channels),
                 of_batch = live ? call.count / call.batch_count : 0;
    auto k = formulas::switched_grad(call.weights, frames[i], gamma[c], call.count, unbiased, terms[i],
                                     {layers[n], of_layer}, {batches[c], of_batch});
    if (fails != nullptr && *fails != 0) k.gain = k.slope = k.offset = std::numeric_limits<double>::quiet_NaN();
    made.set(i, k);
  }
};

}  // namespace allnorm::steps
