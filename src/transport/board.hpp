// Memory that the ranks of one host share: each puts a message there once, and every other one reads it in place.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace allnorm {

/// A message as it is made: one part behind the other.
using Parts = std::span<const std::span<const std::byte>>;

/// One rank's view of it. No function blocks, asks for memory or throws. A rank has `slots` messages there at most: it
/// puts the next one only where all have let go of an earlier one.
class Board {
 public:
  static constexpr std::size_t slots = 4;        ///< of a rank: of exchanges that overlap, and of ranks that are late
  static constexpr std::size_t room = 64 << 10;  ///< bytes of a slot

  /// Of memory for so many ranks.
  static std::size_t bytes_for(std::size_t ranks) noexcept { return ranks * (sizeof(Shelf) + slots * room); }

  Board() = default;  ///< of nobody
  /// `memory`: bytes_for(ranks), zeros before the first of them comes, aligned to a page.
  Board(std::shared_ptr<std::byte> memory, std::size_t ranks, std::size_t rank) noexcept
      : memory_(std::move(memory)), ranks_(ranks), rank_(rank) {}

  explicit operator bool() const noexcept { return memory_ != nullptr; }

  /// Puts a message for so many readers, of whom this rank may be one; false, and nothing is done, where it has no
  /// room.
  bool put(std::uint64_t tag, Parts parts, std::size_t readers) noexcept;
  /// What that rank has put under this tag, until the reader lets go of it; empty while there is nothing.
  std::span<const std::byte> find(std::size_t from, std::uint64_t tag) const noexcept;
  /// This rank has found that message, and does not look at it any more.
  void let_go(std::size_t from, const std::byte* message) noexcept {
    const auto at = static_cast<std::size_t>(message - slot(from, 0)) / room;
    shelf(from).readers[at].fetch_sub(1, std::memory_order_release);
  }

 private:
  static constexpr std::size_t line = 64;  // bytes of the cache: what ranks write lies apart
  /// A rank's slots. Zeros are such a shelf with nothing on it.
  struct Shelf {
    // The owner writes them, and readers look there: one line.
    alignas(line) std::array<std::atomic<std::uint64_t>, slots> labels;   // tag + 1 of what lies there, or 0
    std::array<std::uint64_t, slots> sizes;                               // bytes
    alignas(line) std::array<std::atomic<std::uint32_t>, slots> readers;  // who have not let go of it
  };
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

  Shelf& shelf(std::size_t rank) const noexcept { return reinterpret_cast<Shelf*>(memory_.get())[rank]; }
  std::byte* slot(std::size_t rank, std::size_t at) const noexcept {
    return memory_.get() + ranks_ * sizeof(Shelf) + (rank * slots + at) * room;
  }

  std::shared_ptr<std::byte> memory_;
  std::size_t ranks_ = 0, rank_ = 0;
};

}  // namespace allnorm
