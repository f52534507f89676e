// The way of host memory to a GPU, such that the caller has its memory back at once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "src/runtime/cuda/memory.hpp"

namespace allnorm::cuda {

/// A ring of pinned blocks that copies to GPU `index` go through: CUDA promises of no kind of host memory that an
/// asynchronous copy is done with it on return. Move-only, for one stream.
class Staging {
 public:
  static constexpr std::size_t block_size = std::size_t{256} << 10;  // bytes
  static constexpr std::size_t most_blocks = 16;

  explicit Staging(int index) : index_(index) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  /// The stream's work must be done.
  ~Staging();

  /// Copies in the order of `stream`, which is not being captured. More than the ring holds waits for the ring's
  /// earlier copies.
  void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

 private:
  struct Slot {
    PinnedBlock block;
    cudaEvent_t done = nullptr;  // recorded behind the copy out of the block
  };
  Slot& take();
  Slot make() const;

  int index_;
  std::vector<Slot> slots_;  // in the order of use, beginning at next_
  std::size_t next_ = 0;
};

}  // namespace allnorm::cuda
