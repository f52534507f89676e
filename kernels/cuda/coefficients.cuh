// The affine map, the activation and its gate, and the coefficients of one group, each in one place: forward and
// backward must agree on the sign of z to the last bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/vectors.cuh"
#include "kernels/ops.hpp"

namespace allnorm::cuda {

/// The coefficients of (x - center) * scale + shift as the kernels compute it: center and scale rounded to C, and a
/// shift that takes back what rounding the center did.
template <class C>
struct Affine {
  C center, scale, shift;
};
template <class C>
__device__ __forceinline__ Affine<C> affine(double center, double scale, double shift) {
  const C c = static_cast<C>(center);
  return {c, static_cast<C>(scale), static_cast<C>(std::fma(scale, static_cast<double>(c) - center, shift))};
}
/// z from the centred x.
template <class C>
__device__ __forceinline__ C affine_of(C centred, C scale, C shift) {
  return std::fma(centred, scale, shift);
}

/// What an activation does to z <= 0, and its gradient to dy there: times slope for leaky_relu, exactly 0 for relu,
/// even where the factor is infinite, and nothing for identity (times 1). NaN counts as above 0, so it passes.
template <class C>
struct Below {
  C slope;
  bool zero;

  explicit Below(const Activation& activation)
      : slope(activation.kind == ActivationKind::leaky_relu ? static_cast<C>(activation.slope) : C{1}),
        zero(activation.kind == ActivationKind::relu) {}
  __device__ __forceinline__ C times_slope(C value) const { return zero ? C{0} : value * slope; }
  __device__ __forceinline__ C activate(C z) const { return z <= 0 ? times_slope(z) : z; }
};

/// Where backward's gate comes from; identity needs none.
enum class GateKind : std::uint8_t { open, sign, mask };
inline GateKind kind_of(const Activation& activation, const std::uint8_t* mask) noexcept {
  if (activation.kind == ActivationKind::identity) return GateKind::open;
  return mask != nullptr ? GateKind::mask : GateKind::sign;
}

/// The gate of backward; what it needs of the group are its scale and shift.
template <class C>
struct Gating {
  GateKind kind;
  Below<C> below;
  const std::uint8_t* mask;

  Gating(const Activation& activation, const std::uint8_t* bits)
      : kind(kind_of(activation, bits)), below(activation), mask(bits) {}
  /// The bits of the elements from memory offset i on that share its byte, the first in bit 0; anything without a mask.
  __device__ __forceinline__ unsigned bits_at(std::int64_t i) const {
    return kind == GateKind::mask ? static_cast<unsigned>(mask[i / 8]) >> (i % 8) : 0u;
  }
  /// g: dy behind the gate; `bit` is the element's.
  __device__ __forceinline__ C gated(C dy, C centred, C scale, C shift, unsigned bit) const {
    if (kind == GateKind::open) return dy;
    const bool low = kind == GateKind::sign ? affine_of(centred, scale, shift) <= 0 : bit == 0;
    return low ? below.times_slope(dy) : dy;
  }
};

/// dx = g * gain + (x - center) * slope + offset, and the gate's z = (x - center) * gate_scale + gate_shift.
template <class C>
struct GradCoefficients {
  C center, gate_scale, gate_shift, gain, slope, offset;
};
template <class C>
__device__ __forceinline__ GradCoefficients<C> grad_coefficients(double center, double gate_scale, double gate_shift,
                                                                 const formulas::GradCoefficients& k) {
  const auto gate = affine<C>(center, gate_scale, gate_shift);
  const auto map = affine<C>(center, k.slope, k.offset);
  return {gate.center, gate.scale, gate.shift, static_cast<C>(k.gain), map.scale, map.shift};
}

// ---- where a kernel's coefficients come from ----------------------------------------------------------------------

// A source has begin(shared), called by all threads of a block at first; coefficients<C>(shared, group), by any of
// them; and end(shared), by all threads at last.

/// What a block keeps in shared memory for its source.
struct NothingShared {};

/// Arrays of the caller.
struct GivenAffine {
  using Shared = NothingShared;
  template <class C>
  using Coefficients = Affine<C>;
  const double *center, *scale, *shift;  // (G)

  __device__ void begin(Shared&) const {}
  template <class C>
  __device__ __forceinline__ Affine<C> coefficients(const Shared&, std::int64_t group) const {
    return affine<C>(center[group], scale[group], shift[group]);
  }
  __device__ void end(const Shared&) const {}
};

struct GivenGrad {
  using Shared = NothingShared;
  template <class C>
  using Coefficients = GradCoefficients<C>;
  const double *center, *gate_scale, *gate_shift, *gain, *slope, *offset;  // (G); the gate's null where it has no sign

  __device__ void begin(Shared&) const {}
  template <class C>
  __device__ __forceinline__ GradCoefficients<C> coefficients(const Shared&, std::int64_t group) const {
    return grad_coefficients<C>(center[group], gate_scale != nullptr ? gate_scale[group] : 0,
                                gate_shift != nullptr ? gate_shift[group] : 0,
                                {gain[group], slope[group], offset[group]});
  }
  __device__ void end(const Shared&) const {}
};

}  // namespace allnorm::cuda
