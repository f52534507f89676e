// The steps between kernels, once for every backend: exchange -> history -> correction -> coefficients, for one group
// (a channel of BN) at a time. The CPU loops over groups, a GPU gives each a thread. Formulas are formulas.hpp's.
#pragma once

#include <cmath>
#include <cstdint>

#include "allnorm/message.hpp"
#include "allnorm/partition.hpp"
#include "allnorm/record.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm::steps {

// ---- the message ---------------------------------------------------------------------------------------------------

/// Payload: this rank's values per group, their means (G), their sums of squares about the means (G); these are merged.
/// Then what is added: for each entry of the window <dmean, change of weights> (C) and <dvar, change of weights> (C).
struct Layout {
  std::int64_t groups = 0;
  ALLNORM_HOST_DEVICE std::int64_t mean(std::int64_t g) const { return 1 + g; }
  ALLNORM_HOST_DEVICE std::int64_t m2(std::int64_t g) const { return 1 + groups + g; }
  ALLNORM_HOST_DEVICE std::int64_t dmean(std::int64_t entry, std::int64_t g) const {
    return 1 + 2 * groups + 2 * entry * groups + g;
  }
  ALLNORM_HOST_DEVICE std::int64_t dvar(std::int64_t entry, std::int64_t g) const { return dmean(entry, g) + groups; }
  ALLNORM_HOST_DEVICE std::int64_t size(std::int64_t entries) const { return 1 + 2 * groups + 2 * entries * groups; }
};

ALLNORM_HOST_DEVICE inline double* payload_of(std::byte* record) {
  return reinterpret_cast<double*>(record + sizeof(RecordHead));
}
ALLNORM_HOST_DEVICE inline const double* payload_of(const std::byte* record) {
  return reinterpret_cast<const double*>(record + sizeof(RecordHead));
}

ALLNORM_HOST_DEVICE inline const double* payload_of(const Gathered& g, int rank) {
  return payload_of(g.records + static_cast<std::int64_t>(rank) * static_cast<std::int64_t>(g.stride));
}

/// The sum of the ranks' payloads at i, in rank order.
ALLNORM_HOST_DEVICE inline double summed(const Gathered& g, std::int64_t i) {
  if (g.sums != nullptr) return g.sums[i];
  double sum = 0;
  for (int rank = 0; rank < g.ranks; ++rank) sum += payload_of(g, rank)[i];
  return sum;
}

/// Values per group over all ranks, of a forward call; infinite where they are too many.
ALLNORM_HOST_DEVICE inline double count_of(const Gathered& g) {
  if (g.sums != nullptr) return formulas::counted(0, g.sums[0]);
  double count = 0;
  for (int rank = 0; rank < g.ranks; ++rank) count = formulas::counted(count, payload_of(g, rank)[0]);
  return count;
}

/// A ramp's value at `call`; `constant` for an empty ramp.
ALLNORM_HOST_DEVICE inline double ramp_value(const RampView& ramp, std::int64_t call, double constant) {
  if (ramp.count == 0) return constant;
  const auto* p = ramp.points;
  if (call <= p[0].call) return p[0].value;
  for (std::int64_t i = 1; i < ramp.count; ++i)
    if (call <= p[i].call)
      return p[i - 1].value + (p[i].value - p[i - 1].value) * static_cast<double>(call - p[i - 1].call) /
                                  static_cast<double>(p[i].call - p[i - 1].call);
  return p[ramp.count - 1].value;
}

/// Parts of the three hashes of what the ranks of a group hold alike.
struct Hashes {
  std::uint64_t running = 0, history = 0;
  ALLNORM_HOST_DEVICE void add(const Hashes& other) {
    running += other.running;
    history += other.history;
  }
};

/// Channel c's part.
ALLNORM_HOST_DEVICE inline Hashes hashes_of(const LayerState& state, std::int64_t c) {
  const std::int64_t C = state.channels;
  const auto part = [&](LayerState::Field f) {
    return hash_part(state.now(f)[c], static_cast<std::uint64_t>(f * C + c));
  };
  Hashes h;
  h.running = part(LayerState::running_mean) + part(LayerState::running_spread);
  if (!state.has_history()) return h;
  const Counters& now = state.now();
  if (now.done > 0) h.history = part(LayerState::batch_mean) + part(LayerState::batch_var);
  if (now.candidate != 0) h.history += part(LayerState::candidate_mean) + part(LayerState::candidate_var);
  for (std::int64_t j = 0; j < now.entries; ++j) {
    const std::int64_t at = state.ring.slot(now, j) * C + c;
    const auto position = static_cast<std::uint64_t>((LayerState::fields_with_history + 2 * j) * C + c);
    h.history += hash_part(state.ring.mean[at], position) +
                 hash_part(state.ring.var[at], position + static_cast<std::uint64_t>(C));
  }
  return h;
}

/// The counters' part.
ALLNORM_HOST_DEVICE inline Hashes hashes_of(const LayerState& state) {
  Hashes h;
  if (!state.has_history()) return h;
  const Counters& now = state.now();
  const std::uint64_t position = std::uint64_t{1} << 62;  // beyond the channels'
  h.history = hash_part(static_cast<std::uint64_t>(now.batches), position) + hash_part(now.weight, position + 1) +
              hash_part(now.count, position + 2);
  for (std::int64_t j = 0; j < now.entries; ++j)
    h.history += hash_part(state.ring.count[state.ring.slot(now, j)], position + 3 + static_cast<std::uint64_t>(j));
  return h;
}

/// Completes a forward header with what the counters say and the hashes of the whole state.
ALLNORM_HOST_DEVICE inline void write_header(const Rules& rules, const LayerState& state, const Hashes& hashes,
                                             Header& header) {
  const Counters& now = state.now();
  header.set(Field::call, static_cast<std::uint64_t>(now.calls));
  if (!rules.persists) return;
  header.set(Field::r_max, ramp_value(rules.r_max_ramp, now.counted, rules.r_max));
  header.set(Field::d_max, ramp_value(rules.d_max_ramp, now.counted, rules.d_max));
  header.set(Field::minibatch, static_cast<std::uint64_t>(now.done));
  header.set(Field::entries, static_cast<std::uint64_t>(now.batches < rules.burn_in ? 0 : now.entries));
  header.set(Field::history_hash, hashes.history);
  header.set(Field::running_hash, hashes.running);
}

/// True where two heads of one exchange agree.
ALLNORM_HOST_DEVICE inline bool agree(const RecordHead& a, const RecordHead& b) {
  const auto* left = reinterpret_cast<const std::uint64_t*>(&a.header);
  const auto* right = reinterpret_cast<const std::uint64_t*>(&b.header);
  bool same = a.count == b.count;
  for (unsigned i = 0; i < sizeof(Header) / sizeof(std::uint64_t); ++i) same &= left[i] == right[i];
  return same;
}

// ---- one call ------------------------------------------------------------------------------------------------------

/// What a training call with `count` values per group does: it fails where these, or those of the batch, are too many
/// to be counted. `derives`: it brings the derivatives' source.
ALLNORM_HOST_DEVICE inline Turn turn_of(const Rules& rules, const Counters& now, double count, bool derives) {
  Turn t;
  t.call = now.calls;
  t.count = t.own_count = count;
  t.counts = count > 0;
  if (rules.persists) t.batch_count = formulas::counted(now.count, count);
  if (!(count <= formulas::most_values && t.batch_count <= formulas::most_values)) {
    t.count = std::numeric_limits<double>::infinity();
    t.fails = true;
    return t;
  }
  if (!rules.persists) return t;
  const bool burn_in = now.batches < rules.burn_in;
  const bool fills = rules.window > 1 && (!burn_in || rules.fill_in_burn_in);
  const double weight = !t.counts ? 0 : rules.weighting == Weighting::count ? count : 1;
  t.advances = t.counts || rules.minibatches > 1;
  t.batch_weight = now.weight + weight;
  t.f = t.batch_weight > 0 ? weight / t.batch_weight : 0;
  t.accumulates = rules.minibatches > 1 && !burn_in;
  if (t.accumulates) t.own_count = t.batch_count;
  t.entries = burn_in ? 0 : now.entries;
  t.averages = t.entries > 0 && t.own_count > 0;
  t.from_window = t.averages && rules.running_source == RunningSource::window;
  t.closes = now.done + 1 >= rules.minibatches;
  t.completes = t.closes && t.batch_weight > 0;
  t.derives = derives && t.counts && fills;
  t.starts = t.derives && now.derivatives == 0;
  t.enters = t.completes && fills && (!rules.compensates() || now.derivatives != 0 || t.derives);
  t.slot = rules.window > 1 ? (now.newest + 1) % rules.window : 0;
  t.moves = rules.running == RunningUpdate::every ? t.counts : t.completes;
  t.momentum = rules.cumulative ? 1.0 / static_cast<double>(now.tracked + 1) : rules.momentum;
  t.r_max = ramp_value(rules.r_max_ramp, now.counted, rules.r_max);
  t.d_max = ramp_value(rules.d_max_ramp, now.counted, rules.d_max);
  return t;
}

/// What ends the current batch before its last mini-batch came.
ALLNORM_HOST_DEVICE inline Turn cut_short(const Rules& rules, const Counters& now) {
  Turn t;
  const bool burn_in = now.batches < rules.burn_in;
  t.call = now.calls;
  t.advances = t.closes = now.done > 0;
  t.batch_weight = now.weight;
  t.batch_count = now.count;
  t.completes = t.closes && now.weight > 0;
  t.enters = t.completes && rules.window > 1 && (!burn_in || rules.fill_in_burn_in) &&
             (!rules.compensates() || now.derivatives != 0);
  t.slot = rules.window > 1 ? (now.newest + 1) % rules.window : 0;
  t.moves = rules.running == RunningUpdate::last && t.completes && now.candidate != 0;
  t.momentum = rules.cumulative ? 1.0 / static_cast<double>(now.tracked + 1) : rules.momentum;
  return t;
}

/// The counters after it; `is_call`: a call and not a cut.
ALLNORM_HOST_DEVICE inline Counters advanced(const Rules& rules, Counters c, const Turn& t, bool is_call = true) {
  if (t.fails) return c;
  c.calls += is_call;
  if (!t.advances) return c;
  c.counted += t.counts;
  c.tracked += t.moves;
  if (!t.closes) {
    ++c.done;
    c.weight = t.batch_weight;
    c.count = t.batch_count;
    if (t.counts) c.candidate = 1;
    if (t.derives) c.derivatives = 1;
    return c;
  }
  c.done = c.candidate = c.derivatives = 0;
  c.weight = c.count = 0;
  c.batches += t.completes;
  if (t.enters) {
    c.newest = t.slot;
    if (c.entries < rules.window - 1) ++c.entries;
  }
  return c;
}

/// The last step of a call, after which nothing can fail: what it wrote becomes the state.
inline void advance(const Rules& rules, const LayerState& state, const Turn& turn, bool is_call) {
  *state.last = turn;
  if (turn.fails) return;
  state.next() = advanced(rules, state.now(), turn, is_call);
  ++*state.parity;
}

// ---- one group -----------------------------------------------------------------------------------------------------

/// What a call normalizes a group with.
struct GroupFrame {
  double mean = 0, var = 0, rstd = 0, share = 0;
  formulas::Correction correction{};
};

/// What values of this variance are divided by.
ALLNORM_HOST_DEVICE inline double sigma_of(const Rules& rules, double var, double learned_eps = 0) {
  return rules.scaled ? formulas::sigma(rules, var, learned_eps) : 1;
}

/// running_spread as sigma.
ALLNORM_HOST_DEVICE inline double running_sigma(const Rules& rules, double spread) {
  return rules.keeps_std() ? spread : sigma_of(rules, spread);
}

/// This call's moments of a group.
ALLNORM_HOST_DEVICE inline formulas::Moments moments_of(double count, double mean, double m2) {
  return count > 0 ? formulas::Moments{mean, m2 / count} : formulas::Moments{};
}
/// Those of group g over all ranks, merged in rank order.
ALLNORM_HOST_DEVICE inline formulas::Moments moments_of(const Gathered& gathered, const Layout& layout,
                                                        std::int64_t g) {
  const double* const sums = gathered.sums;
  if (sums != nullptr) return moments_of(sums[0], sums[layout.mean(g)], sums[layout.m2(g)]);
  double count = 0, mean = 0, m2 = 0;
  for (int rank = 0; rank < gathered.ranks; ++rank) {
    const double* const part = payload_of(gathered, rank);
    const formulas::Merge merge(count, part[0]);
    if (merge.skips()) continue;
    const double d = part[layout.mean(g)] - mean;
    m2 = merge.products(m2, part[layout.m2(g)], d, d);
    mean = merge.mean(mean, part[layout.mean(g)]);
    count = merge.count;
  }
  return moments_of(count, mean, m2);
}

/// The next state of a channel's running statistics, batch and open slot. `batch`: the batch with this call,
/// `running`: what the running statistics take where they move, biased and with Bessel's factor. What is not finite
/// leaves the running statistics as they are, and is kept as NaN in a batch and a window, so that no later call uses
/// it.
struct RunningValues {
  double mean = 0, var = 0, biased = 0;
};
ALLNORM_PER_GROUP void write_next(const Rules& rules, const LayerState& state, const Turn& t, std::int64_t c,
                                  formulas::Moments batch, RunningValues running) {
  using S = LayerState;
  const auto keep = [&](S::Field f) { state.next(f)[c] = state.now(f)[c]; };
  const bool usable = formulas::usable({running.mean, running.var}) && std::isfinite(running.biased);
  if (t.moves && !t.fails && usable) {
    const double spread = rules.keeps_std() ? formulas::sigma(rules, running.biased) : running.var;
    state.next(S::running_mean)[c] = formulas::move(state.now(S::running_mean)[c], running.mean, t.momentum);
    state.next(S::running_spread)[c] = formulas::move(state.now(S::running_spread)[c], spread, t.momentum);
  } else {
    keep(S::running_mean);
    keep(S::running_spread);
  }
  if (!state.has_history()) return;
  if (!t.advances || t.fails) {
    for (const auto f : {S::batch_mean, S::batch_var, S::candidate_mean, S::candidate_var, S::candidate_biased})
      keep(f);
    return;
  }
  const bool goes_on = !t.closes;
  batch = formulas::kept(batch);
  if (!usable) running = {formulas::not_usable, formulas::not_usable, formulas::not_usable};
  state.next(S::batch_mean)[c] = goes_on ? batch.mean : 0;
  state.next(S::batch_var)[c] = goes_on ? batch.var : 0;
  state.next(S::candidate_mean)[c] = goes_on ? running.mean : 0;
  state.next(S::candidate_var)[c] = goes_on ? running.var : 0;
  state.next(S::candidate_biased)[c] = goes_on ? running.biased : 0;
  if (!t.enters) return;  // the open slot shows when the counters advance
  state.ring.mean[t.slot * state.channels + c] = batch.mean;
  state.ring.var[t.slot * state.channels + c] = batch.var;
  if (c == 0) state.ring.count[t.slot] = t.batch_count;
}

/// History and correction of group g with this call's moments. product(entry, of_variance): the summed products of the
/// window, 0 without compensation. `commits`: writes the group's next state too (one thread per group does). A learned
/// eps is of layers that keep no state.
template <class Product>
ALLNORM_PER_GROUP GroupFrame frame_of(const Rules& rules, const LayerState& state, const Turn& t, std::int64_t g,
                                      formulas::Moments current, const Product& product, bool commits,
                                      double learned_eps = 0) {
  using S = LayerState;
  if (!rules.scaled) current.var = 0;  // squares need not be in range
  GroupFrame frame{current.mean, current.var, 0, 1, {}};
  if (!rules.persists || rules.pools) {
    auto used = rules.centred ? current : formulas::about_zero(current);
    used.var = formulas::estimate(rules, used.var, t.count);
    return {used.mean, used.var, 1 / sigma_of(rules, used.var, learned_eps), 1, {}};
  }
  // CmBN: the batch so far
  formulas::Moments batch = current;
  if (state.has_history() && t.advances) {
    batch = formulas::accumulate({state.now(S::batch_mean)[g], state.now(S::batch_var)[g]}, current, t.f);
    if (t.accumulates) frame = {batch.mean, batch.var, 0, t.f, {}};
  }
  // Cross-Iteration BN: the window
  double window_count = t.own_count;
  if (t.averages) {
    const Counters& now = state.now();
    const std::int64_t C = state.channels;
    const auto past = [&](int j) {
      const std::int64_t at = state.ring.slot(now, j) * C + g;
      return formulas::compensate({state.ring.mean[at], state.ring.var[at]}, product(j, false), product(j, true));
    };
    const auto average =
        formulas::window({frame.mean, frame.var}, t.own_count, static_cast<int>(t.entries), rules.guard, past,
                         [&](int j) { return state.ring.count[state.ring.slot(now, j)]; });
    frame.mean = average.moments.mean;
    frame.var = average.moments.var;
    frame.share *= average.share;
    window_count = average.count;
    for (int j = 0; commits && j < t.entries; ++j) {
      double* report = state.ring.past + 4 * j * C + g;
      const std::int64_t at = state.ring.slot(now, j) * C + g;
      const auto moved = past(j);
      report[0 * C] = state.ring.mean[at];
      report[1 * C] = state.ring.var[at];
      report[2 * C] = moved.mean;
      report[3 * C] = moved.var;
    }
  }
  // without any value there is nothing to scale, and eps may be 0
  const double sigma = sigma_of(rules, frame.var);
  if (t.own_count > 0) frame.rstd = 1 / sigma;
  if (rules.renorm && t.own_count > 0)
    frame.correction = formulas::renorm(frame.mean, sigma, state.now(S::running_mean)[g],
                                        running_sigma(rules, state.now(S::running_spread)[g]), t.r_max, t.d_max);
  if (!commits) return frame;

  RunningValues running;
  if (t.counts) {
    const formulas::Moments source = t.from_window ? formulas::Moments{frame.mean, frame.var} : batch;
    running = {source.mean, source.var, source.var};
    if (rules.unbiased_running_var) running.var *= formulas::bessel(t.from_window ? window_count : t.batch_count);
  } else if (state.has_history()) {
    running = {state.now(S::candidate_mean)[g], state.now(S::candidate_var)[g], state.now(S::candidate_biased)[g]};
  }
  write_next(rules, state, t, g, batch, running);
  if (t.starts && !t.fails) state.ring.center[g] = formulas::kept(current).mean;
  return frame;
}

/// Channel c's share of a batch that is cut short.
ALLNORM_HOST_DEVICE inline void cut_channel(const Rules& rules, const LayerState& state, const Turn& t,
                                            std::int64_t c) {
  using S = LayerState;
  write_next(rules, state, t, c, {state.now(S::batch_mean)[c], state.now(S::batch_var)[c]},
             {state.now(S::candidate_mean)[c], state.now(S::candidate_var)[c], state.now(S::candidate_biased)[c]});
}

/// Of a row that takes no moments.
ALLNORM_HOST_DEVICE inline GroupFrame unit_frame() { return {0, 0, 1, 0, {}}; }

/// Inference: the running statistics of channel c.
ALLNORM_HOST_DEVICE inline GroupFrame running_frame(const Rules& rules, const LayerState& state, std::int64_t c) {
  const double spread = state.now(LayerState::running_spread)[c], sigma = running_sigma(rules, spread);
  return {state.now(LayerState::running_mean)[c],
          rules.keeps_std() ? formulas::variance(rules, sigma) : spread,
          1 / sigma,
          0,
          {}};
}

// ---- the frame in memory -------------------------------------------------------------------------------------------

/// What does not depend on the group.
struct FrameScalars {
  double count = 0;       // values per group of the call, over all ranks
  std::int64_t call = 0;  // its number
};

/// A frame's arrays; r and d only with renorm, sigma only where it is an output.
struct FrameView {
  double *mean = nullptr, *var = nullptr, *rstd = nullptr, *r = nullptr, *d = nullptr, *share = nullptr;  // (G) each
  FrameScalars* scalars = nullptr;
  double* sigma = nullptr;  // (G)

  ALLNORM_HOST_DEVICE void set(std::int64_t g, const GroupFrame& frame) const {
    mean[g] = frame.mean;
    var[g] = frame.var;
    rstd[g] = frame.rstd;
    share[g] = frame.share;
    if (sigma != nullptr) sigma[g] = 1 / frame.rstd;
    if (r == nullptr) return;
    r[g] = frame.correction.r;
    d[g] = frame.correction.d;
  }
  ALLNORM_HOST_DEVICE GroupFrame get(std::int64_t g) const {
    return {mean[g], var[g], rstd[g], share[g],
            r == nullptr ? formulas::Correction{} : formulas::Correction{r[g], d[g]}};
  }
};

// ---- backward ------------------------------------------------------------------------------------------------------

/// What fine group f adds to the sums of its norm's group and to its gamma's and beta's gradients.
struct GradTerms {
  double s1 = 0, s2 = 0;  // gamma * r * sum of g, of g * (x - mean)
  double dgamma = 0, dbeta = 0;
};
ALLNORM_HOST_DEVICE inline GradTerms grad_terms(const GroupFrame& frame, double gamma, double sum_g, double sum_gx) {
  const double scale = gamma * frame.correction.r;
  return {scale * sum_g, scale * sum_gx, formulas::gamma_grad(frame.rstd, frame.correction, sum_g, sum_gx), sum_g};
}

}  // namespace allnorm::steps
