// A layer's state between calls, as plain arrays in the memory of its device: what kernels read and write.
#pragma once

#ifdef __CUDA_ARCH__
#include <cuda_fp16.h>
#endif

#include <cstdint>

#include "allnorm/dtype.hpp"
#include "allnorm/options.hpp"
#include "kernels/formulas.hpp"

namespace allnorm {

/// The conversions of dtype.hpp where device code needs them too.
ALLNORM_HOST_DEVICE inline float widened(f16 value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  return to_float(value);
#endif
}
ALLNORM_HOST_DEVICE inline f16 narrowed(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  return to_f16(value);
#endif
}

/// A parameter, or one value for all where it is not given.
struct Parameter {
  const void* data = nullptr;
  DType dtype = DType::f32;
  double otherwise = 0;
  double added = 0;  ///< to each that is given

  ALLNORM_HOST_DEVICE bool given() const { return data != nullptr; }
  ALLNORM_HOST_DEVICE double operator[](std::int64_t i) const { return given() ? with_added(stored(i)) : otherwise; }
  /// With nothing to be added, the value itself: a 0 keeps its sign.
  template <class C>
  ALLNORM_HOST_DEVICE C with_added(C value) const {
    return added == 0 ? value : value + static_cast<C>(added);
  }

 private:
  ALLNORM_HOST_DEVICE double stored(std::int64_t i) const {
    if (dtype == DType::f64) return static_cast<const double*>(data)[i];
    if (dtype == DType::f32) return static_cast<double>(static_cast<const float*>(data)[i]);
    return static_cast<double>(dtype == DType::f16 ? widened(static_cast<const f16*>(data)[i])
                                                   : to_float(static_cast<const bf16*>(data)[i]));
  }
};

/// A gradient of a parameter; written only where it is asked for.
struct ParameterGrad {
  void* data = nullptr;
  DType dtype = DType::f32;

  ALLNORM_HOST_DEVICE void set(std::int64_t i, double value) const {
    if (data == nullptr) return;
    if (dtype == DType::f64)
      static_cast<double*>(data)[i] = value;
    else if (dtype == DType::f32)
      static_cast<float*>(data)[i] = static_cast<float>(value);
    else if (dtype == DType::f16)
      static_cast<f16*>(data)[i] = narrowed(static_cast<float>(value));
    else
      static_cast<bf16*>(data)[i] = to_bf16(static_cast<float>(value));
  }
};

/// A Ramp in the device's memory.
struct RampView {
  const RampPoint* points = nullptr;  // (count), ascending
  std::int64_t count = 0;
};

/// A layer's options as kernels get them.
struct Rules : PlainOptions {
  RampView r_max_ramp{}, d_max_ramp{};
  bool centred = true;    // false: the row's moments are about 0
  bool scaled = true;     // false: the deviation counts as 1
  bool persists = false;  // running statistics are kept; in the batch_norm family also a history
  bool pools = false;     // they are averages over the samples of those of each sample and channel

  ALLNORM_HOST_DEVICE bool takes_moments() const { return centred || scaled; }  // otherwise nothing of x is summed
};

/// What counts calls.
struct Counters {
  std::int64_t calls = 0;        // training calls: the call number of messages
  std::int64_t counted = 0;      // of them with values: what renorm's ramps count
  std::int64_t tracked = 0;      // updates of the running statistics
  std::int64_t batches = 0;      // complete and not empty
  std::int64_t done = 0;         // mini-batches of the current batch, empty ones included
  double weight = 0;             // sum of their weights
  double count = 0;              // sum of their numbers of values
  std::int64_t candidate = 0;    // 1: the batch has values for the running statistics
  std::int64_t derivatives = 0;  // 1: the batch has derivatives, in the window's open slot
  std::int64_t entries = 0;      // past iterations in the window
  std::int64_t newest = 0;       // slot of the newest one; the slot after it is open
};

/// What one call does to the state; made once per call from the counters before it (steps.hpp).
struct Turn {
  std::int64_t call = 0;
  double count = 0;      // values per channel of this call, over all ranks
  double own_count = 0;  // values behind the statistics before the window
  double batch_weight = 0, batch_count = 0;
  double f = 0;  // weight of this call in the batch so far
  double momentum = 0, r_max = 0, d_max = 0;
  std::int64_t entries = 0;                // past iterations that this call reads
  std::int64_t slot = 0;                   // the open one
  bool counts = false;                     // the call has values
  bool advances = false;                   // more than the call number changes
  bool accumulates = false;                // normalizes with the batch so far
  bool averages = false;                   // normalizes with the window
  bool from_window = false;                // so do the running statistics
  bool closes = false, completes = false;  // the batch ends; and was not empty
  bool enters = false;                     // it becomes an entry of the window
  bool moves = false;                      // the running statistics move
  bool derives = false;                    // derivatives of this call are kept
  bool starts = false;                     // ... as the batch's first
  bool fails = false;                      // the ranks disagree: nothing may change
};

/// Groups of a call whose moments over all ranks are not finite.
struct Hits {
  std::uint64_t ranks = 0;   // whose own are not, as far as is known; see rank_bit()
  std::uint64_t groups = 0;  // how many
  std::uint64_t first = ~std::uint64_t{0};
};
/// What a layer's calls have met of them, in memory that the host reads at any time.
struct HitsMet {
  std::int64_t calls = 0;  // that had some
  std::int64_t call = 0;   // the number of the last one
  Hits last{};
};

/// The window of Cross-Iteration BN: `slots` = window iterations, one of them open for the current batch.
struct Ring {
  double* count = nullptr;   // (slots)
  double* mean = nullptr;    // (slots, C)
  double* var = nullptr;     // (slots, C)
  double* center = nullptr;  // (C) the fixed point of the open slot's second derivative
  void* dmean = nullptr;     // (slots, mean_rows, fan_in), f32 or f64
  void* dvar = nullptr;    // (slots, C, fan_in) of the centred variance; in the open slot of the mean of (x - center)^2
  void* weight = nullptr;  // (slots, C, fan_in)
  double* past = nullptr;  // (slots - 1, 4, C) of the last call: stale mean and var, compensated mean and var
  bool wide = false;       // the arrays of derivatives are f64
  std::int64_t slots = 0, mean_rows = 0, fan_in = 0;

  /// Of the entry j, 0 the newest.
  ALLNORM_HOST_DEVICE std::int64_t slot(const Counters& c, std::int64_t j) const {
    return (c.newest - j + slots) % slots;
  }
  ALLNORM_HOST_DEVICE std::int64_t mean_row(std::int64_t channel, std::int64_t channels) const {
    return channel * mean_rows / channels;
  }
};

/// Everything small is kept twice: a call reads one copy and writes the other, and `parity` says which is which; it
/// advances when the call is done, so that a call that fails changes nothing.
struct LayerState {
  enum Field : int {
    running_mean,
    running_spread,
    batch_mean,
    batch_var,
    candidate_mean,
    candidate_var,
    candidate_biased,
    fields_with_history
  };
  static constexpr int fields_without_history = 2;

  Counters* counters = nullptr;     // (2)
  double* values = nullptr;         // (2, fields, C)
  std::uint32_t* parity = nullptr;  // (1) parity: the current copy
  Turn* last = nullptr;             // (1) what the last call did
  Hits* hits = nullptr;             // (1) of the call under way; null: nobody asks
  HitsMet* met = nullptr;           // (1)
  std::int64_t channels = 0, fields = 0;
  Ring ring{};

  ALLNORM_HOST_DEVICE const Counters& now() const { return counters[*parity & 1]; }
  ALLNORM_HOST_DEVICE Counters& next() const { return counters[~*parity & 1]; }
  /// (C) of the current copy, of the next one.
  ALLNORM_HOST_DEVICE double* now(Field f) const { return values + ((*parity & 1) * fields + f) * channels; }
  ALLNORM_HOST_DEVICE double* next(Field f) const { return values + ((~*parity & 1) * fields + f) * channels; }
  ALLNORM_HOST_DEVICE bool has_history() const { return fields > fields_without_history; }
};

}  // namespace allnorm
