// The emulated runtime's host side: asynchronous streams, events, memory, memory operations, errors, counters.
#include <cuda.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "device_array.hpp"

namespace {

using Runtime = emulation_tests::Emulation;
using emulation_tests::DeviceArray;
using emulation_tests::start;
using emulation_tests::Stream;

/// A host function that holds its stream until the test opens it, or is left.
struct Gate {
  std::shared_ptr<std::atomic<bool>> open = std::make_shared<std::atomic<bool>>(false);
  ~Gate() { *open = true; }
  void close(cudaStream_t stream) {
    const auto wait = [](void* data) {
      const std::unique_ptr<std::shared_ptr<std::atomic<bool>>> opened(static_cast<decltype(open)*>(data));
      while (!**opened) std::this_thread::yield();
    };
    ASSERT_EQ(cudaLaunchHostFunc(stream, wait, new auto(open)), cudaSuccess);
  }
};

__global__ void fill_kernel(int* out, int value) { out[blockIdx.x * blockDim.x + threadIdx.x] = value; }

TEST_F(Runtime, WorkIsDoneInTheStreamsOrderAndNotBeforeItsTurn) {
  Stream stream;
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 64 * sizeof(int)), cudaSuccess);
  pinned[0] = 1;
  {
    const DeviceArray<int> out(64);
    Gate gate;
    gate.close(stream);
    ASSERT_EQ(start(fill_kernel, 2, 32, stream, out.data, 7), cudaSuccess);
    ASSERT_EQ(cudaMemcpyAsync(pinned, out.data, out.bytes, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    EXPECT_EQ(pinned[0], 1);
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
    EXPECT_EQ(cudaGetLastError(), cudaErrorNotReady);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    *gate.open = true;
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(pinned[63], 7);
    EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
  }
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(Runtime, EventsOrderStreams) {
  Stream first, second;
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);  // not recorded: nothing to wait for
  const DeviceArray<int> out(32);
  {
    Gate gate;
    gate.close(first);
    ASSERT_EQ(start(fill_kernel, 1, 32, first, out.data, 1), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(second, event), cudaSuccess);
    ASSERT_EQ(start(fill_kernel, 1, 32, second, out.data, 2), cudaSuccess);
    EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
    EXPECT_EQ(cudaStreamQuery(second), cudaErrorNotReady);
  }
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  ASSERT_EQ(cudaEventDestroy(event), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(out.host()[31], 2);
}

TEST_F(Runtime, MemoryIsFilledFreedInOrderAndLimited) {
  Stream stream;
  const DeviceArray<unsigned char> fresh(5);
  EXPECT_EQ(fresh.host(), std::vector<unsigned char>(5, 0xCD));
  const std::size_t before = cuda_emulation::memory_in_use(0);
  unsigned char* late = nullptr;
  ASSERT_EQ(cudaMallocAsync(&late, 100, stream), cudaSuccess);
  std::vector<unsigned char> seen(100);
  {
    Gate gate;
    gate.close(stream);
    ASSERT_EQ(cudaMemcpyAsync(seen.data(), late, 100, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    ASSERT_EQ(cudaFreeAsync(late, stream), cudaSuccess);
    EXPECT_EQ(cuda_emulation::memory_in_use(0), before + 100);
    EXPECT_EQ(cudaFreeAsync(late, stream), cudaErrorInvalidValue);  // twice
    EXPECT_EQ(cudaMemcpyAsync(seen.data(), late, 1, cudaMemcpyDeviceToHost, stream), cudaErrorInvalidValue);
  }
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(seen, std::vector<unsigned char>(100, 0xCD));  // the copy came before
  EXPECT_EQ(cuda_emulation::memory_in_use(0), before);
  cuda_emulation::set_memory_limit(before + 1000);
  void* large = nullptr;
  EXPECT_EQ(cudaMalloc(&large, 1001), cudaErrorMemoryAllocation);
  EXPECT_EQ(large, nullptr);
  EXPECT_EQ(cudaMalloc(&large, 1000), cudaSuccess);
  EXPECT_EQ(cudaFree(large), cudaSuccess);
  EXPECT_EQ(cudaFree(large), cudaErrorInvalidValue);
}

TEST_F(Runtime, PointersKnowTheirMemory) {
  const DeviceArray<double> device(10);
  cudaPointerAttributes attributes{};
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, device.data + 5), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  EXPECT_EQ(attributes.device, 0);
  double* pinned = nullptr;
  ASSERT_EQ(cudaHostAlloc(&pinned, 80, cudaHostAllocMapped), cudaSuccess);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, pinned + 1), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  double* mapped = nullptr;
  EXPECT_EQ(cudaHostGetDevicePointer(&mapped, pinned, 0), cudaSuccess);
  EXPECT_EQ(mapped, pinned);
  ASSERT_EQ(cudaFreeHost(pinned), cudaSuccess);
  double local[4] = {};
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, local), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  EXPECT_EQ(cudaMemcpy(device.data + 8, local, 24, cudaMemcpyHostToDevice), cudaErrorInvalidValue);  // 8 bytes over
  EXPECT_EQ(cudaMemcpy(local, device.data, 8, cudaMemcpyHostToDevice), cudaErrorInvalidMemcpyDirection);
  ASSERT_EQ(cudaHostRegister(local, sizeof(local), cudaHostRegisterDefault), cudaSuccess);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, local + 3), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  EXPECT_EQ(cudaHostUnregister(local), cudaSuccess);
}

TEST_F(Runtime, StreamsWaitForAndWriteValues) {
  using Write = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned);
  void *write = nullptr, *wait = nullptr;
  cudaDriverEntryPointQueryResult status;
  ASSERT_EQ(cudaGetDriverEntryPointByVersion("cuStreamWriteValue32", &write, 12000, cudaEnableDefault, &status),
            cudaSuccess);
  ASSERT_EQ(status, cudaDriverEntryPointSuccess);
  ASSERT_EQ(cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &wait, 12000, cudaEnableDefault, &status),
            cudaSuccess);
  Stream stream;
  unsigned* flags = nullptr;
  ASSERT_EQ(cudaHostAlloc(&flags, 2 * sizeof(unsigned), cudaHostAllocMapped), cudaSuccess);
  flags[0] = 0xfffffff0u;
  flags[1] = 0;
  const auto address = [&](int i) { return static_cast<CUdeviceptr>(reinterpret_cast<std::uintptr_t>(flags + i)); };
  ASSERT_EQ(reinterpret_cast<Write>(wait)(stream, address(0), 2, CU_STREAM_WAIT_VALUE_GEQ), CUDA_SUCCESS);
  ASSERT_EQ(reinterpret_cast<Write>(write)(stream, address(1), 9, CU_STREAM_WRITE_VALUE_DEFAULT), CUDA_SUCCESS);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
  EXPECT_EQ(__atomic_load_n(flags + 1, __ATOMIC_SEQ_CST), 0u);
  __atomic_store_n(flags, 3u, __ATOMIC_SEQ_CST);  // past 2, and past 0xfffffff0 in the cyclic order
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(flags[1], 9u);
  EXPECT_EQ(cuStreamWaitValue32(stream, address(0) + 1, 0, CU_STREAM_WAIT_VALUE_EQ), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(cudaFreeHost(flags), cudaSuccess);
  EXPECT_EQ(cuStreamWriteValue32(stream, address(0), 0, 0), CUDA_ERROR_INVALID_VALUE);
}

TEST_F(Runtime, PlannedFaultsAndCounters) {
  cuda_emulation::fail_next("cudaMalloc", cudaErrorMemoryAllocation);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaSuccess);
  cuda_emulation::reset();
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  Stream stream;
  int* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 4), cudaSuccess);
  ASSERT_EQ(start(fill_kernel, 1, 1, stream, static_cast<int*>(pointer), 3), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned, pointer, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(cuda_emulation::launches(), 1u);
  EXPECT_EQ(cuda_emulation::copies(), 1u);
  EXPECT_EQ(cuda_emulation::host_waits(), 0u);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  int pageable = 0;  // must outlive the copy
  ASSERT_EQ(cudaMemcpyAsync(&pageable, pointer, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cuda_emulation::host_waits(), 3u);
  EXPECT_EQ(cudaFree(pointer), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(Runtime, DevicesAndTheirLimits) {
  int count = 0;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  ASSERT_EQ(count, 2);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  Stream stream;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  const DeviceArray<int> out(32);
  EXPECT_EQ(start(fill_kernel, 1, 32, stream, out.data, 1), cudaErrorInvalidResourceHandle);  // a stream of device 0
  EXPECT_EQ(start(fill_kernel, 1, 1025, nullptr, out.data, 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(start(fill_kernel, 0, 32, nullptr, out.data, 1), cudaErrorInvalidConfiguration);
  cudaPointerAttributes attributes{};
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, out.data), cudaSuccess);
  EXPECT_EQ(attributes.device, 1);
  std::thread([] {
    int device = -1;
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(device, 0);  // of the thread
  }).join();
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  cudaLaunchConfig_t config{};
  config.dynamicSmemBytes = 48 * 1024 + 1;
  int* const none = nullptr;
  EXPECT_EQ(cudaLaunchKernelEx(&config, fill_kernel, none, 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(fill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024),
            cudaErrorInvalidValue);
  int blocks = 0;
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, fill_kernel, 256, 0), cudaSuccess);
  EXPECT_EQ(blocks, 8);
  ASSERT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, fill_kernel, 256, 100 * 1024), cudaSuccess);
  EXPECT_EQ(blocks, 2);
}

TEST_F(Runtime, HostFunctionsMayNotCallCuda) {
  Stream stream;
  cudaError_t seen = cudaSuccess;
  const auto query = [](void* error) {
    int device = 0;
    *static_cast<cudaError_t*>(error) = cudaGetDevice(&device);
  };
  ASSERT_EQ(cudaLaunchHostFunc(stream, query, &seen), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(seen, cudaErrorNotPermitted);
}

}  // namespace
