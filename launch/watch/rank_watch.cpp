#include "launch/watch/rank_watch.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <thread>

#include <nlohmann/json.hpp>

#include "build_config.hpp"
#include "launch/apply.hpp"
#include "launch/files/atomic_file.hpp"
#include "launch/files/input_file.hpp"
#include "launch/late.hpp"
#include "launch/ranks_run.hpp"
#include "launch/terminal.hpp"
#include "launch/watch/record.hpp"
#include "launch/watch/watched_communicator.hpp"

namespace allnorm::launch {

namespace {

using Json = nlohmann::json;

std::string host() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

// By severity(): whose failure it is.
constexpr const char* kinds[] = {kind_own, kind_mismatch, kind_late, kind_peer};

std::string text_of(std::string_view layer, Direction direction) {
  return std::string(layer) + " " + std::string(to_string(direction));
}
std::string text_of(const RankWatch::Exchange& exchange) {
  return "exchange of " + text_of(exchange.layer, exchange.direction);
}

// "rank 3 (node7)" is 3.
int number_of(const std::string& name) {
  int number = 0;
  const auto at = std::find_if(name.begin(), name.end(), [](char c) { return '0' <= c && c <= '9'; });
  std::from_chars(name.data() + (at - name.begin()), name.data() + name.size(), number);
  return number;
}

Json json_of(const WatchedCall& call) {
  const auto time = [](double seconds) { return seconds == 0 ? Json() : Json(seconds); };
  Json json{{"layer", call.layer}, {"call", call.number},       {"direction", to_string(call.direction)},
            {"began", call.began}, {"ended", time(call.ended)}, {"bytes", call.bytes}};
  if (call.exchange_began > 0) json["exchange"] = {call.exchange_began, time(call.exchange_ended)};
  return json;
}

}  // namespace

double wall_clock() {
  using namespace std::chrono;
  static const auto start = steady_clock::now();
  static const double at_start = duration<double>(system_clock::now().time_since_epoch()).count();
  return at_start + duration<double>(steady_clock::now() - start).count();
}

std::string_view to_string(Direction direction) noexcept {
  constexpr std::string_view names[] = {"forward", "backward", "gradients", "agreement", "split"};
  return names[static_cast<std::size_t>(direction)];
}

std::string record_name(int rank) { return "record.r" + std::to_string(rank) + ".json"; }

RankWatch::RankWatch(const RankOptions& options, int rank, int size) : rank_(rank), size_(size) {
  metrics_.rank = rank;
  metrics_.started = wall_clock();
  if (!options.trace.empty()) trace_.emplace(expand(options.trace, rank, 0), rank);
  if (options.record.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(options.record, error);
  record_ = options.record + "/" + record_name(rank);
  AtomicFile probe(record_);
  std::filesystem::remove(record_, error);
}

std::shared_ptr<Communicator> RankWatch::over(std::shared_ptr<Communicator> world) {
  {
    const std::lock_guard lock(mutex_);
    metrics_.transport = world->transport();
  }
  return watched(std::move(world), *this);
}

void RankWatch::begin(WatchedCall call) {
  if (calls_.size() == kept_calls) {
    calls_.pop_front();
    ++dropped_;
  }
  calls_.push_back(std::move(call));
}

void RankWatch::begin_call(std::string_view layer, Direction direction) {
  const std::lock_guard lock(mutex_);
  const double now = wall_clock();
  WatchedCall call{std::string(layer), direction};
  call.number = numbers_[{call.layer, direction}]++;
  call.began = now;
  begin(std::move(call));
  call_ = dropped_ + calls_.size() - 1;
  if (trace_) trace_->begin("call", text_of(layer, direction), now, Json::object());
}

WatchedCall* RankWatch::call_of(const Exchange& exchange) noexcept {
  return exchange.call < dropped_ ? nullptr : &calls_[exchange.call - dropped_];
}

void RankWatch::end_call(bool failed) noexcept {
  const std::lock_guard lock(mutex_);
  if (!call_) return;
  WatchedCall& call = calls_[*std::exchange(call_, std::nullopt) - dropped_];
  const double now = wall_clock();
  if (!failed) call.ended = now;
  trace_end(now, failed, {{"call", call.number}, {"bytes", call.bytes}});
}

// Called while an error is on its way too: want of memory costs the trace its rest.
void RankWatch::trace_end(double now, bool failed, const nlohmann::json& told, const Exchange* exchange) noexcept {
  if (!trace_) return;
  try {
    const Json all = failed ? Json{{"failed", true}} : told;
    if (exchange != nullptr)
      trace_->end_apart("exchange", exchange->number, text_of(*exchange), now, all);
    else
      trace_->end(now, all);
  } catch (...) {
    trace_.reset();
  }
}

RankWatch::Exchange RankWatch::begin_exchange(const Header* header, std::size_t doubles) {
  const std::lock_guard lock(mutex_);
  const double now = wall_clock();
  const bool own = !call_;
  if (own) begin({"an exchange", Direction::agreement, 0, 0, now});
  Exchange exchange{call_.value_or(dropped_ + calls_.size() - 1), own, ++exchanges_, now};
  WatchedCall& call = calls_[exchange.call - dropped_];
  if (header != nullptr) {
    const std::string_view name(header->name.data(), ::strnlen(header->name.data(), header->name.size()));
    const auto direction = static_cast<Direction>(header->get(Field::direction));
    if (own) {
      call.layer = name;
      call.direction = direction;
    }
    if (call.layer == name && call.direction == direction) call.number = header->get(Field::call);
  }
  call.bytes += doubles * sizeof(double);
  call.exchange_began = now;
  call.exchange_ended = 0;
  ++call.exchanges;
  exchange.layer = call.layer;
  exchange.direction = call.direction;
  if (trace_)
    trace_->begin_apart("exchange", exchange.number, text_of(exchange), now,
                        {{"call", call.number}, {"bytes", doubles * sizeof(double)}});
  ExchangeMetrics& metrics = metrics_.exchanges[{call.layer, call.direction}];
  metrics.bytes += doubles * sizeof(double);
  return exchange;
}

void RankWatch::end_exchange(const Exchange& exchange, const std::vector<std::uint64_t>& arrivals,
                             const Communicator& group) {
  const std::lock_guard lock(mutex_);
  const double now = metrics_.last_exchange = wall_clock();
  if (WatchedCall* const call = call_of(exchange)) {
    if (--call->exchanges == 0) call->exchange_ended = now;
    if (exchange.own) call->ended = now;
  }
  ExchangeMetrics& metrics = metrics_.exchanges[{exchange.layer, exchange.direction}];
  const double seconds = now - exchange.began;
  ++metrics.count;
  metrics.seconds += seconds;
  const auto bound = std::lower_bound(metrics.bounds.begin(), metrics.bounds.end(), seconds);
  if (bound != metrics.bounds.end()) ++metrics.up_to[static_cast<std::size_t>(bound - metrics.bounds.begin())];
  Json told = Json::object();
  if (!arrivals.empty()) {
    const auto [first, last] = std::minmax_element(arrivals.begin(), arrivals.end());
    metrics.skew = static_cast<double>(*last - *first) * 1e-6;
    metrics.slowest = number_of(group.name_of(static_cast<int>(last - arrivals.begin())));
    told = {{"skew_us", *last - *first}, {"slowest", metrics.slowest}};
  }
  trace_end(now, false, told, &exchange);
}

// It stays in the record as under way.
void RankWatch::break_exchange(const Exchange& exchange) noexcept {
  const std::lock_guard lock(mutex_);
  trace_end(wall_clock(), true, {}, &exchange);
}

void RankWatch::begin_step() {
  const std::lock_guard lock(mutex_);
  if (trace_) trace_->begin("step", "step", wall_clock(), {{"step", metrics_.steps}});
}

void RankWatch::end_step(bool failed) noexcept {
  const std::lock_guard lock(mutex_);
  if (!failed) ++metrics_.steps;
  trace_end(wall_clock(), failed, Json::object());
}

void RankWatch::set_layers(std::vector<LayerMetric> layers) {
  const std::lock_guard lock(mutex_);
  metrics_.layers = std::move(layers);
}

void RankWatch::saved_checkpoint() {
  const std::lock_guard lock(mutex_);
  metrics_.last_checkpoint = wall_clock();
}

void RankWatch::late(const LateReport& report) noexcept {
  write({how_failed, kind_late, report.line, exit_timeout}, &report);
}

void RankWatch::failed(const Failure& failure) noexcept {
  write({how_failed, kinds[severity(failure)], failure.message, failure.code}, nullptr);
}

void RankWatch::finished() noexcept { write({how_finished, {}, {}, exit_success}, nullptr); }

void RankWatch::ends_in(std::string_view how) noexcept {
  try {
    write({std::string(how), {}, {}, 0}, nullptr);
  } catch (...) {  // no memory to say so
  }
}

// A rank that was stopped while it told something keeps the lock: who looks from outside does not wait for it.
std::unique_lock<std::mutex> RankWatch::lock_in_time() const {
  std::unique_lock lock(mutex_, std::try_to_lock);
  for (int look = 0; !lock && look < 100; ++look) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    lock.try_lock();
  }
  return lock;
}

std::optional<RankMetrics> RankWatch::metrics() const {
  const auto lock = lock_in_time();
  return lock ? std::optional(metrics_) : std::nullopt;
}

// The first end that is told is the one that counts, but that a rank which has done its work may find others missing.
void RankWatch::write(const End& end, const LateReport* report) noexcept {
  try {
    const auto lock = lock_in_time();
    if (!lock || !(ended_.empty() || (ended_ == how_finished && report != nullptr))) return;
    ended_ = end.how;
    if (end.how == how_failed) ++metrics_.errors;
    if (record_.empty()) return;
    Json json{{"event", "record"},
              {"format", record_format},
              {"version", build::version},
              {"rank", rank_},
              {"ranks", size_},
              {"host", host()},
              {"pid", ::getpid()},
              {"started", metrics_.started},
              {"written", wall_clock()},
              {"end", {{"how", end.how}, {"kind", end.kind}, {"line", end.line}, {"code", end.code}}},
              {"calls_before", dropped_}};
    if (report != nullptr) json["late"] = json_of(*report);
    Json& calls = json["calls"] = Json::array();
    for (const WatchedCall& call : calls_) calls.push_back(json_of(call));
    AtomicFile file(record_);
    file.write(json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
    file.commit();
  } catch (const std::exception& error) {
    try {
      print_line_at_once("warning: the record of rank " + std::to_string(rank_) +
                         " cannot be written: " + error.what());
    } catch (...) {  // no memory to say so
    }
  }
}

}  // namespace allnorm::launch
