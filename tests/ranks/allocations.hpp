// The memory that a program asks for, counted, and refused where a test says so. It replaces operator new.
#pragma once

#include <cstdint>

namespace allocations {

/// Blocks of all threads that were asked for and not given back.
std::int64_t alive() noexcept;
/// Blocks that this thread has asked for.
std::int64_t asked() noexcept;

/// For as long as it is there, this thread is refused memory once, after `more` blocks that it still gets.
class Refusal {
 public:
  static constexpr std::int64_t none = -1;
  explicit Refusal(std::int64_t more) noexcept;
  ~Refusal();
  Refusal(const Refusal&) = delete;
  Refusal& operator=(const Refusal&) = delete;
  /// It has come to that.
  bool happened() const noexcept;
};

}  // namespace allocations
