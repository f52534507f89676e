// Memory of the host that GPUs reach, and what a pointer points to.
#pragma once

#include <cstddef>

namespace allnorm::cuda {

/// Page-locked memory of the host, zero at first, mapped into the address space of every GPU. Move-only. The owner
/// keeps it until no kernel and no copy uses it. May be made and destroyed while a stream is being captured.
class PinnedBlock {
 public:
  PinnedBlock() = default;
  /// `bytes` of memory, reached by GPU `index` at device(). Throws device when there is none left.
  PinnedBlock(std::size_t bytes, int index);
  PinnedBlock(PinnedBlock&& other) noexcept;
  PinnedBlock& operator=(PinnedBlock&& other) noexcept;
  ~PinnedBlock();

  void* host() const noexcept { return host_; }
  void* device() const noexcept { return device_; }
  std::size_t size() const noexcept { return size_; }

 private:
  void* host_ = nullptr;
  void* device_ = nullptr;  // the same memory, as GPU `index` addresses it
  std::size_t size_ = 0;    // bytes
};

enum class Place { host, shared, gpu };  // shared: pinned, registered or managed, for host and GPUs alike
struct Located {
  Place place = Place::host;
  int index = 0;  // of the GPU
};
/// Where `data` lies. The calling thread's device must be one with a context. Memory that CUDA does not know is the
/// host's.
Located locate(const void* data) noexcept;

/// Tells expect_host_memory() that this process uses GPU `index`.
void note_cuda_in_use(int index) noexcept;

}  // namespace allnorm::cuda
