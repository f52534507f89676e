// Pinned memory, and the check that a pointer is where a queue can use it.
#include "src/runtime/cuda/memory.hpp"

#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "src/runtime/cuda/errors.hpp"
#include "src/runtime/queue.hpp"

namespace allnorm {

namespace cuda {

namespace {
std::atomic<int> device_in_use{-1};  // the GPU of this process's first CUDA queue
}

PinnedBlock::PinnedBlock(std::size_t bytes, int index) : size_(bytes) {
  if (bytes == 0) return;
  const DeviceGuard on(index);
  const RelaxedCapture relaxed;
  check(cudaHostAlloc(&host_, bytes, cudaHostAllocMapped | cudaHostAllocPortable), "allocating pinned memory");
  std::memset(host_, 0, bytes);
  const cudaError_t mapped = cudaHostGetDevicePointer(&device_, host_, 0);
  if (mapped != cudaSuccess) ignore(cudaFreeHost(host_));
  check(mapped, "mapping pinned memory");
}
PinnedBlock::PinnedBlock(PinnedBlock&& other) noexcept
    : host_(std::exchange(other.host_, nullptr)),
      device_(std::exchange(other.device_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}
PinnedBlock& PinnedBlock::operator=(PinnedBlock&& other) noexcept {
  std::swap(host_, other.host_);
  std::swap(device_, other.device_);
  std::swap(size_, other.size_);
  return *this;
}
PinnedBlock::~PinnedBlock() {
  if (host_ == nullptr) return;
  const RelaxedCapture relaxed;
  ignore(cudaFreeHost(host_));
}

Located locate(const void* data) noexcept {
  cudaPointerAttributes attributes{};
  const cudaError_t status = cudaPointerGetAttributes(&attributes, data);
  ignore(status);
  if (status != cudaSuccess || attributes.type == cudaMemoryTypeUnregistered) return {};
  return {attributes.type == cudaMemoryTypeDevice ? Place::gpu : Place::shared, attributes.device};
}

void note_cuda_in_use(int index) noexcept {
  int none = -1;
  device_in_use.compare_exchange_strong(none, index);
}

}  // namespace cuda

void expect_host_memory(const void* data, const char* name) {
  const int index = cuda::device_in_use;
  if (index < 0) return;  // no CUDA queue, so nothing here makes a context
  const cuda::DeviceGuard on(index);
  const cuda::Located at = cuda::locate(data);
  expect(at.place != cuda::Place::gpu, Code::device, [&] {
    return std::string(name) + " is on " + to_string({DeviceKind::cuda, at.index}) + ", must be in host memory";
  });
}

}  // namespace allnorm
