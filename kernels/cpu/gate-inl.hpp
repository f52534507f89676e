// The affine map, the activation and its gate, each in one place: forward and backward must agree on the sign of z to
// the last bit. Compiled once per Highway target.
#if defined(ALLNORM_KERNELS_CPU_GATE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ALLNORM_KERNELS_CPU_GATE_INL
#undef ALLNORM_KERNELS_CPU_GATE_INL
#else
#define ALLNORM_KERNELS_CPU_GATE_INL
#endif

#include <cstring>

#include "kernels/cpu/along.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// x minus the center; with a power, the first step of its scale taken, which is 1 in nearly all calls.
template <class V>
HWY_INLINE V centred_of(V x, V center) {
  return hn::Sub(x, center);
}
template <class V>
HWY_INLINE V centred_of(V x, V center, V power) {
  return hn::Mul(hn::Sub(x, center), power);
}

/// Calls body(i, n) for vectors of n values from each i on, over 0 <= i < length, all of them as the first n lanes: the
/// slow way, for powers other than 1.
template <class D, class Body>
HWY_INLINE void for_scaled_vectors(D d, std::int64_t length, const Body& body) {
  for (std::int64_t i = 0; i < length; i += lanes(d)) body(i, min_of(lanes(d), length - i));
}

/// z from the centred x; and from the normalized one, where gamma and beta are the value's own.
template <class V>
HWY_INLINE V affine_of(V centred, V scale, V shift) {
  return hn::MulAdd(centred, scale, shift);
}

/// What an activation does to z <= 0, and its gradient to dy there: times slope for leaky_relu, exactly 0 for relu,
/// even where the factor is infinite; nothing for identity. NaN counts as above 0, so it passes.
template <class C>
struct Below {
  C slope;
  hwy::MakeUnsigned<C> keep;  // all bits set or none: whether the product counts
};
template <class C>
Below<C> below(const Activation& activation) {
  using Bits = hwy::MakeUnsigned<C>;
  if (activation.kind == ActivationKind::relu) return {0, 0};
  const double slope = activation.kind == ActivationKind::leaky_relu ? activation.slope : 1;
  return {static_cast<C>(slope), static_cast<Bits>(~Bits{0})};
}
template <class D>
HWY_INLINE Vec<D> times_slope(D d, Vec<D> value, const Below<hn::TFromD<D>>& low) {
  const hn::RebindToUnsigned<D> du;
  return hn::And(hn::Mul(value, hn::Set(d, low.slope)), hn::BitCast(d, hn::Set(du, low.keep)));
}

template <class D>
HWY_INLINE Vec<D> activate(D d, Vec<D> z, const Below<hn::TFromD<D>>& low) {
  return hn::IfThenElse(hn::Le(z, hn::Zero(d)), times_slope(d, z, low), z);
}

/// The larger of z and a level; NaN where one of them is.
template <class D>
HWY_INLINE Vec<D> raised(D, Vec<D> z, Vec<D> level) {
  return hn::IfThenElse(hn::Or(hn::Le(z, level), hn::IsNaN(level)), level, z);
}

/// The mask of a sign_mask as the kernels read it.
struct MaskBits {
  const std::uint8_t* data;  // (bytes)
  std::int64_t bytes;
};

/// Lanes 0 .. n-1: bit i, i + 1, ... of the mask; n <= 57.
template <class D>
HWY_INLINE hn::Mask<D> mask_at(D d, const MaskBits& mask, std::int64_t i, std::int64_t n) {
  const std::int64_t first = i / 8, shift = i % 8;
  std::uint64_t word = 0;
  if (first + 8 <= mask.bytes)
    std::memcpy(&word, mask.data + first, 8);
  else
    for (std::int64_t b = 0; b * 8 < shift + n; ++b)
      word |= static_cast<std::uint64_t>(mask.data[first + b]) << (8 * b);
  word >>= shift;
  std::uint8_t bits[8];
  std::memcpy(bits, &word, 8);
  return hn::LoadMaskBits(d, bits);
}

/// g: dy behind the gate of `n` elements from memory offset i on. z() is asked for only where it is the gate, and the
/// level read only where z is compared with it: below there is nothing, at it what an activation gives of dy at 0.
template <GateKind kind, class D, class Z>
HWY_INLINE Vec<D> gated(D d, Vec<D> dy, const Z& z, const Below<hn::TFromD<D>>& low, const MaskBits& mask,
                        std::int64_t i, std::int64_t n, Vec<D> level) {
  if constexpr (kind == GateKind::open) {
    return dy;
  } else if constexpr (kind == GateKind::sign) {
    return hn::IfThenElse(hn::Le(z(), hn::Zero(d)), times_slope(d, dy, low), dy);
  } else if constexpr (kind == GateKind::level) {
    const auto own = z();
    return hn::IfThenElse(hn::Le(own, level), hn::IfThenElseZero(hn::Eq(own, level), times_slope(d, dy, low)), dy);
  } else {
    return hn::IfThenElse(mask_at(d, mask, i, n), dy, times_slope(d, dy, low));
  }
}

/// Room for the coefficients of a tile of columns, and for as many as a vector reads beyond them.
template <class D>
constexpr std::int64_t periodic_columns = tile_columns + static_cast<std::int64_t>(hn::MaxLanes(D()));

/// What a map by columns walks of a unit: rows one by one, or where the unit has whole rows, all of them as one run,
/// whose coefficients come again with every row. Then vectors are cut at both ends of a unit alone, and not of each
/// row, wherever results are to be aligned and however many columns there are.
struct ColumnRuns {
  std::int64_t first, count, length, period;

  ColumnRuns(const ColumnGrid& grid, const ColumnGrid::Unit& unit, bool joins) noexcept
      : first((unit.matrix * grid.rows + unit.row) * grid.width + unit.column),
        count(unit.rows),
        length(unit.columns),
        period(unit.columns) {
    if (joins && unit.columns == grid.width) length *= count, count = 1;
  }
  /// The coefficients again behind the period, as far as a vector reads.
  template <class D, class... Arrays>
  void repeat(D d, Arrays*... arrays) const noexcept {
    if (period == length) return;
    for (std::int64_t j = 0; j < lanes(d); ++j) ((arrays[period + j] = arrays[j]), ...);
  }
};

/// scale and shift of the gate of one group; nothing is read unless the gate needs it.
template <GateKind kind, class C>
HWY_INLINE Affine<C> gate_affine(double center, const Gate& gate, std::int64_t group) {
  if constexpr (kind == GateKind::sign || kind == GateKind::level)
    return affine<C>(center, gate.scale[group], shift_of(gate.shift, group));
  else
    return {static_cast<C>(center), C{1}, C{0}, C{0}};
}
/// Its level, likewise.
template <GateKind kind, class C>
HWY_INLINE C gate_level(const Gate& gate, std::int64_t group) {
  if constexpr (kind == GateKind::level)
    return static_cast<C>(gate.floor[group]);
  else
    return C{0};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
