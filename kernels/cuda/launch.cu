// What launches ask of the runtime once.
#include "kernels/cuda/launch.cuh"

#include <functional>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

namespace allnorm::cuda {
namespace {

struct KernelOnDevice {
  const void* kernel;
  int device;
  friend bool operator==(const KernelOnDevice&, const KernelOnDevice&) = default;
};
struct HashOf {
  std::size_t operator()(const KernelOnDevice& of) const noexcept {
    return std::hash<const void*>()(of.kernel) + static_cast<std::size_t>(of.device);
  }
};

}  // namespace

std::size_t most_shared(const void* kernel, Queue& queue) {
  static std::shared_mutex mutex;
  static std::unordered_map<KernelOnDevice, std::size_t, HashOf> known;
  const KernelOnDevice key{kernel, queue.device().index};
  {
    const std::shared_lock lock(mutex);
    if (const auto found = known.find(key); found != known.end()) return found->second;
  }
  const std::unique_lock lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  const DeviceGuard guard(key.device);
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel's shared memory");
  const std::size_t most = properties_of(queue).sharedMemPerBlockOptin - attributes.sharedSizeBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)),
        "asking for shared memory");
  return known.emplace(key, most).first->second;
}

}  // namespace allnorm::cuda
