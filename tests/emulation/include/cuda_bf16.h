// bfloat16 of CUDA: the type, its bits and its conversions.
#pragma once

#include <bit>
#include <cstdint>

#include "cuda_runtime.h"

/// As CUDA's: no constructor from a number here, so that no conversion is implicit.
struct alignas(2) __nv_bfloat16 {
  unsigned short bits_;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits_; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline float __bfloat162float(__nv_bfloat16 b) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(b.bits_) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // CUDA's one NaN
  return {static_cast<unsigned short>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }

inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline __nv_bfloat16 __ldg(const __nv_bfloat16* pointer) { return cuda_emulation::detail::load_hinted(pointer); }
inline __nv_bfloat162 __ldg(const __nv_bfloat162* pointer) { return cuda_emulation::detail::load_hinted(pointer); }
