// binary16 of CUDA: the type, its bits and its conversions.
#pragma once

#include <bit>
#include <cstdint>

#include "cuda_runtime.h"

/// As CUDA's: no constructor from a number here, so that no conversion is implicit.
struct alignas(2) __half {
  unsigned short bits_;
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline unsigned short __half_as_ushort(__half h) { return h.bits_; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h.bits_ & 0x8000u) << 16;
  const std::uint32_t exponent = (h.bits_ >> 10) & 0x1fu;
  const std::uint32_t fraction = h.bits_ & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact in binary32
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

inline __half __float2half_rn(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  std::uint32_t bits = 0;
  if (magnitude > 0x7f800000u) return {0x7fff};  // CUDA's one NaN
  if (magnitude >= 0x47800000u) {                // 2^16 and above, infinity with it
    bits = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal: drop 13 bits of the fraction, a carry may enter the exponent
    const std::uint32_t rebased = magnitude - (112u << 23);
    bits = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  } else {  // the sum's unit in the last place is 2^-24, so adding 0.5 rounds to a multiple of it, to nearest even
    bits = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<std::uint32_t>(0.5f);
  }
  return {static_cast<unsigned short>(sign | bits)};
}
inline __half __float2half(float value) { return __float2half_rn(value); }
/// Rounded once, as CUDA does: through a float that keeps what the double rounding would lose.
inline __half __double2half(double value) {
  float narrow = static_cast<float>(value);
  const double back = static_cast<double>(narrow);
  if (back != value && (std::bit_cast<std::uint32_t>(narrow) & 1u) == 0 && value == value && !isinf(narrow)) {
    const auto away = (back < value) == (value > 0.0);  // round to odd: the last bit records that something was lost
    narrow = std::bit_cast<float>(std::bit_cast<std::uint32_t>(narrow) + (away ? 1u : 0xffffffffu));
  }
  return __float2half_rn(narrow);
}

inline __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
inline __half __ldg(const __half* pointer) { return cuda_emulation::detail::load_hinted(pointer); }
inline __half2 __ldg(const __half2* pointer) { return cuda_emulation::detail::load_hinted(pointer); }
