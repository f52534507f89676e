// What kernels compute of one value, whatever way they came to it: the affine map, the activation and its gate, y and
// dx; and the coefficients of one group. Each stands once: forward and backward must agree on the sign of z to the last
// bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/along.cuh"
#include "kernels/cuda/sums.cuh"

namespace allnorm::cuda {

/// The coefficients of (x - center) * scale + shift as the kernels compute it: center and scale rounded to C, the scale
/// in two steps, and a shift that takes back what rounding the center did.
template <class C>
struct alignas(16) Affine {  // one load of 16 bytes
  C center, power, scale, shift;
};
template <class C>
__device__ __forceinline__ Affine<C> affine(double center, formulas::Split scale, double shift) {
  constexpr double most = sizeof(C) == 4 ? 0x1p126 : 0x1p1000;  // a normal number of C, like its inverse
  const C c = static_cast<C>(center);
  const double power = formulas::clip(scale.power, 1 / most, most);
  const double rest = power == scale.power ? scale.rest : scale.rest * (scale.power / power);
  const double rounded = (static_cast<double>(c) - center) * scale.power;
  return {c, static_cast<C>(power), static_cast<C>(rest), static_cast<C>(std::fma(scale.rest, rounded, shift))};
}
template <class C>
__device__ __forceinline__ Affine<C> affine(double center, double scale, double shift) {
  return affine<C>(center, formulas::split(scale), shift);
}
/// Given powers, or 1.
__device__ __forceinline__ double power_of(const double* power, std::int64_t group) {
  return power != nullptr ? power[group] : 1;
}
/// x minus the center, the first step of its scale taken.
template <class C>
__device__ __forceinline__ C centred_of(C x, C center, C power) {
  return (x - center) * power;
}
/// z from the centred x.
template <class C, class Own = FoldedOwn>
__device__ __forceinline__ C affine_of(C centred, C scale, C shift, const Own& own = {}) {
  return own.of(std::fma(centred, scale, shift));
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
  __device__ __forceinline__ bool is_identity() const { return !zero && slope == 1; }
};

/// y of a value with these coefficients; `plain`: there is neither residual nor activation.
template <bool plain = false, class C, class Own>
__device__ __forceinline__ C y_of(C x, const Affine<C>& k, const Own& own, bool has_residual, C residual,
                                  const Below<C>& below) {
  C z = affine_of(centred_of(x, k.center, k.power), k.scale, k.shift, own);
  if constexpr (Own::has_level) return own.raised(z);
  if constexpr (plain) return z;
  if (has_residual) z += residual;
  return below.activate(z);
}

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
  template <class Own>
  __device__ __forceinline__ C gated(C dy, C centred, C scale, C shift, const Own& own, unsigned bit) const {
    if (kind == GateKind::open) return dy;
    if constexpr (Own::has_level) return own.gated(dy, affine_of(centred, scale, shift, own), below.times_slope(dy));
    const bool low = kind == GateKind::sign ? affine_of(centred, scale, shift, own) <= 0 : bit == 0;
    return low ? below.times_slope(dy) : dy;
  }
};

/// With centred = (x - center) * power: dx = weight * g * gain + centred * slope + offset, and the gate's z = centred *
/// gate_scale + gate_shift.
template <class C>
struct GradCoefficients {
  C center, power, gate_scale, gate_shift, gain, slope, offset;
};
template <class C>
__device__ __forceinline__ GradCoefficients<C> grad_coefficients(double center, double gate_scale, double gate_shift,
                                                                 const formulas::GradCoefficients& k) {
  const auto gate = affine<C>(center, {k.power, k.power == 1 ? gate_scale : gate_scale / k.power}, gate_shift);
  const auto map = affine<C>(center, {k.power, k.slope}, k.offset);
  return {map.center, map.power, gate.scale, gate.shift, static_cast<C>(k.gain), map.scale, map.shift};
}

template <class C, class Own>
__device__ __forceinline__ C g_of(C x, C dy, const GradCoefficients<C>& k, const Own& own, const Gating<C>& gate,
                                  unsigned bit) {
  return gate.gated(dy, centred_of(x, k.center, k.power), k.gate_scale, k.gate_shift, own, bit);
}
template <class C, class Own>
__device__ __forceinline__ C dx_of(C x, C g, const GradCoefficients<C>& k, const Own& own) {
  return std::fma(own.weighted(g), k.gain, affine_of(centred_of(x, k.center, k.power), k.slope, k.offset));
}

/// Sums about the frame's mean from those about the center, which took the first step of the scale.
template <class C>
__device__ __forceinline__ Sums about_frame(Sums sums, C center, C power, double mean) {
  return {sums.sum, sums.second / static_cast<double>(power) + (static_cast<double>(center) - mean) * sums.sum};
}

// ---- a call's small steps ------------------------------------------------------------------------------------------

/// What a forward call did, and the counters after it: by one thread of the grid.
__device__ inline void write_turn(const ForwardArgs& args, const Turn& turn) {
  *args.frame.scalars = {turn.count, turn.call};
  *args.state.last = turn;
  if (!turn.fails) args.state.next() = steps::advanced(args.rules, args.state.now(), turn);
}

/// The end of the call, when all groups are done: the next state becomes the current one. By one thread of the grid.
__device__ __attribute__((noinline)) inline void end_turn(const ForwardArgs& args, const Turn& turn) {
  const Turn settled = steps::settle(args.rules, args.state, turn);
  if (settled.fails)
    *args.state.last = settled;
  else
    ++*args.state.parity;
}

/// Scale and shift of fine group f, whose norm's group has this frame. `along`: the kernel is one of gammas along.
template <bool along>
__device__ __forceinline__ formulas::ApplyCoefficients apply_of(const LayerCall& call, const steps::GroupFrame& frame,
                                                                std::int64_t f) {
  if constexpr (along) return formulas::apply(frame.rstd, frame.correction, 1, 0);
  return steps::affine_of(call, frame, f);
}
template <class C, bool along = false>
__device__ __forceinline__ Affine<C> affine_frame(const LayerCall& call, const steps::GroupFrame& frame,
                                                  std::int64_t f) {
  const auto k = apply_of<along>(call, frame, f);
  return affine<C>(frame.mean, k.scale, k.shift);
}
/// The same for backward, from the sums over the ranks.
template <class C, bool along = false>
__device__ __forceinline__ GradCoefficients<C> grad_frame(const BackwardArgs& args, const steps::GroupFrame& frame,
                                                          std::int64_t f, double count, double s1, double s2) {
  const auto gate = apply_of<along>(args, frame, f);
  return grad_coefficients<C>(frame.mean, gate.scale, gate.shift,
                              steps::grad_of(args, frame, along ? 1 : steps::gamma_of(args, f), count, s1, s2));
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
    return affine<C>(center[group], scale[group], shift == nullptr ? 0 : shift[group]);
  }
  __device__ void end(const Shared&) const {}
};

struct GivenGrad {
  using Shared = NothingShared;
  template <class C>
  using Coefficients = GradCoefficients<C>;
  // (G); power may be null, and so may the gate's where it has no sign
  const double *center, *power, *gate_scale, *gate_shift, *gain, *slope, *offset;

  __device__ void begin(Shared&) const {}
  template <class C>
  __device__ __forceinline__ GradCoefficients<C> coefficients(const Shared&, std::int64_t group) const {
    return grad_coefficients<C>(center[group], gate_scale != nullptr ? gate_scale[group] : 0,
                                gate_shift != nullptr ? gate_shift[group] : 0,
                                {gain[group], slope[group], offset[group], power_of(power, group)});
  }
  __device__ void end(const Shared&) const {}
};

}  // namespace allnorm::cuda
