// What a layer tells of input that is not finite.
#pragma once

#include <cstdint>
#include <string>

namespace allnorm {

/// A layer's training calls so far that had such input on some rank of its group. NormOptions::nonfinite says what
/// follows.
struct NonFiniteCalls {
  std::int64_t calls = 0;  ///< how many
  std::string last{};      ///< "rank 1: batch_norm, call 3, forward: input is not finite in channel 0 and 2 more"
};

}  // namespace allnorm
