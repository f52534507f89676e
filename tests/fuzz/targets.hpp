// The readers of files that come from elsewhere, each as a function of a file's bytes: what is fuzzed, and replayed.
#pragma once

#include <cstddef>
#include <span>

namespace allnorm::fuzz {

struct Target {
  const char* name;  ///< and that of its folder in the corpus
  /// Returns for any bytes: a file is read, or refused by an Error of invalid_input with a line of its own. Everything
  /// else is a fault, and ends the process.
  void (*read)(std::span<const std::byte> bytes);
};

/// All of them.
std::span<const Target> targets() noexcept;

}  // namespace allnorm::fuzz
