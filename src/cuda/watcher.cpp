// The watcher's thread, and the reports of kernels.
#include "src/cuda/watcher.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "src/heads.hpp"
#include "src/runtime/cuda/errors.hpp"
#include "src/transport/deadline.hpp"

namespace allnorm::cuda {

namespace {

constexpr std::chrono::milliseconds between_looks{20};

// Words that kernels write while the host reads.
std::uint64_t read(std::uint64_t& word) { return std::atomic_ref(word).load(std::memory_order_acquire); }

}  // namespace

std::shared_ptr<Watcher> Watcher::of_process() {
  static std::mutex mutex;
  static std::weak_ptr<Watcher> present;
  const std::lock_guard lock(mutex);
  auto watcher = present.lock();
  if (!watcher) present = watcher = std::make_shared<Watcher>();
  return watcher;
}

Watcher::Watcher() : thread_([this] { run(); }) {}

Watcher::~Watcher() {
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
  }
  ends_.notify_one();
  thread_.join();
}

void Watcher::add(Watched& watched) {
  const std::lock_guard lock(mutex_);
  all_.push_back(&watched);
}

void Watcher::remove(Watched& watched) noexcept {
  const std::lock_guard lock(mutex_);
  all_.erase(std::remove(all_.begin(), all_.end(), &watched), all_.end());
}

void Watcher::run() {
  const RelaxedCapture relaxed;
  std::unique_lock lock(mutex_);
  while (!ends_.wait_for(lock, between_looks, [this] { return end_; }))
    for (Watched* watched : all_) watched->look();
}

void Failure::set(Code code, const std::string& message) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    if (!error_) error_.emplace(code, message);
  } catch (...) {  // no memory for the words
  }
}

bool Failure::is_set() const noexcept {
  const std::lock_guard lock(mutex_);
  return error_.has_value();
}

void Failure::rethrow() const {
  const std::lock_guard lock(mutex_);
  if (error_) throw Error(*error_);
}

Reports::Reports(int device, std::uint64_t* counts)
    : block_(sizeof(ExchangeReport) + 2 * sizeof(std::uint64_t), device), counts_(counts) {
  new (block_.host()) ExchangeReport{};
}

Reporter Reports::reporter() const noexcept {
  auto* shared = static_cast<ExchangeReport*>(block_.device());
  return {shared, counts_ != nullptr ? counts_ : reinterpret_cast<std::uint64_t*>(shared + 1)};
}

std::string Reports::late(const Patience& patience, int number, bool speaks, const std::string& who) {
  const std::uint64_t finished = read(report().finished), started = read(report().started);
  const double time = now(patience);
  if (started != started_ || finished != finished_ || started == finished) {
    started_ = started;
    finished_ = finished;
    since_ = time;
    warned_ = false;
    return {};
  }
  const double timeout = finished == 0 ? patience.first_timeout : patience.timeout;
  const auto late_after = [&](double seconds) {
    return "exchange " + std::to_string(finished + 1) + " is not done after " + seconds_text(seconds) + ": " + who;
  };
  if (const double half = std::min(30.0, timeout / 2); !warned_ && time - since_ > half) {
    warned_ = true;
    if (patience.warn) patience.warn({late_after(half) + ", of " + seconds_text(timeout), number, speaks, {}});
  }
  if (time - since_ <= timeout) return {};
  if (patience.report) patience.report({late_after(timeout), number, speaks, {}});
  return late_after(timeout);
}

void Reports::check(const std::vector<std::string>& names) {
  ExchangeReport& shared = report();
  const std::uint64_t status = read(shared.status);
  if (status == ExchangeReport::fine) return;
  const std::string &first_name = names.front(), &name = names.at(shared.rank);
  const RecordHead first = shared.first, other = shared.other;
  const std::int64_t label = shared.label, sample = shared.sample, rows = shared.rows;
  std::atomic_ref(shared.status).store(ExchangeReport::fine, std::memory_order_release);
  if (status == ExchangeReport::no_such_row)
    fail(Code::invalid_input,
         name + " had " + std::to_string(label) + " at " + std::to_string(sample) + " in an earlier call, must be " +
             (label < 0 ? std::string("at least 0") : "less than the " + std::to_string(rows) + " rows of its table"));
  fail_exchange(status, first, first_name, other, name);
}

}  // namespace allnorm::cuda
