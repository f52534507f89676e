// Barriers, votes and shuffles of device code.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <ctime>

#include "device_launch_parameters.h"
#include "emulation/engine.h"

inline void __syncthreads() { cuda_emulation::detail::block_barrier(cuda_emulation::detail::BlockOp::sync, 0); }
inline int __syncthreads_count(int predicate) {
  return cuda_emulation::detail::block_barrier(cuda_emulation::detail::BlockOp::count, predicate);
}
inline int __syncthreads_and(int predicate) {
  return cuda_emulation::detail::block_barrier(cuda_emulation::detail::BlockOp::all, predicate);
}
inline int __syncthreads_or(int predicate) {
  return cuda_emulation::detail::block_barrier(cuda_emulation::detail::BlockOp::any, predicate);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_emulation::detail::warp_exchange(cuda_emulation::detail::WarpOp::sync, mask, 0, 0);
}
/// Exact on the emulation only in that it names the lanes that have not returned; on a GPU, those that run together.
inline unsigned __activemask() { return cuda_emulation::detail::live_lanes(); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(
      cuda_emulation::detail::warp_exchange(cuda_emulation::detail::WarpOp::ballot, mask, predicate != 0, 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }

namespace cuda_emulation::detail {

/// The types that CUDA shuffles.
template <class T>
concept Shuffled = std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, float> ||
    std::same_as<T, double> || std::same_as<T, long> || std::same_as<T, unsigned long> || std::same_as<T, long long> ||
    std::same_as<T, unsigned long long>;

template <Shuffled T>
T shuffle(unsigned mask, T value, int source) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(WarpOp::shuffle, mask, bits, source);
  T result;
  std::memcpy(&result, &bits, sizeof(T));
  return result;
}
/// First lane of the caller's segment of `width` lanes. `width` must be a power of two up to 32.
inline int segment(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail_kernel("the width of a shuffle is no power of two");
  return lane() & ~(width - 1);
}
inline unsigned reduce(WarpOp op, unsigned mask, unsigned value) {
  return static_cast<unsigned>(warp_exchange(op, mask, value, 0));
}
/// Maps int to unsigned in the same order, and back.
constexpr unsigned flip_sign(unsigned value) { return value ^ 0x80000000u; }

}  // namespace cuda_emulation::detail

template <cuda_emulation::detail::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return cuda_emulation::detail::shuffle(mask, value, cuda_emulation::detail::segment(width) + (source & (width - 1)));
}
template <cuda_emulation::detail::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int first = cuda_emulation::detail::segment(width);
  const int own = cuda_emulation::detail::lane();
  const int source = own - static_cast<int>(delta);
  return cuda_emulation::detail::shuffle(mask, value, source < first ? own : source);
}
template <cuda_emulation::detail::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int first = cuda_emulation::detail::segment(width);
  const int own = cuda_emulation::detail::lane();
  const int source = own + static_cast<int>(delta);
  return cuda_emulation::detail::shuffle(mask, value, source >= first + width ? own : source);
}
template <cuda_emulation::detail::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int first = cuda_emulation::detail::segment(width);
  const int own = cuda_emulation::detail::lane();
  const int source = own ^ lane_mask;  // an earlier segment may be read, a later one may not
  return cuda_emulation::detail::shuffle(mask, value, source >= first + width ? own : source);
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return cuda_emulation::detail::reduce(cuda_emulation::detail::WarpOp::add, mask, value);
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(value)));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return cuda_emulation::detail::reduce(cuda_emulation::detail::WarpOp::min, mask, value);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return cuda_emulation::detail::reduce(cuda_emulation::detail::WarpOp::max, mask, value);
}
inline int __reduce_min_sync(unsigned mask, int value) {
  using cuda_emulation::detail::flip_sign;
  return static_cast<int>(flip_sign(__reduce_min_sync(mask, flip_sign(static_cast<unsigned>(value)))));
}
inline int __reduce_max_sync(unsigned mask, int value) {
  using cuda_emulation::detail::flip_sign;
  return static_cast<int>(flip_sign(__reduce_max_sync(mask, flip_sign(static_cast<unsigned>(value)))));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return cuda_emulation::detail::reduce(cuda_emulation::detail::WarpOp::bit_and, mask, value);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return cuda_emulation::detail::reduce(cuda_emulation::detail::WarpOp::bit_or, mask, value);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
  return cuda_emulation::detail::reduce(cuda_emulation::detail::WarpOp::bit_xor, mask, value);
}

inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

inline void __nanosleep(unsigned) { cuda_emulation::detail::yield_thread(); }
[[noreturn]] inline void __trap() { cuda_emulation::detail::fail_kernel("__trap()"); }
inline long long clock64() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<long long>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

// Programmatic dependent launch: a kernel starts after its predecessor here, so there is nothing to wait for.
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}
