// What the layers' statistics looked like in an epoch, for the log and the report.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "launch/train/network.hpp"
#include "launch/watch/rank_watch.hpp"

namespace allnorm::launch::train {

/// A number per channel, summed up.
struct Spread {
  double mean = 0, max = 0;
};

/// One layer of the batch_norm family on one rank, at its last training call of an epoch.
struct LayerStatistics {
  Spread gap;                      ///< |mean of the call - running mean| / running standard deviation
  bool renorm = false;             ///< the next three mean something
  Spread r, d;                     ///< |d|
  double clipped = 0;              ///< share of channels whose r or d lies on its bound
  std::vector<PastDistance> past;  ///< [lag - 1], averages over the epoch's measurements; empty without a window
};

/// Statistics of every layer that has running statistics; empty where none has.
std::vector<LayerStatistics> measure(Network& network);

/// The same for those who watch the rank.
std::vector<LayerMetric> metrics_of(const std::vector<LayerStatistics>& layers);

/// The average of several measurements of the same layers, lag by lag over those that have the lag.
class PastAverage {
 public:
  struct Sum {
    PastDistance distances;
    std::int64_t count = 0;
  };
  using Sums = std::vector<std::vector<Sum>>;  // [layer][lag - 1]

  PastAverage() = default;
  explicit PastAverage(Sums sums) : sums_(std::move(sums)) {}
  const Sums& sums() const noexcept { return sums_; }

  void add(const PastDistances& distances);
  /// Puts the averages into the layers' statistics.
  void finish(std::vector<LayerStatistics>& layers) const;

 private:
  Sums sums_;
};

}  // namespace allnorm::launch::train
