// How kernels are launched, and how they reach the shared memory that a launch asks for.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "src/cuda/errors.hpp"
#include "src/cuda/queue.hpp"

namespace allnorm::cuda {

/// Launches kernel(args...) on the queue's stream; nothing where there are no blocks.
template <class... Parameters, class... Args>
void launch(Queue& queue, std::int64_t blocks, int threads, std::size_t shared_bytes, void (*kernel)(Parameters...),
            Args&&... args) {
  if (blocks <= 0) return;
  const DeviceGuard guard(queue.device().index);
  constexpr std::size_t granted = 48 << 10;  // more must be asked for
  if (shared_bytes > granted)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "asking for shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_of(queue);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), "launching a kernel");
}

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
