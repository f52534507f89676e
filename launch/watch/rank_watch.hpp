// What one rank tells those who watch it: its flight record, its trace and its metrics.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "allnorm/communicator.hpp"
#include "allnorm/late.hpp"
#include "launch/ranks.hpp"
#include "launch/watch/trace.hpp"

namespace allnorm::launch {

struct Failure;

/// Seconds since 1970 that never go back while the process runs.
double wall_clock();

/// The name of a direction: "forward".
std::string_view to_string(Direction direction) noexcept;

/// A call of a layer, or an exchange that belongs to none. Times by wall_clock(); 0: not yet.
struct WatchedCall {
  std::string layer{};
  Direction direction = Direction::agreement;
  std::uint64_t number = 0, bytes = 0;  ///< bytes: of this rank's messages in it
  double began = 0, ended = 0;
  double exchange_began = 0, exchange_ended = 0;  ///< of its last exchange; ended when all of its exchanges have
  int exchanges = 0;                              ///< under way
};

/// What is known of the exchanges of one layer and direction.
struct ExchangeMetrics {
  static constexpr std::array<double, 8> bounds{1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100};  ///< seconds
  std::array<std::uint64_t, bounds.size()> up_to{};                                        ///< [bound] not cumulative
  std::uint64_t count = 0, bytes = 0;
  double seconds = 0;
  std::optional<double> skew{};  ///< of the last one: seconds between the first rank's start of it and the last one's
  int slowest = 0;               ///< with skew: whose start was the last, among all ranks
};

/// A number of one layer, by the name of the metric and what tells it from others of the layer.
struct LayerMetric {
  std::string name{}, layer{};
  std::vector<std::pair<std::string, std::string>> labels{};
  double value = 0;
};

struct RankMetrics {
  int rank = 0;
  std::string transport{};
  std::map<std::pair<std::string, Direction>, ExchangeMetrics> exchanges{};
  std::vector<LayerMetric> layers{};
  double started = 0, last_exchange = 0, last_checkpoint = 0;  ///< by wall_clock(); 0: none yet
  std::uint64_t steps = 0, errors = 0;
};

/// One rank's. Calls, exchanges and steps are told by the rank's thread; everything may be asked for by any, also while
/// the rank hangs.
class RankWatch {
 public:
  static constexpr std::size_t kept_calls = 1024;

  /// Removes the record that an earlier run left in options.record. Throws invalid_input where what is to be written
  /// cannot be.
  RankWatch(const RankOptions& options, int rank, int size);
  RankWatch(const RankWatch&) = delete;
  RankWatch& operator=(const RankWatch&) = delete;

  /// `world`, whose exchanges are told here, and those of its groups. The watch must outlive it.
  std::shared_ptr<Communicator> over(std::shared_ptr<Communicator> world);

  void begin_call(std::string_view layer, Direction direction);
  /// One that failed stays in the record as under way.
  void end_call(bool failed) noexcept;
  /// One exchange of several that may be under way at once.
  struct Exchange {
    std::uint64_t call = 0;    // whose it is, counted from the first one
    bool own = false;          // the call is the exchange itself, and belongs to no layer's
    std::uint64_t number = 0;  // of the rank's exchanges
    double began = 0;
    std::string layer{};
    Direction direction = Direction::agreement;
  };
  /// An exchange under this header, where the host knows it.
  Exchange begin_exchange(const Header* header, std::size_t doubles);
  /// `arrivals`: when each rank of the group began it, in microseconds since 1970, empty where that is not known;
  /// `group` names them.
  void end_exchange(const Exchange& exchange, const std::vector<std::uint64_t>& arrivals, const Communicator& group);
  void break_exchange(const Exchange& exchange) noexcept;
  void begin_step();
  void end_step(bool failed) noexcept;
  void set_layers(std::vector<LayerMetric> layers);
  void saved_checkpoint();

  // The end of the rank: written to the record, where there is one, before these return.
  void late(const LateReport& report) noexcept;
  void failed(const Failure& failure) noexcept;
  void finished() noexcept;
  /// "SIGTERM", or that the process leaves a rank behind that does not come back. One whose end is written stays.
  void ends_in(std::string_view how) noexcept;

  /// Nothing where the rank's thread was stopped while it told something.
  std::optional<RankMetrics> metrics() const;
  int number() const noexcept { return rank_; }

 private:
  struct End {
    std::string how{}, kind{}, line{};
    int code = 0;
  };
  void begin(WatchedCall call);
  /// Null for one that is no longer kept.
  WatchedCall* call_of(const Exchange& exchange) noexcept;
  /// Of this exchange, or of what began last.
  void trace_end(double now, bool failed, const nlohmann::json& told, const Exchange* exchange = nullptr) noexcept;
  void write(const End& end, const LateReport* report) noexcept;
  std::unique_lock<std::mutex> lock_in_time() const;

  int rank_, size_;
  std::string record_;  // its file; empty: none
  mutable std::mutex mutex_;
  std::optional<Trace> trace_;
  std::deque<WatchedCall> calls_;
  std::uint64_t dropped_ = 0;            // calls before those
  std::optional<std::uint64_t> call_{};  // the layer's call under way, counted as Exchange::call
  std::uint64_t exchanges_ = 0;          // begun
  std::map<std::pair<std::string, Direction>, std::uint64_t> numbers_;
  RankMetrics metrics_;
  double step_began_ = 0;
  std::string ended_{};  // how, once it is told
};

/// Something of a rank, from the time when this is made until it goes, by an exception or not.
class WatchScope {
 public:
  explicit WatchScope(RankWatch* watch) noexcept : watch_(watch) {}
  WatchScope(const WatchScope&) = delete;
  WatchScope& operator=(const WatchScope&) = delete;

 protected:
  ~WatchScope() = default;
  bool failed() const noexcept { return std::uncaught_exceptions() > exceptions_; }

  RankWatch* const watch_;  // null where nobody asks

 private:
  int exceptions_ = std::uncaught_exceptions();
};

/// A call of a layer.
class WatchCall : WatchScope {
 public:
  WatchCall(RankWatch* watch, std::string_view layer, Direction direction) : WatchScope(watch) {
    if (watch_ != nullptr) watch_->begin_call(layer, direction);
  }
  ~WatchCall() {
    if (watch_ != nullptr) watch_->end_call(failed());
  }
};

/// A step of a run, or an update of a training.
class WatchStep : WatchScope {
 public:
  explicit WatchStep(RankWatch* watch) : WatchScope(watch) {
    if (watch_ != nullptr) watch_->begin_step();
  }
  ~WatchStep() {
    if (watch_ != nullptr) watch_->end_step(failed());
  }
};

/// The file of a rank's record in a folder.
std::string record_name(int rank);

}  // namespace allnorm::launch
