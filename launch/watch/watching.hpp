// What a process tells those who watch it: the watches of its ranks, and who asks for them.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "launch/ranks.hpp"
#include "launch/watch/metrics_server.hpp"
#include "launch/watch/rank_watch.hpp"

namespace allnorm::launch {

/// Throws invalid_argument and unsupported for options of watching that this build or run cannot serve.
void check_watching(const RankOptions& options);

/// One in a process, while its ranks run. Make it before any other thread.
class Watching {
 public:
  explicit Watching(const RankOptions& options);
  ~Watching();
  Watching(const Watching&) = delete;
  Watching& operator=(const Watching&) = delete;

  /// The watch of a rank of this process; null where nothing is asked for. Throws as RankWatch.
  RankWatch* rank(int rank, int size);
  /// Of the rank by its number, where it has one.
  RankWatch* find(int rank) const noexcept;
  /// Tells the records of all ranks that have not ended how they do.
  void ends_in(std::string_view how) noexcept;

  /// A rank of this process has come to its deadline: the one that speaks tells it, what another one knows is kept.
  void late(const LateReport& report) noexcept;
  /// Nobody of this process has told what is kept.
  bool keeps_report() const noexcept;
  /// Tells it: the rank that should have spoken may have been stopped meanwhile, or have had no time.
  void tell_report() noexcept;

  /// For a program that takes SIGTERM itself: writes the records of the process's ranks, if there is a Watching.
  static void terminated() noexcept;

 private:
  void take_sigterm();

  const RankOptions& options_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<RankWatch>> ranks_;
  std::optional<LateReport> kept_{};
  bool spoken_ = false;
  std::unique_ptr<MetricsServer> server_;
  std::atomic<bool> done_ = false;
  std::thread sigterm_;
};

}  // namespace allnorm::launch
