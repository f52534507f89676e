// What is known of the ranks of an exchange that takes long.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace allnorm {

/// One rank of it, as it said itself or was last heard of.
struct LateRank {
  /// What it does.
  enum class Is : std::uint8_t {
    waiting,    ///< in an exchange, and has said so
    missing,    ///< waited for, and silent: it is late, hangs, was stopped or is gone
    elsewhere,  ///< silent, and nobody waits for it
  };
  int rank = 0;           ///< among all that the transport joins
  std::string name{};     ///< "rank 3 (node7)": see Communicator::name_of
  Is is = Is::elsewhere;  ///< what it does
  /// The layer's name, the call's number and "forward" or another direction; an empty layer where nothing was heard.
  std::string layer{};
  std::string direction{};  ///< see layer
  std::uint64_t call = 0;   ///< see layer
  double seconds = 0;       ///< of a rank that waits: since it began
  std::string host{};       ///< of a rank that waits
  std::int64_t pid = 0;     ///< of a rank that waits: its process
};

/// What a rank finds out that waits long, before it says so.
struct LateReport {
  std::string line{};             ///< who is missing: of an error, or of a warning
  int rank = 0;                   ///< this one, among all
  bool speaks = true;             ///< it tells people: the first of those that wait, unless it is 2 s late itself
  std::vector<LateRank> ranks{};  ///< in order, this one among them; beyond 64 only those who are waited for
};

}  // namespace allnorm
