// CPU queues: the host's memory; every call is done when it returns.
#include <sanitizer/asan_interface.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "allnorm/device.hpp"
#include "allnorm/error.hpp"
#include "src/runtime/parallel.hpp"

namespace allnorm {

namespace {

constexpr std::size_t line = 64;  // of a cache, and the widest vector
constexpr std::align_val_t alignment{line};

/// Memory that was given back and waits for who wants as much: a layer does in its next call, so that no call but the
/// first asks the system for any. Sizes are powers of two; blocks beyond the largest one are not kept.
class KeptBlocks {
 public:
  /// Aligned to a line; null where there is none left.
  void* take(std::size_t bytes) noexcept {
    const auto kind = static_cast<std::size_t>(std::bit_width((bytes - 1) / line));
    Block* block = nullptr;
    if (kind < kinds) {
      const std::lock_guard lock(mutex_);
      block = free_[kind];
      if (block != nullptr) free_[kind] = block->next;
    }
    if (block == nullptr) {
      void* const made = ::operator new(line + (kind < kinds ? line << kind : bytes), alignment, std::nothrow);
      if (made == nullptr) return nullptr;
      block = new (made) Block{nullptr, kind};
    }
    std::byte* const data = reinterpret_cast<std::byte*>(block) + line;
    if (kind < kinds) {  // the address sanitizer knows what is given out
      ASAN_POISON_MEMORY_REGION(data, line << kind);
      ASAN_UNPOISON_MEMORY_REGION(data, bytes);
    }
    return data;
  }

  void give_back(void* data) noexcept {
    auto* const block = reinterpret_cast<Block*>(static_cast<std::byte*>(data) - line);
    if (block->kind >= kinds) return ::operator delete(block, alignment);
    ASAN_POISON_MEMORY_REGION(data, line << block->kind);
    const std::lock_guard lock(mutex_);
    block->next = std::exchange(free_[block->kind], block);
  }

 private:
  /// In the line before the memory.
  struct Block {
    Block* next = nullptr;
    std::size_t kind = 0;  // of line << kind bytes
  };
  static constexpr std::size_t kinds = 17;  // up to 4 MiB

  std::mutex mutex_;
  std::array<Block*, kinds> free_{};
};

// Of all queues, and never destroyed: a static object's buffers are given back when the process ends.
KeptBlocks& kept() {
  static auto* const blocks = new KeptBlocks;
  return *blocks;
}

}  // namespace

void CpuQueue::leave_multiprocessors(int) {
  fail(Code::invalid_argument, "a queue on cpu has no multiprocessors to leave to others, must be on a GPU");
}

void* CpuQueue::allocate(std::size_t bytes, Fill fill) {
  void* data = kept().take(bytes);
  expect(data != nullptr, Code::device, [&] { return "out of memory: " + std::to_string(bytes) + " bytes on cpu"; });
  if (fill == Fill::zero) std::memset(data, 0, bytes);
  return data;
}

void CpuQueue::release(void* data) noexcept { kept().give_back(data); }

void CpuQueue::copy_to_device(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void CpuQueue::copy_to_host(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void CpuQueue::copy_on_device(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

void CpuQueue::expect_memory(const void* data, const char* name) const { expect_host_memory(data, name); }

}  // namespace allnorm
