// Tests on the first GPU.
#include "backend.hpp"

#include <cuda_runtime.h>

#include <new>

namespace backend {

allnorm::Queue queue(int) { return allnorm::Queue::cuda(0); }
allnorm::Device device() { return {allnorm::DeviceKind::cuda, 0}; }
const double statistics_unit = 16 * 0x1p-24;  // a rounding of each difference, of its square, and of the eight sums
void* allocate(std::size_t bytes) {
  void* data = nullptr;
  if (cudaMallocManaged(&data, bytes == 0 ? 1 : bytes, cudaMemAttachGlobal) != cudaSuccess) throw std::bad_alloc();
  return data;
}
void release(void* data) noexcept { cudaFree(data); }

}  // namespace backend
