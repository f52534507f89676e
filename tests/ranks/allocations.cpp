#include "allocations.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace {

constexpr std::int64_t never = allocations::Refusal::none;

std::atomic<std::int64_t> blocks{0};
thread_local std::int64_t asked_for = 0, left = never;  // left: blocks until the one that is refused

void* block(std::size_t bytes, std::size_t alignment) noexcept {
  ++asked_for;
  if (left != never && left-- == 0) return nullptr;
  const std::size_t size = (std::max(bytes, std::size_t{1}) + alignment - 1) / alignment * alignment;
  void* const made =
      alignment > __STDCPP_DEFAULT_NEW_ALIGNMENT__ ? std::aligned_alloc(alignment, size) : std::malloc(size);
  if (made != nullptr) blocks.fetch_add(1, std::memory_order_relaxed);
  return made;
}
void* block_or_throw(std::size_t bytes, std::size_t alignment) {
  void* const made = block(bytes, alignment);
  if (made == nullptr) throw std::bad_alloc();
  return made;
}
void give_back(void* made) noexcept {
  if (made == nullptr) return;
  blocks.fetch_sub(1, std::memory_order_relaxed);
  std::free(made);
}

constexpr std::size_t usual = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

namespace allocations {

std::int64_t alive() noexcept { return blocks.load(); }
std::int64_t asked() noexcept { return asked_for; }
Refusal::Refusal(std::int64_t more) noexcept { left = more; }
Refusal::~Refusal() { left = never; }
bool Refusal::happened() const noexcept { return left == never; }

}  // namespace allocations

// NOLINTBEGIN(misc-new-delete-overloads)
void* operator new(std::size_t bytes) { return block_or_throw(bytes, usual); }
void* operator new[](std::size_t bytes) { return block_or_throw(bytes, usual); }
void* operator new(std::size_t bytes, std::align_val_t a) { return block_or_throw(bytes, std::size_t(a)); }
void* operator new[](std::size_t bytes, std::align_val_t a) { return block_or_throw(bytes, std::size_t(a)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return block(bytes, usual); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return block(bytes, usual); }
void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return block(bytes, std::size_t(a));
}
void* operator new[](std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
  return block(bytes, std::size_t(a));
}
void operator delete(void* made) noexcept { give_back(made); }
void operator delete[](void* made) noexcept { give_back(made); }
void operator delete(void* made, std::size_t) noexcept { give_back(made); }
void operator delete[](void* made, std::size_t) noexcept { give_back(made); }
void operator delete(void* made, std::align_val_t) noexcept { give_back(made); }
void operator delete[](void* made, std::align_val_t) noexcept { give_back(made); }
void operator delete(void* made, std::size_t, std::align_val_t) noexcept { give_back(made); }
void operator delete[](void* made, std::size_t, std::align_val_t) noexcept { give_back(made); }
// NOLINTEND(misc-new-delete-overloads)
