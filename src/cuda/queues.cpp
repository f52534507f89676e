// CUDA queues are made here, above the kernels whose table they carry.
#include <memory>
#include <string>
#include <utility>

#include "kernels/cuda/kernels.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm {

namespace {

void expect_device(int index) {
  const int count = cuda_devices();
  expect(count > 0, Code::device, [&] {
    return "device " + to_string({DeviceKind::cuda, index}) + " is not there, must be cpu: " + cuda_summary();
  });
  expect(index >= 0 && index < count, Code::device, [&] {
    return "device " + to_string({DeviceKind::cuda, index}) + " is not there, must be cuda:0" +
           (count > 1 ? " to " + to_string({DeviceKind::cuda, count - 1}) : "");
  });
}

}  // namespace

Queue Queue::cuda(int index) {
  expect_device(index);
  auto impl = std::make_shared<cuda::CudaQueue>(index);
  return Queue({DeviceKind::cuda, index}, cuda_ops(), std::move(impl));
}
Queue Queue::cuda(int index, void* stream) {
  expect_device(index);
  auto impl = std::make_shared<cuda::CudaQueue>(index, static_cast<cudaStream_t>(stream));
  return Queue({DeviceKind::cuda, index}, cuda_ops(), std::move(impl));
}

}  // namespace allnorm
