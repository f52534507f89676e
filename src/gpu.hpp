// What host code that sees no CUDA header needs of GPUs. (src/cuda/host.cpp or src/cuda/none.cpp)
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "allnorm/communicator.hpp"

namespace allnorm {

/// Page-locked memory of the host, which copies from and to GPU `index` use directly. Throws device when there is none
/// left, unsupported where this build has no CUDA.
std::shared_ptr<std::byte> pinned_memory(std::size_t bytes, int index);

/// The same, zero at first, for words that kernels write whenever they come to it. It is there to the process's end:
/// freeing it would wait for all streams of the GPU.
std::byte* lasting_memory(std::size_t bytes, int index);

/// Memory of GPU `index` that other libraries may be given: it belongs to no stream and no pool. Freeing it waits for
/// the GPU. Throws device, unsupported.
std::shared_ptr<std::byte> gpu_memory(std::size_t bytes, int index);

/// Makes the queue's GPU the calling thread's current device until the result ends; null for a CPU queue.
std::shared_ptr<void> current_gpu(const Queue& queue);

/// The UUID of GPU `index`: the same text in every process that uses this GPU, whatever number it has there. Throws
/// device, unsupported.
std::string gpu_identity(int index);

/// What times on a GPU depend on, beside its clocks.
struct GpuFacts {
  std::string name{};               ///< "NVIDIA H200"
  std::string driver{}, runtime{};  ///< versions of CUDA: the newest that the driver can, the one in this build
  std::size_t l2_bytes = 0;         ///< of its L2 cache
};
/// Throws device, unsupported.
GpuFacts gpu_facts(int index);

/// Where the kernels of a rank without peers report, and what the host reads there. Nothing has a deadline.
class LoneReports {
 public:
  virtual ~LoneReports() = default;
  virtual Reporter reporter() const noexcept = 0;
  /// Throws what kernels have found since the last call.
  virtual void check() = 0;
};
/// In memory that all GPUs reach, for the rank of that name. Throws device, unsupported.
std::shared_ptr<LoneReports> lone_reports(int index, const std::string& name);

/// True while the stream of a CUDA queue is being captured in a graph.
bool is_captured(Queue& queue);

}  // namespace allnorm
