// Page-locked memory, what GPUs are, and reports of kernels, for host code without CUDA headers.
#include <algorithm>
#include <cstdio>
#include <mutex>
#include <utility>
#include <vector>

#include "src/cuda/watcher.hpp"
#include "src/gpu.hpp"
#include "src/runtime/cuda/errors.hpp"
#include "src/runtime/cuda/memory.hpp"
#include "src/runtime/cuda/queue.hpp"
#include "src/runtime/cuda/version.hpp"

namespace allnorm {

std::shared_ptr<std::byte> pinned_memory(std::size_t bytes, int index) {
  const auto block = std::make_shared<cuda::PinnedBlock>(bytes, index);
  return {block, static_cast<std::byte*>(block->host())};
}

std::byte* lasting_memory(std::size_t bytes, int index) {
  constexpr std::size_t page = 4096, line = 64;
  static std::mutex mutex;
  static auto& pages = *new std::vector<cuda::PinnedBlock>;  // never destroyed: CUDA may end before the process
  static std::size_t used = page;                            // bytes of the last one
  const std::size_t size = (bytes + line - 1) / line * line;
  const std::lock_guard lock(mutex);
  if (used + size > page) {
    pages.emplace_back(std::max(page, size), index);
    used = 0;
  }
  return static_cast<std::byte*>(pages.back().host()) + std::exchange(used, used + size);
}

std::shared_ptr<std::byte> gpu_memory(std::size_t bytes, int index) {
  const cuda::DeviceGuard on(index);
  const cuda::RelaxedCapture relaxed;
  void* data = nullptr;
  cuda::check(cudaMalloc(&data, bytes), "allocating memory");
  const auto release = [](std::byte* memory) {
    const cuda::RelaxedCapture relaxed_too;
    cuda::ignore(cudaFree(memory));
  };
  return {static_cast<std::byte*>(data), release};
}

std::shared_ptr<void> current_gpu(const Queue& queue) {
  if (queue.device().kind == DeviceKind::cpu) return nullptr;
  return std::make_shared<cuda::DeviceGuard>(queue.device().index);
}

std::string gpu_identity(int index) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, index), "asking for a GPU's properties");
  std::string text;
  for (const char byte : properties.uuid.bytes) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(static_cast<unsigned char>(byte)));
    text += digits;
  }
  return text;
}

GpuFacts gpu_facts(int index) {
  cudaDeviceProp properties{};
  int driver = 0, runtime = 0;
  cuda::check(cudaGetDeviceProperties(&properties, index), "asking for a GPU's properties");
  cuda::check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  cuda::check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
  return {properties.name, cuda::version_text(driver), cuda::version_text(runtime),
          static_cast<std::size_t>(properties.l2CacheSize)};
}

namespace {

class OwnReports final : public LoneReports {
 public:
  OwnReports(int index, const std::string& name) : reports_(index, nullptr), name_{name} {}
  Reporter reporter() const noexcept override { return reports_.reporter(); }
  void check() override { reports_.check(name_); }

 private:
  cuda::Reports reports_;
  std::vector<std::string> name_;
};

}  // namespace

std::shared_ptr<LoneReports> lone_reports(int index, const std::string& name) {
  return std::make_shared<OwnReports>(index, name);
}

bool is_captured(Queue& queue) { return cuda::is_capturing(queue); }

}  // namespace allnorm
