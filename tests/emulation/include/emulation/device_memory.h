// Loads and stores with cache hints, and atomic operations of device code.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "emulation/engine.h"
#include "vector_types.h"

namespace cuda_emulation::detail {

template <class T, class... U>
inline constexpr bool one_of = (std::is_same_v<T, U> || ...);

/// What loads and stores with a cache hint take.
template <class T>
concept Hinted = one_of<T, char, signed char, unsigned char, short, unsigned short, int, unsigned, long, unsigned long,
                        long long, unsigned long long, float, double, char2, char4, uchar2, uchar4, short2, short4,
                        ushort2, ushort4, int2, int4, uint2, uint4, float2, float4, double2, longlong2, ulonglong2>;

template <class T>
T load_hinted(const T* pointer) {
  check_alignment(pointer, alignof(T));
  return *pointer;
}
template <class T>
void store_hinted(T* pointer, T value) {
  check_alignment(pointer, alignof(T));
  *pointer = value;
}

/// Replaces *pointer by combine(*pointer) in one atomic step; returns what was there.
template <class T, class F>
T atomic_update(T* pointer, F combine) {
  check_alignment(pointer, alignof(T));
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  auto* const bits = reinterpret_cast<Bits __attribute__((may_alias))*>(pointer);
  Bits seen = __atomic_load_n(bits, __ATOMIC_RELAXED);
  for (;;) {
    const T old = std::bit_cast<T>(seen);
    const Bits wanted = std::bit_cast<Bits>(static_cast<T>(combine(old)));
    if (__atomic_compare_exchange_n(bits, &seen, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) return old;
  }
}

template <class T>
concept AtomicInteger = one_of<T, int, unsigned, unsigned long long>;
template <class T>
concept AtomicWord = AtomicInteger<T> || std::same_as<T, float>;

}  // namespace cuda_emulation::detail

template <cuda_emulation::detail::Hinted T>
T __ldg(const T* pointer) {
  return cuda_emulation::detail::load_hinted(pointer);
}
template <cuda_emulation::detail::Hinted T>
T __ldcg(const T* pointer) {
  return cuda_emulation::detail::load_hinted(pointer);
}
template <cuda_emulation::detail::Hinted T>
T __ldca(const T* pointer) {
  return cuda_emulation::detail::load_hinted(pointer);
}
template <cuda_emulation::detail::Hinted T>
T __ldcs(const T* pointer) {
  return cuda_emulation::detail::load_hinted(pointer);
}
template <cuda_emulation::detail::Hinted T>
T __ldlu(const T* pointer) {
  return cuda_emulation::detail::load_hinted(pointer);
}
template <cuda_emulation::detail::Hinted T>
T __ldcv(const T* pointer) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);  // read again each time: the memory may change from outside
  return cuda_emulation::detail::load_hinted(const_cast<const T*>(static_cast<const volatile T*>(pointer)));
}
template <cuda_emulation::detail::Hinted T>
void __stcg(T* pointer, std::type_identity_t<T> value) {
  cuda_emulation::detail::store_hinted(pointer, value);
}
template <cuda_emulation::detail::Hinted T>
void __stcs(T* pointer, std::type_identity_t<T> value) {
  cuda_emulation::detail::store_hinted(pointer, value);
}
template <cuda_emulation::detail::Hinted T>
void __stwb(T* pointer, std::type_identity_t<T> value) {
  cuda_emulation::detail::store_hinted(pointer, value);
}
template <cuda_emulation::detail::Hinted T>
void __stwt(T* pointer, std::type_identity_t<T> value) {
  cuda_emulation::detail::store_hinted(pointer, value);
}

template <class T>
requires(cuda_emulation::detail::AtomicWord<T> || std::same_as<T, double>) T
    atomicAdd(T* pointer, std::type_identity_t<T> value) {
  return cuda_emulation::detail::atomic_update(pointer, [value](T old) { return old + value; });
}
template <cuda_emulation::detail::AtomicInteger T>
T atomicSub(T* pointer, std::type_identity_t<T> value) {
  static_assert(!std::same_as<T, unsigned long long>, "CUDA has no atomicSub of 64 bits");
  return cuda_emulation::detail::atomic_update(pointer, [value](T old) { return old - value; });
}
template <cuda_emulation::detail::AtomicWord T>
T atomicExch(T* pointer, std::type_identity_t<T> value) {
  return cuda_emulation::detail::atomic_update(pointer, [value](T) { return value; });
}
template <cuda_emulation::detail::AtomicInteger T>
T atomicCAS(T* pointer, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return cuda_emulation::detail::atomic_update(pointer,
                                               [compare, value](T old) { return old == compare ? value : old; });
}
template <cuda_emulation::detail::AtomicInteger T>
T atomicMax(T* pointer, std::type_identity_t<T> value) {
  return cuda_emulation::detail::atomic_update(pointer, [value](T old) { return old < value ? value : old; });
}
template <cuda_emulation::detail::AtomicInteger T>
T atomicMin(T* pointer, std::type_identity_t<T> value) {
  return cuda_emulation::detail::atomic_update(pointer, [value](T old) { return value < old ? value : old; });
}
template <cuda_emulation::detail::AtomicInteger T>
T atomicOr(T* pointer, std::type_identity_t<T> value) {
  return cuda_emulation::detail::atomic_update(pointer, [value](T old) { return old | value; });
}
template <cuda_emulation::detail::AtomicInteger T>
T atomicAnd(T* pointer, std::type_identity_t<T> value) {
  return cuda_emulation::detail::atomic_update(pointer, [value](T old) { return old & value; });
}
inline unsigned atomicInc(unsigned* pointer, unsigned limit) {
  return cuda_emulation::detail::atomic_update(pointer, [limit](unsigned old) { return old >= limit ? 0u : old + 1u; });
}
inline unsigned atomicDec(unsigned* pointer, unsigned limit) {
  return cuda_emulation::detail::atomic_update(
      pointer, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1u; });
}
