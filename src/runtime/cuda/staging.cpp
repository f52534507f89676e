// The ring of pinned blocks behind copies to a GPU.
#include "src/runtime/cuda/staging.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "src/runtime/cuda/errors.hpp"

namespace allnorm::cuda {

Staging::~Staging() {
  for (const Slot& slot : slots_) ignore(cudaEventDestroy(slot.done));
}

Staging::Slot Staging::make() const {
  Slot slot{PinnedBlock(block_size, index_), nullptr};
  check(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming), "making an event");
  return slot;
}

// The block that was used longest ago, if its copy is done; otherwise a new one, while there may be more.
Staging::Slot& Staging::take() {
  if (slots_.empty()) slots_.push_back(make());
  next_ %= slots_.size();
  const cudaError_t status = cudaEventQuery(slots_[next_].done);
  if (status == cudaErrorNotReady) {
    ignore(status);
    if (slots_.size() < most_blocks)
      slots_.insert(slots_.begin() + static_cast<std::ptrdiff_t>(next_), make());
    else
      check(cudaEventSynchronize(slots_[next_].done), "a copy to the device");
  } else {
    check(status, "a copy to the device");
  }
  return slots_[next_++];
}

void Staging::copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  const RelaxedCapture relaxed;  // of another stream
  for (std::size_t begin = 0; begin < bytes; begin += block_size) {
    const std::size_t piece = std::min(block_size, bytes - begin);
    const Slot& slot = take();
    std::memcpy(slot.block.host(), static_cast<const std::byte*>(from) + begin, piece);
    check(
        cudaMemcpyAsync(static_cast<std::byte*>(to) + begin, slot.block.host(), piece, cudaMemcpyHostToDevice, stream),
        "a copy to the device");
    check(cudaEventRecord(slot.done, stream), "a copy to the device");
  }
}

}  // namespace allnorm::cuda
