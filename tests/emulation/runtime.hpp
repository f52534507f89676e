// What the functions of the emulated runtime share: errors, planned faults, counters, devices.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "driver_types.h"

namespace cuda_emulation::detail {

inline constexpr int max_devices = 16;

/// The device that all emulated devices are.
struct Model {
  static constexpr int multiprocessors = 4;
  static constexpr int max_threads_per_block = 1024;
  static constexpr int max_threads_per_multiprocessor = 2048;
  static constexpr int max_blocks_per_multiprocessor = 32;
  static constexpr int registers = 65536;  // per multiprocessor
  static constexpr int registers_per_thread = 32;
  static constexpr std::size_t shared_per_block = 48 * 1024;
  static constexpr std::size_t shared_per_block_optin = 227 * 1024;
  static constexpr std::size_t shared_per_multiprocessor = 228 * 1024;
  static constexpr std::size_t shared_reserved_per_block = 1024;
  static constexpr int l2_bytes = 1 << 20;
};

int device_count();
int& current_device();  // of the calling OS thread

/// A kernel of `device` failed: later calls return cudaErrorLaunchFailure.
void set_failure(int device, std::string reason);
bool device_failed(int device);

std::uint64_t next_launch_seed();
std::size_t memory_limit();

struct Counters {
  std::atomic<std::size_t> copies{0}, host_waits{0}, most_cooperative_blocks{0};
};
Counters& counters();
void log_launch(const void* kernel);
/// The kernel's name, demangled; its address where the program has no symbol for it.
std::string kernel_name(const void* kernel);
/// The same as the linker sees it. Stays valid.
const char* mangled_name(const void* kernel);

/// True on a stream's thread while it runs a host function, from which CUDA may not be called.
bool& in_host_function();

/// What every call checks first: planned faults, missing devices, the sticky error.
cudaError_t enter(std::string_view name);
/// Remembers an error for cudaGetLastError.
cudaError_t record(cudaError_t error);

template <class F>
cudaError_t call(std::string_view name, F&& body) {
  cudaError_t error = enter(name);
  if (error == cudaSuccess) error = body();
  return record(error);
}

/// The allocation that holds [pointer, pointer + bytes): its kind, cudaErrorInvalidValue if it holds a part only or
/// has been freed, Unregistered if none does.
cudaError_t classify(const void* pointer, std::size_t bytes, cudaMemoryType& type, int& device);

}  // namespace cuda_emulation::detail
