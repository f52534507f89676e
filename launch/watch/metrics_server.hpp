// The metrics of this process's ranks, for Prometheus.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/watch/rank_watch.hpp"

namespace allnorm::launch {

/// "[ADDRESS:]PORT".
struct Endpoint {
  std::string address = "127.0.0.1";
  int port = 0;
};
/// Throws invalid_argument for what is no such text.
Endpoint endpoint_of(const std::string& text);

/// Answers GET /metrics on a thread of its own until it is destroyed.
class MetricsServer {
 public:
  using Source = std::function<std::vector<RankMetrics>()>;

  /// At the port that `where` names; of ranks that are processes at that port plus the local rank; at any for 0, which
  /// a line tells. A port that is taken is a warning.
  MetricsServer(const std::string& where, int rank, bool processes, Source source);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace allnorm::launch
