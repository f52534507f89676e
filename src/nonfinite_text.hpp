// What is told of a call whose input is not finite.
#pragma once

#include <cstdint>
#include <string>

#include "allnorm/communicator.hpp"

namespace allnorm {

/// Where it is: `count` channels or groups, of which `first` is the first.
struct NonFinitePlaces {
  const char* kind = "channel";
  std::uint64_t first = 0, count = 0;
};

/// "rank 1: bn, call 3, forward: input is not finite in channel 0 and 2 more". `ranks`: see rank_bit().
std::string nonfinite_text(std::uint64_t ranks, const Communicator& group, const Header& call,
                           const NonFinitePlaces& places);
/// The same as an error.
[[noreturn]] void fail_as_nonfinite(const std::string& text);

}  // namespace allnorm
