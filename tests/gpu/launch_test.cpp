// What launches ask of the runtime: once for each kernel and device, whichever thread comes first.
#include <gtest/gtest.h>

#include <cuda_runtime.h>

#if ALLNORM_CUDA_EMULATED

#include <array>
#include <thread>
#include <vector>

#include "cuda_emulation.hpp"
#include "harness.hpp"
#include "kernels/cuda/launch.cuh"

namespace allnorm::cuda {
namespace {

template <int>
__global__ void some_kernel() {}

TEST(SharedMemory, IsAskedForOncePerKernelAndDevice) {
  std::array queues{Queue::cuda(0), Queue::cuda(1)};
  const auto asking = reinterpret_cast<const void*>(&some_kernel<0>);
  std::array<std::array<std::size_t, 4>, 2> most{};  // (devices, threads)
  std::vector<std::thread> threads;
  for (std::size_t device = 0; device < 2; ++device)
    for (std::size_t t = 0; t < 4; ++t)
      threads.emplace_back([&, device, t] { most[device][t] = most_shared(asking, queues[device]); });
  for (std::thread& thread : threads) thread.join();
  for (int device = 0; device < 2; ++device) {
    const DeviceGuard guard(device);
    cudaFuncAttributes attributes{};
    ASSERT_EQ(cudaFuncGetAttributes(&attributes, asking), cudaSuccess);
    const auto granted = static_cast<std::size_t>(attributes.maxDynamicSharedSizeBytes);
    EXPECT_EQ(granted + attributes.sharedSizeBytes, properties_of(queues[0]).sharedMemPerBlockOptin);
    for (const std::size_t told : most[static_cast<std::size_t>(device)]) EXPECT_EQ(told, granted);
  }
  cuda_emulation::fail_next("cudaFuncSetAttribute", cudaErrorInvalidValue);
  for (Queue& queue : queues) EXPECT_EQ(most_shared(asking, queue), most[0][0]);  // not called
  const auto other = reinterpret_cast<const void*>(&some_kernel<1>);
  EXPECT_NE(harness::error_of([&] { most_shared(other, queues[0]); }).find("asking for shared memory"),
            std::string::npos);
  EXPECT_EQ(most_shared(other, queues[0]), most[0][0]);  // asked again after a failure
}

}  // namespace
}  // namespace allnorm::cuda

#endif
