// What the emulation's tests share: device memory for the length of a test, and launches with one block shape.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "cuda_emulation.hpp"

namespace emulation_tests {

template <class T>
struct DeviceArray {
  explicit DeviceArray(std::size_t count) : bytes(count * sizeof(T)) {
    EXPECT_EQ(cudaMalloc(&data, bytes), cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    EXPECT_EQ(cudaMemcpy(data, values.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~DeviceArray() { cudaFree(data); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  std::vector<T> host() const {
    std::vector<T> values(bytes / sizeof(T));
    EXPECT_EQ(cudaMemcpy(values.data(), data, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  T* data = nullptr;
  std::size_t bytes;
};

/// A stream for the length of a test.
struct Stream {
  explicit Stream(unsigned flags = cudaStreamNonBlocking) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&handle, flags), cudaSuccess);
  }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return handle; }
  cudaStream_t handle = nullptr;
};

template <class... P, class... A>
cudaError_t start(void (*kernel)(P...), int blocks, int threads, cudaStream_t stream, A&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...);
}

/// Starts each test with counters, faults and errors cleared, and leaves none behind.
class Emulation : public testing::Test {
 protected:
  void SetUp() override { cuda_emulation::reset(); }
  void TearDown() override { cuda_emulation::reset(); }
};

}  // namespace emulation_tests
