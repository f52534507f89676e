// CPU queues: the host's memory; every call is done when it returns.
#include <pthread.h>

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

#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else  // a compiler without its sanitizers
#define ASAN_POISON_MEMORY_REGION(data, size) ((void)(data), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(data, size) ((void)(data), (void)(size))
#endif

namespace allnorm {

namespace {

constexpr std::size_t line = 64;  // of a cache, and the widest vector
constexpr std::align_val_t alignment{line};

/// Memory that was given back and waits for who wants as much: a layer does in its next call, so that no call but the
/// first asks the system for any. Sizes are powers of two; blocks beyond the largest one are not kept, nor more than
/// `most_kept` bytes of all together.
class KeptBlocks {
 public:
  /// At most 2^62 bytes (sizes.hpp), aligned to a line; null where there are none left.
  void* take(std::size_t bytes) noexcept {
    const std::size_t kind = bytes == 0 ? 0 : static_cast<std::size_t>(std::bit_width((bytes - 1) / line));
    Block* block = nullptr;
    if (kind < kinds) {
      const std::lock_guard lock(mutex_);
      if ((block = free_[kind]) != nullptr) pop(kind);
    }
    if (block == nullptr) block = make(kind, bytes);
    if (block == nullptr && free_all()) block = make(kind, bytes);  // what waits may be what is lacking
    if (block == nullptr) return nullptr;
    std::byte* const data = reinterpret_cast<std::byte*>(block) + line;
    if (kind < kinds) {  // the address sanitizer knows what is given out
      ASAN_POISON_MEMORY_REGION(data, line << kind);
      ASAN_UNPOISON_MEMORY_REGION(data, bytes);
    }
    return data;
  }

  void give_back(void* data) noexcept {
    auto* const block = reinterpret_cast<Block*>(static_cast<std::byte*>(data) - line);
    if (block->kind < kinds) {
      const std::size_t size = line << block->kind;
      const std::lock_guard lock(mutex_);
      if (size <= most_kept - kept_) {
        ASAN_POISON_MEMORY_REGION(data, size);
        block->next = std::exchange(free_[block->kind], block);
        kept_ += size;
        return;
      }
    }
    free(block);
  }

  // A process may fork while another thread is in here: its child must not wait for that thread, which it does not
  // have.
  void lock() noexcept { mutex_.lock(); }
  void unlock() noexcept { mutex_.unlock(); }

 private:
  /// In the line before the memory.
  struct Block {
    Block* next = nullptr;
    std::size_t kind = 0;  // of line << kind bytes
  };
  static constexpr std::size_t kinds = 17;  // up to 4 MiB
  static constexpr std::size_t most_kept = std::size_t{256} << 20;

  static Block* make(std::size_t kind, std::size_t bytes) noexcept {
    void* const made = ::operator new(line + (kind < kinds ? line << kind : bytes), alignment, std::nothrow);
    return made != nullptr ? new (made) Block{nullptr, kind} : nullptr;
  }
  static void free(Block* block) noexcept {
    if (block->kind < kinds) ASAN_UNPOISON_MEMORY_REGION(block, line + (line << block->kind));
    ::operator delete(block, alignment);
  }
  void pop(std::size_t kind) noexcept {
    free_[kind] = free_[kind]->next;
    kept_ -= line << kind;
  }
  /// False where there was nothing.
  bool free_all() noexcept {
    const std::lock_guard lock(mutex_);
    const bool some = kept_ > 0;
    for (std::size_t kind = 0; kind < kinds; ++kind)
      while (Block* const block = free_[kind]) {
        pop(kind);
        free(block);
      }
    return some;
  }

  std::mutex mutex_;
  std::array<Block*, kinds> free_{};
  std::size_t kept_ = 0;  // bytes
};

// Of all queues, and never destroyed: a static object's buffers are given back when the process ends.
KeptBlocks& kept() {
  static KeptBlocks* const blocks = [] {
    ::pthread_atfork([] { kept().lock(); }, [] { kept().unlock(); }, [] { kept().unlock(); });
    return new KeptBlocks;
  }();
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
