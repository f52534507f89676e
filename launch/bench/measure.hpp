// What a layer takes: times of calls, of the exchange in them, and of memory beside them.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "launch/bench/check.hpp"

namespace allnorm::launch::bench {

/// Of one case on all ranks. Times are in microseconds: quantiles of a rank's calls, the largest of the ranks. On a GPU
/// between events: of single calls (eager), or of replays of a graph over the number of its calls (graph).
struct Measurement {
  struct Times {
    double median = 0, p99 = 0;
  };
  /// Of a layer that exchanges; forward and backward together.
  struct Exchange {
    double alone = 0;    ///< messages of as many bytes with nothing between them; on a GPU records in its memory
    double local = 0;    ///< the calls of the same layer with sync=none
    double message = 0;  ///< bytes of payload that a rank sends, counted once however many peers it goes to
    int ranks = 1;       ///< of a sync group
  };

  const Case* of = nullptr;
  std::string mode{};     ///< "eager" or "graph"; empty on a CPU
  std::size_t sets = 1;   ///< of data, which calls take in turn
  std::string failure{};  ///< why the calls cannot be captured: then nothing that follows is known but bytes and triad
  Times forward{}, backward{};
  double bytes = 0;       ///< of the input, on each rank
  double triad_gb_s = 0;  ///< y = x + s z of as many bytes, on each rank at the same time; on a GPU y = x
  std::optional<Exchange> exchange{};
  std::optional<Check> check{};  ///< of the rank with the most

  double both() const noexcept { return forward.median + backward.median; }
};

/// Of all ranks, which call it together: one for a CPU, one for each mode for a GPU.
std::vector<Measurement> measure(const Plan& plan, const Case& of, Rank& rank);

}  // namespace allnorm::launch::bench
