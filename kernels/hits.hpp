// Values that are not finite: a call's groups that have some, noted as the groups are done, and what follows at its
// end.
#pragma once

#include <cstdint>

#include "allnorm/options.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm::steps {

/// Before the groups of a call, where an earlier one may have thrown among its own.
inline void forget_hits(const LayerState& state) {
  if (state.hits != nullptr) *state.hits = {};
}

/// Notes that group g has them: from threads of a grid at once, or from one at a time.
ALLNORM_HOST_DEVICE inline void note_hit(const LayerState& state, std::int64_t g, std::uint64_t ranks) {
  if (state.hits == nullptr) return;
  Hits& hits = *state.hits;
#ifdef __CUDA_ARCH__
  using Word = unsigned long long;
  atomicOr(reinterpret_cast<Word*>(&hits.ranks), static_cast<Word>(ranks));
  atomicAdd(reinterpret_cast<Word*>(&hits.groups), Word{1});
  atomicMin(reinterpret_cast<Word*>(&hits.first), static_cast<Word>(g));
#else
  hits.ranks |= ranks;
  ++hits.groups;
  if (static_cast<std::uint64_t>(g) < hits.first) hits.first = static_cast<std::uint64_t>(g);
#endif
}

/// Whether the call under way must not change the state for what was noted.
ALLNORM_HOST_DEVICE inline bool keeps_state(const Rules& rules, const LayerState& state) {
  return rules.nonfinite != NonFinite::propagate && state.hits != nullptr && state.hits->groups != 0;
}

/// When all groups of a call are done: what was noted is told, and `turn` is what it does to the state then. By one
/// thread.
ALLNORM_HOST_DEVICE inline Turn settle(const Rules& rules, const LayerState& state, const Turn& turn) {
  if (state.hits == nullptr || state.hits->groups == 0) return turn;
  Turn settled = turn;
  if (keeps_state(rules, state)) {
    settled = {};
    settled.call = turn.call;
    settled.count = turn.count;
    settled.fails = true;
  }
  state.met->last = *state.hits;
  state.met->call = turn.call;
#ifdef __CUDA_ARCH__
  __threadfence_system();  // the host reads the rest once it sees that there is one call more
#endif
  ++state.met->calls;
  *state.hits = Hits{};
  return settled;
}

}  // namespace allnorm::steps
