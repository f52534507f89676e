// A layer's state where its caller keeps it, and a call's own copy of what is small of it; host and device.
#pragma once

#include <cstdint>

#include "kernels/layer_state.hpp"

namespace allnorm::steps {

/// What a caller keeps: running statistics, and of a layer with a history its counters and the batch so far. The window
/// stays where it is: its open slot counts when the counters say so.
struct Kept {
  Parameter mean{}, spread{.otherwise = 1};  // (C), of a fresh layer where they are not given
  ParameterGrad next_mean{}, next_spread{};  // (C)
  std::int64_t* tracked = nullptr;           // (1)
  Counters* counters = nullptr;              // (1)
  double* batch = nullptr;                   // (fields from batch_mean on, C)
};

/// Before a call: index 0 takes what there is once, those after it a channel each.
struct TakeState {
  Kept kept{};
  LayerState call{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    if (i == 0) return take_counters();
    using S = LayerState;
    const std::int64_t c = i - 1, C = call.channels;
    call.values[S::running_mean * C + c] = kept.mean[c];
    call.values[S::running_spread * C + c] = kept.spread[c];
    for (std::int64_t f = S::fields_without_history; f < call.fields; ++f)
      call.values[f * C + c] = kept.batch[(f - S::fields_without_history) * C + c];
  }

 private:
  ALLNORM_HOST_DEVICE void take_counters() const {
    Counters& now = call.counters[0];
    now = kept.counters != nullptr ? *kept.counters : Counters{};
    if (kept.tracked != nullptr) now.tracked = *kept.tracked;
    if (kept.counters == nullptr) now.calls = now.counted = now.tracked;  // without a history they count the same
    *call.parity = 0;
    *call.last = Turn{};
    if (call.hits != nullptr) *call.hits = Hits{};
    if (call.met != nullptr) *call.met = HitsMet{};
  }
};

/// After it: the same back. A call that failed has changed nothing.
struct GiveState {
  LayerState call{};
  Kept kept{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    if (i == 0) {
      if (kept.counters != nullptr) *kept.counters = call.now();
      if (kept.tracked != nullptr) *kept.tracked = call.now().tracked;
      return;
    }
    using S = LayerState;
    const std::int64_t c = i - 1, C = call.channels;
    kept.next_mean.set(c, call.now(S::running_mean)[c]);
    kept.next_spread.set(c, call.now(S::running_spread)[c]);
    for (std::int64_t f = S::fields_without_history; f < call.fields; ++f)
      kept.batch[(f - S::fields_without_history) * C + c] = call.now(static_cast<S::Field>(f))[c];
  }
};

}  // namespace allnorm::steps
