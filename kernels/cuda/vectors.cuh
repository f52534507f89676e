// Vectors of values in global memory: loaded into the compute type and stored from it, 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "allnorm/dtype.hpp"

namespace allnorm::cuda {

/// f(0), f(1), ... f(n - 1), written out: what indexes arrays that must stay in registers.
template <class F, int... i>
__device__ __forceinline__ void unrolled(const F& f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>{}), ...);
}
template <int n, class F>
__device__ __forceinline__ void unrolled(const F& f) {
  unrolled(f, std::make_integer_sequence<int, n>{});
}

/// One value, widened and narrowed by the hardware: the same bits as allnorm::load and allnorm::store for every number;
/// a NaN stays a NaN, of the hardware's bits.
template <class T>
__device__ __forceinline__ compute_t<T> widen(T value) {
  if constexpr (std::is_same_v<T, f16>)
    return __half2float(__ushort_as_half(value.bits));
  else if constexpr (std::is_same_v<T, bf16>)
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
  else
    return value;
}
template <class T>
__device__ __forceinline__ T narrow(compute_t<T> value) {
  if constexpr (std::is_same_v<T, f16>)
    return {__half_as_ushort(__float2half_rn(value))};
  else if constexpr (std::is_same_v<T, bf16>)
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
  else
    return value;
}

/// Two adjacent values of 16 bits in one word: half the instructions, and none of those that run at a quarter of the
/// rate.
template <class T>
inline constexpr bool in_pairs = std::is_same_v<T, f16> || std::is_same_v<T, bf16>;
template <class T>
__device__ __forceinline__ void widen_pair(unsigned word, float& low, float& high) {
  if constexpr (std::is_same_v<T, bf16>) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
  } else {
    low = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
    high = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
  }
}
template <class T>
__device__ __forceinline__ unsigned narrow_pair(float low, float high) {
  std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2> pair;
  if constexpr (std::is_same_v<T, bf16>)
    pair = __floats2bfloat162_rn(low, high);
  else
    pair = __floats2half2_rn(low, high);
  unsigned word;
  std::memcpy(&word, &pair, sizeof(word));
  return word;
}

/// `n` adjacent values as one to four words of at most 16 bytes.
template <class T, int n>
struct Vector {
  static constexpr std::size_t bytes = n * sizeof(T);
  static constexpr std::size_t word_bytes = bytes < 16 ? bytes : 16;
  static constexpr int words = static_cast<int>(bytes / word_bytes);
  static_assert(words * word_bytes == bytes);
  // clang-format off
  using Word = std::conditional_t<word_bytes == 16, uint4,
               std::conditional_t<word_bytes == 8, uint2,
               std::conditional_t<word_bytes == 4, unsigned, unsigned short>>>;
  // clang-format on
  Word word[words];
};
/// Values per 16 bytes.
template <class T>
inline constexpr int vector_width = static_cast<int>(16 / sizeof(T));

/// Whether vectors can be read and written at p.
inline bool is_vector_aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

/// What a load or store says to the caches.
enum class Hint : std::uint8_t {
  keep,  ///< will be read again soon
  last,  ///< will not: first to be evicted
};

/// One store to global memory; the compiler makes four of an assignment of 16 bytes beside a store with a hint.
template <class Word>
__device__ __forceinline__ void write_word(Word* to, const Word& word) {
#ifndef ALLNORM_CUDA_EMULATED
  if constexpr (sizeof(Word) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x),
                 "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
    return;
  }
#endif
  *to = word;
}
/// The vector at p, which is aligned to its words. Writing is for global memory.
template <int n, class T>
__device__ __forceinline__ Vector<T, n> read_vector(const T* p, Hint hint = Hint::keep) {
  using V = Vector<T, n>;
  const auto* from = reinterpret_cast<const typename V::Word*>(p);
  V v;
  for (int i = 0; i < V::words; ++i) v.word[i] = hint == Hint::keep ? from[i] : __ldcs(from + i);
  return v;
}
template <int n, class T>
__device__ __forceinline__ void write_vector(T* p, const Vector<T, n>& v, Hint hint = Hint::keep) {
  using V = Vector<T, n>;
  auto* to = reinterpret_cast<typename V::Word*>(p);
  for (int i = 0; i < V::words; ++i) {
    if (hint == Hint::keep)
      write_word(to + i, v.word[i]);
    else
      __stcs(to + i, v.word[i]);
  }
}

/// The values p[0 .. count) one by one, count <= n; the others are 0. p may have any alignment.
template <int n, class T>
__device__ __forceinline__ Vector<T, n> read_values(const T* p, int count) {
  T values[n];
  for (int i = 0; i < n; ++i) values[i] = i < count ? p[i] : T{};
  Vector<T, n> v;
  std::memcpy(static_cast<void*>(&v), values, sizeof(v));
  return v;
}
template <int n, class T>
__device__ __forceinline__ void write_values(T* p, const Vector<T, n>& v, int count) {
  T values[n];
  std::memcpy(static_cast<void*>(values), &v, sizeof(v));
  for (int i = 0; i < n; ++i)
    if (i < count) p[i] = values[i];
}

/// The values of a vector in the compute type, and back.
template <class T, int n>
__device__ __forceinline__ void unpack(const Vector<T, n>& v, compute_t<T> (&to)[n]) {
  if constexpr (in_pairs<T> && n % 2 == 0) {
    unsigned words[n / 2];
    std::memcpy(words, &v, sizeof(v));
    for (int i = 0; i < n / 2; ++i) widen_pair<T>(words[i], to[2 * i], to[2 * i + 1]);
  } else {
    T values[n];
    std::memcpy(static_cast<void*>(values), &v, sizeof(v));
    for (int i = 0; i < n; ++i) to[i] = widen(values[i]);
  }
}
template <class T, int n>
__device__ __forceinline__ Vector<T, n> pack(const compute_t<T> (&from)[n]) {
  Vector<T, n> v;
  if constexpr (in_pairs<T> && n % 2 == 0) {
    unsigned words[n / 2];
    for (int i = 0; i < n / 2; ++i) words[i] = narrow_pair<T>(from[2 * i], from[2 * i + 1]);
    std::memcpy(static_cast<void*>(&v), words, sizeof(v));
  } else {
    T values[n];
    for (int i = 0; i < n; ++i) values[i] = narrow<T>(from[i]);
    std::memcpy(static_cast<void*>(&v), values, sizeof(v));
  }
  return v;
}

/// The sum of the squares of `count` differences: `squares`, as added up in the compute type, or anew in double where
/// that has left its range, as squares of halves do not.
template <class T, int count, class Difference>
__device__ __forceinline__ double sum_of_squares(compute_t<T> squares, const Difference& difference) {
  double sum = static_cast<double>(squares);
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, bf16>) {
    // below, the smallest squares may count and be rounded as subnormal numbers
    if (squares >= 0x1p-100f && squares <= std::numeric_limits<float>::max()) return sum;
    bool any = squares != 0;  // many equal values are nothing unusual
    unrolled<count>([&](auto i) { any = any || difference(i) != 0; });
    if (!any) return 0;
    sum = 0;
    unrolled<count>([&](auto i) {
      const auto d = static_cast<double>(difference(i));
      sum = fma(d, d, sum);
    });
  }
  return sum;
}

/// p[0 .. n) in the compute type: in whole words (p is aligned to them), or one by one.
template <bool whole, int n, class T>
__device__ __forceinline__ void load_values(const T* p, compute_t<T> (&to)[n], Hint hint = Hint::keep) {
  if constexpr (whole)
    unpack(read_vector<n>(p, hint), to);
  else
    unpack(read_values<n>(p, n), to);
}

}  // namespace allnorm::cuda
