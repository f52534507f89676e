// Vectors of the compute type, read from and written to memory of any dtype. Compiled once per Highway target.
#if defined(ALLNORM_KERNELS_CPU_VECTORS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ALLNORM_KERNELS_CPU_VECTORS_INL
#undef ALLNORM_KERNELS_CPU_VECTORS_INL
#else
#define ALLNORM_KERNELS_CPU_VECTORS_INL
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "allnorm/dtype.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DoubleTag = hn::ScalableTag<double>;
template <class T>
using WideTag = hn::ScalableTag<compute_t<T>>;
/// The compute type with as many lanes as a vector of doubles: what is summed in double.
template <class T>
using SumTag = hn::Rebind<compute_t<T>, DoubleTag>;
template <class D>
using Vec = hn::Vec<D>;

template <class D>
HWY_INLINE std::int64_t lanes(D d) {
  return static_cast<std::int64_t>(hn::Lanes(d));
}

// binary16 in hardware: F16C and its heirs, and every target that is not x86.
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SSE4
constexpr bool has_f16_conversions = false;
#else
constexpr bool has_f16_conversions = true;
#endif
// Loads and stores that leave the memory of masked-off lanes alone, for lanes of `bytes` bytes.
template <std::size_t bytes>
constexpr bool has_masked_access =
#if HWY_TARGET == HWY_AVX2
    bytes >= 4;
#elif HWY_ARCH_X86 && HWY_TARGET < HWY_AVX2
    true;
#else
    false;
#endif

/// 16 bits of memory per lane to the compute type, exactly.
template <class T, class D, class V16>
HWY_INLINE Vec<D> widen_bits(D d, V16 bits) {
  const hn::RebindToSigned<D> di;
  if constexpr (std::is_same_v<T, bf16>) {
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(di, bits)));
  } else if constexpr (has_f16_conversions) {
    return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), bits));
  } else {  // as allnorm::to_float, lane by lane
    const auto u = hn::PromoteTo(di, bits);
    const auto magnitude = hn::And(u, hn::Set(di, 0x7fff));
    const auto rebias = hn::Set(di, 0x38000000);
    const auto normal = hn::Add(hn::ShiftLeft<13>(magnitude), rebias);
    const auto special = hn::Add(normal, rebias);
    const auto subnormal = hn::BitCast(di, hn::Mul(hn::ConvertTo(d, magnitude), hn::Set(d, 0x1p-24f)));
    auto value = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x7bff)), special, normal);
    value = hn::IfThenElse(hn::Lt(magnitude, hn::Set(di, 0x400)), subnormal, value);
    return hn::BitCast(d, hn::Or(value, hn::ShiftLeft<16>(hn::And(u, hn::Set(di, 0x8000)))));
  }
}

/// The inverse, rounded to nearest even; NaN stays NaN. The bits are returned in the low halves of 32-bit lanes.
template <class T, class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> narrow_bits(D d, Vec<D> value) {
  const hn::RebindToSigned<D> di;
  const hn::RebindToUnsigned<D> du;
  const auto u = hn::BitCast(di, value);
  const auto magnitude = hn::And(u, hn::Set(di, 0x7fffffff));
  const auto is_nan = hn::Gt(magnitude, hn::Set(di, 0x7f800000));
  const auto upper = hn::BitCast(di, hn::ShiftRight<16>(hn::BitCast(du, u)));
  if constexpr (std::is_same_v<T, bf16>) {
    const auto odd = hn::And(upper, hn::Set(di, 1));
    const auto rounded = hn::BitCast(du, hn::Add(u, hn::Add(odd, hn::Set(di, 0x7fff))));
    return hn::IfThenElse(is_nan, hn::Or(upper, hn::Set(di, 0x40)), hn::BitCast(di, hn::ShiftRight<16>(rounded)));
  } else {  // as allnorm::to_f16, lane by lane
    const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(di, 1));
    const auto rounded = hn::Add(magnitude, hn::Add(odd, hn::Set(di, 0xfff)));
    const auto normal = hn::ShiftRight<13>(hn::Sub(rounded, hn::Set(di, 0x38000000)));
    const auto shifted = hn::Add(hn::BitCast(d, magnitude), hn::Set(d, 0.5f));
    const auto subnormal = hn::Sub(hn::BitCast(di, shifted), hn::Set(di, 0x3f000000));
    const auto payload = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(di, 0x3ff));
    auto half = hn::IfThenElse(hn::Lt(magnitude, hn::Set(di, 0x38800000)), subnormal, normal);
    half = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x477fefff)), hn::Set(di, 0x7c00), half);
    half = hn::IfThenElse(is_nan, hn::Or(payload, hn::Set(di, 0x7e00)), half);
    return hn::Or(half, hn::And(upper, hn::Set(di, 0x8000)));
  }
}

/// p[0 .. lanes), in the compute type.
template <class T, class D>
HWY_INLINE Vec<D> read(D d, const T* p) {
  if constexpr (sizeof(T) == 2) {
    const hn::Rebind<std::uint16_t, D> d16;
    return widen_bits<T>(d, hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(p)));
  } else {
    return hn::LoadU(d, p);
  }
}

template <class T, class D>
HWY_INLINE void write(D d, Vec<D> value, T* p) {
  if constexpr (std::is_same_v<T, f16> && has_f16_conversions) {
    const hn::Rebind<std::uint16_t, D> d16;
    const auto half = hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), value);
    hn::StoreU(hn::BitCast(d16, half), d16, reinterpret_cast<std::uint16_t*>(p));
  } else if constexpr (sizeof(T) == 2) {
    const hn::Rebind<std::uint16_t, D> d16;
    hn::StoreU(hn::DemoteTo(d16, narrow_bits<T>(d, value)), d16, reinterpret_cast<std::uint16_t*>(p));
  } else {
    hn::StoreU(value, d, p);
  }
}

/// As write, past the caches; p is aligned to the vector in memory, and flush_streams() comes before other threads
/// read.
template <class T, class D>
HWY_INLINE void stream(D d, Vec<D> value, T* p) {
  if constexpr (hn::MaxLanes(D()) * sizeof(T) < 16) {
    write(d, value, p);  // Highway's x86 Stream stores 16 bytes however few the lanes
  } else if constexpr (std::is_same_v<T, f16> && has_f16_conversions) {
    const hn::Rebind<std::uint16_t, D> d16;
    const auto half = hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), value);
    hn::Stream(hn::BitCast(d16, half), d16, reinterpret_cast<std::uint16_t*>(p));
  } else if constexpr (sizeof(T) == 2) {
    const hn::Rebind<std::uint16_t, D> d16;
    hn::Stream(hn::DemoteTo(d16, narrow_bits<T>(d, value)), d16, reinterpret_cast<std::uint16_t*>(p));
  } else {
    hn::Stream(value, d, p);
  }
}
HWY_INLINE void flush_streams() { hwy::FlushStream(); }

/// How many values precede the next address at which a vector can be streamed.
template <class T, class D>
HWY_INLINE std::int64_t until_aligned(D d, const T* p) {
  const std::size_t vector = static_cast<std::size_t>(lanes(d)) * sizeof(T);
  const std::size_t beyond = reinterpret_cast<std::uintptr_t>(p) % vector;
  return beyond == 0 ? 0 : static_cast<std::int64_t>((vector - beyond) / sizeof(T));
}

/// p[0 .. n) in the first n lanes, 0 < n <= lanes; what the other lanes hold is a finite number.
template <class T, class D>
HWY_INLINE Vec<D> read_n(D d, const T* p, std::int64_t n) {
  if constexpr (has_masked_access<sizeof(T)>) {
    const auto count = static_cast<std::size_t>(n);
    if constexpr (sizeof(T) == 2) {
      const hn::Rebind<std::uint16_t, D> d16;
      return widen_bits<T>(d, hn::MaskedLoad(hn::FirstN(d16, count), d16, reinterpret_cast<const std::uint16_t*>(p)));
    } else {
      return hn::MaskedLoad(hn::FirstN(d, count), d, p);
    }
  } else {
    T buffer[hn::MaxLanes(D())] = {};
    for (std::int64_t i = 0; i < n; ++i) buffer[i] = p[i];
    return read(d, buffer);
  }
}

template <class T, class D>
HWY_INLINE void write_n(D d, Vec<D> value, T* p, std::int64_t n) {
  if constexpr (has_masked_access<sizeof(T)> && sizeof(T) > 2) {
    hn::BlendedStore(value, hn::FirstN(d, static_cast<std::size_t>(n)), d, p);
  } else {
    T buffer[hn::MaxLanes(D())];
    write(d, value, buffer);
    for (std::int64_t i = 0; i < n; ++i) p[i] = buffer[i];
  }
}

/// All lanes, or the first n of them: n >= lanes means a full vector.
template <class T, class D>
HWY_INLINE Vec<D> read_some(D d, const T* p, std::int64_t n) {
  return n >= lanes(d) ? read(d, p) : read_n(d, p, n);
}

/// How a map touches memory: whole vectors, the first n lanes of one, or whole vectors with streamed results.
enum class Access : std::uint8_t { whole, some, streamed };
template <Access access, class T, class D>
HWY_INLINE Vec<D> get(D d, const T* p, std::int64_t n) {
  if constexpr (access == Access::some)
    return read_n(d, p, n);
  else
    return read(d, p);
}
template <Access access, class T, class D>
HWY_INLINE void put(D d, Vec<D> value, T* p, std::int64_t n) {
  if constexpr (access == Access::some)
    write_n(d, value, p, n);
  else if constexpr (access == Access::streamed)
    stream(d, value, p);
  else
    write(d, value, p);
}

/// Calls body(access, i, n) for vectors of n values from each i on, over 0 <= i < length. `streamed` is where to the
/// results go, where they are to be streamed (else null).
template <class T, class D, class Body>
HWY_INLINE void for_vectors(D d, std::int64_t length, const T* streamed, const Body& body) {
  const std::int64_t n = lanes(d);
  using Some = std::integral_constant<Access, Access::some>;
  std::int64_t i = 0;
  if (streamed != nullptr) {
    const std::int64_t head = until_aligned(d, streamed);
    if (head > 0 && head < length) body(Some(), i, head), i = head;
    if (head < length)
      for (; i + n <= length; i += n) body(std::integral_constant<Access, Access::streamed>(), i, n);
  }
  for (; i + n <= length; i += n) body(std::integral_constant<Access, Access::whole>(), i, n);
  if (i < length) body(Some(), i, length - i);
}

/// The lanes beyond the first n set to 0.
template <class D>
HWY_INLINE Vec<D> first_n(D d, Vec<D> value, std::int64_t n) {
  return hn::IfThenElseZero(hn::FirstN(d, static_cast<std::size_t>(n)), value);
}

/// As doubles, exactly.
template <class V>
HWY_INLINE Vec<DoubleTag> to_double(V value) {
  if constexpr (std::is_same_v<hn::TFromV<V>, double>)
    return value;
  else
    return hn::PromoteTo(DoubleTag(), value);
}

HWY_INLINE double sum_of_lanes(Vec<DoubleTag> value) { return hn::GetLane(hn::SumOfLanes(DoubleTag(), value)); }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
