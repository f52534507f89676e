// Where a module's calls run: with CUDA in both libraries torch's current stream, without it the module's own queue.
#include "adapters/torch/streams.hpp"

#include "allnorm/error.hpp"

#if ALLNORM_TORCH_CUDA
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>
#include <utility>
#endif

namespace allnorm::torch_adapter {
namespace {

#if ALLNORM_TORCH_CUDA

constexpr bool with_cuda = true;
c10::DeviceIndex index_of(const Queue& own) { return static_cast<c10::DeviceIndex>(own.device().index); }

/// The queue over torch's current stream on the GPU of `own`.
Queue& queue_on_gpu(Queue& own) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(index_of(own)).stream();
  if (stream == own.stream()) return own;
  // Never destroyed: at the end of the process the driver may be gone before this is.
  static std::mutex& mutex = *new std::mutex;
  static auto& queues = *new std::map<std::pair<int, cudaStream_t>, Queue>;
  const std::lock_guard lock(mutex);
  const std::pair key(own.device().index, stream);
  auto found = queues.find(key);
  if (found == queues.end()) found = queues.emplace(key, Queue::cuda(key.first, stream)).first;
  found->second.leave_multiprocessors(own.multiprocessors_left());
  return found->second;
}

c10::Device gpu_of(const Queue& own) { return {c10::DeviceType::CUDA, index_of(own)}; }

#else

constexpr bool with_cuda = false;
[[noreturn]] void no_gpu(const Queue& own) {
  fail(Code::unsupported, "device of the module's queue is " + to_string(own.device()) +
                              ", must be cpu in this build: the library and libtorch were not both found with CUDA");
}
Queue& queue_on_gpu(Queue& own) { no_gpu(own); }
c10::Device gpu_of(const Queue& own) { no_gpu(own); }

#endif

}  // namespace

bool has_gpus() noexcept { return with_cuda; }

c10::Device device_for(const Queue& own) {
  return own.device().kind == DeviceKind::cpu ? c10::Device(c10::DeviceType::CPU) : gpu_of(own);
}

Queue& current_queue(Queue& own) { return own.device().kind == DeviceKind::cpu ? own : queue_on_gpu(own); }

}  // namespace allnorm::torch_adapter
