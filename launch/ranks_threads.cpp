// Ranks as threads of this process, and the thread that waits for them: not for ever, whatever one of them does.
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <vector>

#include "launch/ranks_run.hpp"
#include "launch/terminal.hpp"
#include "src/exchange.hpp"
#include "src/transport/deadline.hpp"

namespace allnorm::launch {

namespace {

using Failures = std::vector<std::optional<Failure>>;  // [rank]

// Prints what counts, by `print`, and returns its exit code.
int report_all(const Failures& failures, void (*print)(std::string_view)) {
  const Failure* first = nullptr;
  for (const auto& failure : failures)
    if (failure && (!first || severity(*failure) < severity(*first))) first = &*failure;
  if (!first) return exit_success;
  std::set<std::string> printed;
  for (std::size_t rank = 0; rank < failures.size(); ++rank) {
    const auto& failure = failures[rank];
    if (!failure || severity(*failure) != severity(*first)) continue;  // the others are its consequences
    if (severity(*failure) > 0 && !printed.empty()) continue;          // every rank tells the same story
    if (!printed.insert(failure->message).second) continue;
    const auto same = [&](const auto& other) { return other && other->message == failure->message; };
    const bool one_of_many = failures.size() > 1 && std::count_if(failures.begin(), failures.end(), same) == 1 &&
                             severity(*failure) == 0 && !names_ranks(*failure);
    print((one_of_many ? "rank " + std::to_string(rank) + ": " : "") + failure->message);
  }
  return first->code;
}

class ThreadRanks {
 public:
  ThreadRanks(const RankOptions& options, const RankBody& body, Watching& watching)
      : options_(options),
        body_(body),
        watching_(watching),
        size_(static_cast<std::size_t>(std::max(options.ranks, 1))),
        failures_(size_),
        ended_(size_, false) {
    if (size_ == 1 && options.transport != "threads")
      worlds_.push_back(self());
    else
      worlds_ = threads(static_cast<int>(size_), patience_of(options, watching));
    for (std::size_t r = 0; r < size_; ++r)
      watches_.push_back(watching.rank(static_cast<int>(r), static_cast<int>(size_)));
  }

  int run() {
    if (size_ == 1) {
      run_rank(0);
      return report_all(failures_, print_line);
    }
    try {
      for (std::size_t r = 0; r < size_; ++r)
        threads_.emplace_back([this, r] {
          ::pthread_setname_np(::pthread_self(), ("rank " + std::to_string(r)).c_str());
          run_rank(r);
        });
    } catch (const std::system_error& error) {  // the ranks that did start wait for one that will not come
      const std::size_t missing = threads_.size();
      end(missing, Failure{exit_failure, Code::transport, std::string("a thread cannot be started: ") + error.what()});
      worlds_[missing]->abort(Error(Code::transport, failures_[missing]->message));
      for (std::size_t r = missing + 1; r < size_; ++r) end(r, std::nullopt);
    }
    wait();
    for (std::thread& thread : threads_) thread.join();
    watching_.tell_report();
    return report_all(failures_, print_line);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr double grace = 0.5;         // seconds in which the peers of a rank that failed come back
  static constexpr double long_overdue = 0.9;  // seconds after which one that waits would have failed by itself

  void run_rank(std::size_t r) {
    std::optional<Failure> failure;
    try {
      Queue queue = queue_of(options_, static_cast<int>(r));
      auto world = world_over(options_, worlds_[r], queue, watching_);
      Rank rank = watched_rank(static_cast<int>(r), static_cast<int>(size_), std::move(world), std::move(queue),
                               size_ > 1, watches_[r]);
      failure = run_one(rank, body_);
    } catch (const std::exception& error) {  // no queue, or no NCCL
      failure = failure_of(error);
      if (watches_[r] != nullptr) watches_[r]->failed(*failure);
      worlds_[r]->abort(Error(failure->kind, failure->message));
    }
    end(r, std::move(failure));
  }

  void end(std::size_t r, std::optional<Failure> failure) {
    {
      const std::lock_guard lock(mutex_);
      ended_[r] = true;
      auto& first = failure ? first_failure_ : first_end_;
      first = std::min(first, Clock::now());
      failures_[r] = std::move(failure);
    }
    changed_.notify_one();
  }

  // Returns when all ranks have ended. Leaves the process where some do not: a thread cannot be ended from outside.
  void wait() {
    const auto seconds_since = [](Clock::time_point time) {
      return time == Clock::time_point::max() ? 0 : std::chrono::duration<double>(Clock::now() - time).count();
    };
    std::unique_lock lock(mutex_);
    while (std::find(ended_.begin(), ended_.end(), false) != ended_.end()) {
      changed_.wait_for(lock, std::chrono::milliseconds(50));
      if (seconds_since(first_failure_) > grace) leave();
      if (seconds_since(first_end_) > options_.timeout)
        leave(are_missing(names_where([&](std::size_t r) { return !ended_[r]; })) + " at the end, not done " +
              seconds_text(options_.timeout) + " after the first rank");
      const auto stuck = [&](std::size_t r) { return !ended_[r] && overdue(*worlds_[r]) > long_overdue; };
      if (names_where(stuck).empty()) continue;
      const auto elsewhere = [&](std::size_t r) { return !ended_[r] && !stuck(r); };
      const auto missing = names_where(elsewhere);
      leave(are_missing(missing.empty() ? names_where(stuck) : missing) + ", and no rank comes back from an exchange");
    }
  }
  template <class Condition>
  std::vector<std::string> names_where(const Condition& holds) const {
    std::vector<std::string> names;
    for (std::size_t r = 0; r < size_; ++r)
      if (holds(r)) names.push_back(worlds_[r]->name_of(static_cast<int>(r)));
    return names;
  }
  // As a process that is killed: the next run that writes to the same folders mends what this one was at. What a thread
  // holds that does not come back is not waited for, standard output neither.
  [[noreturn]] void leave(const std::string& why = {}) {
    for (std::thread& thread : threads_) thread.detach();
    watching_.tell_report();
    int code = report_all(failures_, print_line_at_once);
    watching_.ends_in("it did not come back, and its process left");
    if (code == exit_success) {
      print_line_at_once(why);
      code = exit_timeout;
    }
    ::_exit(code);
  }

  const RankOptions& options_;
  const RankBody& body_;
  Watching& watching_;
  std::size_t size_;
  std::vector<std::shared_ptr<Communicator>> worlds_;  // [rank]
  std::vector<RankWatch*> watches_;                    // [rank]
  std::vector<std::thread> threads_;                   // [rank]
  std::mutex mutex_;                                   // of what follows
  std::condition_variable changed_;
  Failures failures_;
  std::vector<bool> ended_;  // [rank]
  Clock::time_point first_failure_ = Clock::time_point::max(), first_end_ = Clock::time_point::max();
};

}  // namespace

int run_threads(const RankOptions& options, const RankBody& body, Watching& watching) {
  return ThreadRanks(options, body, watching).run();
}

}  // namespace allnorm::launch
