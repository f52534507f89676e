// How kernels are launched, and how they reach the shared memory that a launch asks for.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "src/runtime/cuda/errors.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda {

/// The most bytes of shared memory that a launch of `kernel` on the queue's device may ask for: what a block can have,
/// less the kernel's own variables. Without being asked for, both together are 48 KiB at most, so the first call for
/// a kernel and device asks. Any thread may call it.
std::size_t most_shared(const void* kernel, Queue& queue);

/// Blocks of so many threads of a kernel that the queue's GPU runs at once. Asking takes as long as a small kernel: a
/// caller keeps the answer, as GPUs of one machine are alike.
template <class... Parameters>
std::int64_t resident_blocks(void (*kernel)(Parameters...), int threads, Queue& queue) {
  const DeviceGuard guard(queue.device().index);
  int per_multiprocessor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, 0),
        "asking for a kernel's occupancy");
  return std::max<std::int64_t>(1, std::int64_t{per_multiprocessor} * properties_of(queue).multiProcessorCount);
}

/// Launches kernel(args...) on the queue's stream; nothing where there are no blocks. Blocks of a `cooperative` launch
/// may wait for each other.
template <bool cooperative = false, class... Parameters, class... Args>
void launch(Queue& queue, std::int64_t blocks, int threads, std::size_t shared_bytes, void (*kernel)(Parameters...),
            const Args&... args) {
  if (blocks <= 0) return;
  const DeviceGuard guard(queue.device().index);
  if (shared_bytes > 0) most_shared(reinterpret_cast<const void*>(kernel), queue);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_of(queue);
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), "launching a kernel");
}

/// Declares a variable of the block: `__shared__ type name`, with the type last, since it may have commas.
#ifdef ALLNORM_CUDA_EMULATED
#define ALLNORM_SHARED ALLNORM_EMULATED_SHARED
#else
#define ALLNORM_SHARED(name, ...) __shared__ std::type_identity_t<__VA_ARGS__> name
#endif

/// The block's shared memory that the launch asked for, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef ALLNORM_CUDA_EMULATED
  return static_cast<T*>(allnorm_emulated_dynamic_shared());
#else
  extern __shared__ uint4 allnorm_dynamic_shared[];
  return reinterpret_cast<T*>(allnorm_dynamic_shared);
#endif
}

}  // namespace allnorm::cuda
