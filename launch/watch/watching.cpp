#include "launch/watch/watching.hpp"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "build_config.hpp"
#include "launch/apply.hpp"
#include "launch/late.hpp"

namespace allnorm::launch {

namespace {

std::atomic<Watching*> of_this_process = nullptr;

sigset_t only_sigterm() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  return set;
}

// Another one takes it, or nobody is to.
bool is_taken() {
  sigset_t blocked;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
  struct sigaction action {};
  ::sigaction(SIGTERM, nullptr, &action);
  return sigismember(&blocked, SIGTERM) == 1 || action.sa_handler != SIG_DFL;
}

}  // namespace

void check_watching(const RankOptions& options) {
  if (!options.metrics.empty()) {
    (void)endpoint_of(options.metrics);
    expect(ALLNORM_HAVE_PROMETHEUS, Code::unsupported, [&] {
      return "--metrics is " + options.metrics +
             ", must not be given: this build has no prometheus-cpp; install it (Debian, Ubuntu: prometheus-cpp-dev) "
             "and configure again";
    });
  }
  expect(options.trace.empty() || expected_ranks(options) <= 1 || mentions(options.trace, "{rank}"),
         Code::invalid_argument,
         [&] { return "--trace is " + options.trace + ", must contain {rank}: every rank writes its own"; });
}

Watching::Watching(const RankOptions& options) : options_(options) {
  of_this_process = this;
  if (options.record.empty() || is_taken()) return;
  const sigset_t set = only_sigterm();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);  // in all threads to come
  sigterm_ = std::thread([this] { take_sigterm(); });
}

Watching::~Watching() {
  of_this_process = nullptr;
  done_ = true;
  server_.reset();  // it asks the ranks
  if (!sigterm_.joinable()) return;
  sigterm_.join();
  const sigset_t set = only_sigterm();
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

RankWatch* Watching::rank(int rank, int size) {
  if (options_.metrics.empty() && options_.trace.empty() && options_.record.empty()) return nullptr;
  RankWatch* made = nullptr;
  {
    const std::lock_guard lock(mutex_);
    made = ranks_.emplace_back(std::make_unique<RankWatch>(options_, rank, size)).get();
  }
  if (!options_.metrics.empty() && !server_)
    server_ = std::make_unique<MetricsServer>(options_.metrics, rank, size > 1 && !ranks_are_threads(options_), [this] {
      std::vector<RankMetrics> all;
      const std::lock_guard lock(mutex_);
      for (const auto& watch : ranks_)
        if (auto metrics = watch->metrics()) all.push_back(*std::move(metrics));
      return all;
    });
  return made;
}

RankWatch* Watching::find(int rank) const noexcept {
  const std::lock_guard lock(mutex_);
  for (const auto& watch : ranks_)
    if (watch->number() == rank) return watch.get();
  return nullptr;
}

void Watching::ends_in(std::string_view how) noexcept {
  const std::lock_guard lock(mutex_);
  for (const auto& watch : ranks_) watch->ends_in(how);
}

void Watching::late(const LateReport& report) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    if (report.speaks)
      spoken_ = true;
    else if (!kept_)
      kept_ = report;
  } catch (...) {  // no memory to keep it
  }
  tell_late(report);
  if (RankWatch* const watch = find(report.rank)) watch->late(report);
}

bool Watching::keeps_report() const noexcept {
  const std::lock_guard lock(mutex_);
  return kept_ && !spoken_;
}

void Watching::tell_report() noexcept {
  if (!keeps_report()) return;
  const std::lock_guard lock(mutex_);
  spoken_ = kept_->speaks = true;
  tell_late(*kept_);
}

void Watching::terminated() noexcept {
  if (Watching* const own = of_this_process) own->ends_in("SIGTERM");
}

// As if nobody had taken it, once the records are there.
void Watching::take_sigterm() {
  const sigset_t set = only_sigterm();
  const timespec patience{0, 20'000'000};
  while (!done_)
    if (::sigtimedwait(&set, nullptr, &patience) == SIGTERM) {
      ends_in("SIGTERM");
      ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
      ::raise(SIGTERM);
    }
}

}  // namespace allnorm::launch
