// What tests ask of the emulated CUDA runtime: faults, counters, limits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "driver_types.h"

namespace cuda_emulation {

/// The next call of the function `name` ("cudaMalloc", "cuStreamWriteValue32") returns `error` and does nothing.
/// Several calls queue up.
void fail_next(std::string_view name, cudaError_t error);

/// Since the last reset: kernels launched (each replay of a graph counts the graph's kernels), copies (memcpy of any
/// kind; memset apart), and calls of the host that block it: synchronize, blocking copies, cudaFree, a D2H copy to
/// memory that is not pinned.
std::size_t launches();
std::size_t copies();
std::size_t host_waits();
/// Blocks of the largest cooperative grid launched since the last reset.
std::size_t most_cooperative_blocks();
/// Names of the kernels counted by launches(), in the order of the calls.
std::vector<std::string> launched_kernels();

/// Bytes that each device has. Allocations beyond it fail with cudaErrorMemoryAllocation.
void set_memory_limit(std::size_t bytes);
/// Bytes allocated on `device`.
std::size_t memory_in_use(int device);
/// Seed of the order in which blocks and threads run, and restarts the count of launches that it is mixed with.
void set_seed(std::uint64_t seed);
/// Why the current device's sticky error was set; empty without one.
std::string failure();

/// Waits for all streams, then forgets counters, planned faults, sticky errors and the calling thread's last error,
/// and restores the memory limit. Allocations, streams and events stay.
void reset();

}  // namespace cuda_emulation
