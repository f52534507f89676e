// Tests on the first GPU.
#include "backend.hpp"

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "kernels/cuda/halves.hpp"
#include "kernels/cuda/kernels.hpp"
#include "launch/reference/definitions.hpp"

namespace backend {

allnorm::Queue queue(int) { return allnorm::Queue::cuda(0); }
allnorm::Device device() { return {allnorm::DeviceKind::cuda, 0}; }
double statistics_unit(allnorm::DType dtype) { return reference::statistics_unit(dtype, true); }
const bool takes_some = true;

namespace {

// Freed memory is kept for later: cudaFree waits for all that runs on the GPU, and a stream of another rank's thread
// may wait there for this one.
struct Pool {
  std::mutex mutex;
  std::map<void*, std::size_t> sizes;                // of every block
  std::map<std::size_t, std::vector<void*>> unused;  // by size
};
Pool& pool() {
  static Pool* const made = new Pool;  // outlives every static array
  return *made;
}

}  // namespace

void* allocate(std::size_t bytes) {
  bytes = (bytes / 256 + 1) * 256;
  const std::lock_guard lock(pool().mutex);
  std::vector<void*>& unused = pool().unused[bytes];
  if (!unused.empty()) {
    void* data = unused.back();
    unused.pop_back();
    return data;
  }
  void* data = nullptr;
  if (cudaMallocManaged(&data, bytes, cudaMemAttachGlobal) != cudaSuccess) throw std::bad_alloc();
  pool().sizes[data] = bytes;
  return data;
}

void release(void* data) noexcept {
  const std::lock_guard lock(pool().mutex);
  pool().unused[pool().sizes[data]].push_back(data);
}

void affine_grad(const allnorm::AffineGradArgs& args, allnorm::Queue& queue) {
  allnorm::cuda::affine_grad(args, queue);
}
void patch_sums(const allnorm::PatchSumsArgs& args, allnorm::Queue& queue) {
  allnorm::cuda::patch_sums(args, nullptr, queue);
}

}  // namespace backend
