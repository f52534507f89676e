#include "src/transport/board.hpp"

#include <algorithm>
#include <cstring>

namespace allnorm {

namespace {

constexpr std::size_t most_ahead = 2 << 10;  // bytes; further on the processor sees where this goes

}  // namespace

bool Board::put(std::uint64_t tag, Parts parts, std::size_t readers) noexcept {
  Shelf& own = shelf(rank_);
  std::size_t size = 0, free = slots;
  for (const auto& part : parts) size += part.size();
  // Of what all have let go of, the label goes too: it could come again, 2^32 exchanges later.
  for (std::size_t at = slots; at-- > 0;)
    if (own.readers[at].load(std::memory_order_acquire) == 0) {
      if (own.labels[at].load(std::memory_order_relaxed) != 0) own.labels[at].store(0, std::memory_order_relaxed);
      free = at;
    }
  if (free == slots || size > room) return false;
  std::byte* to = slot(rank_, free);
  for (const auto& part : parts) {
    if (!part.empty()) std::memcpy(to, part.data(), part.size());
    to += part.size();
  }
  own.sizes[free] = size;
  own.readers[free].store(static_cast<std::uint32_t>(readers), std::memory_order_relaxed);
  own.labels[free].store(tag + 1, std::memory_order_release);
  return true;
}

std::span<const std::byte> Board::find(std::size_t from, std::uint64_t tag) const noexcept {
  const Shelf& other = shelf(from);
  for (std::size_t at = 0; at < slots; ++at) {
    if (other.labels[at].load(std::memory_order_acquire) != tag + 1) continue;
    const std::byte* const message = slot(from, at);
    // All of it comes from the other rank's core: asked for at once, lines come side by side.
    for (std::size_t i = 0; i < std::min(other.sizes[at], std::uint64_t{most_ahead}); i += line)
      __builtin_prefetch(message + i);
    return {message, other.sizes[at]};
  }
  return {};
}

}  // namespace allnorm
