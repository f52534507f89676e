// The ranks over which a layer takes its statistics.
#pragma once

#include <cstdint>

namespace allnorm {

/// The ranks over which a layer adds its statistics: none, all, or groups of `ranks` consecutive ranks (the last may be
/// smaller).
struct Sync {
  static constexpr std::int64_t none = 0;    ///< this rank alone
  static constexpr std::int64_t world = -1;  ///< all
  std::int64_t ranks = none;                 ///< none, world, or the size of a group
  /// The same ranks.
  friend bool operator==(const Sync&, const Sync&) = default;
};

}  // namespace allnorm
