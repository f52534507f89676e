#include "src/runtime/parallel.hpp"

#include <hwy/cache_control.h>
#include <sched.h>

#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "allnorm/error.hpp"

namespace allnorm {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds looking{50};  // before a thread sleeps

// The batch's word: number, open, inside.
constexpr std::uint64_t inside = (1 << 16) - 1, open = 1 << 16, next_number = open << 1, number = ~(inside | open);

// A thread is often woken on the core of the one that woke it, which needs it itself, and the scheduler takes
// milliseconds to see that. So it goes by itself: for a moment it may not run there.
void leave_core(int core) noexcept {
  cpu_set_t all;
  if (::sched_getaffinity(0, sizeof all, &all) != 0) return;
  cpu_set_t others = all;
  CPU_CLR(static_cast<std::size_t>(core), &others);
  if (CPU_COUNT(&others) > 0 && ::sched_setaffinity(0, sizeof others, &others) == 0)
    ::sched_setaffinity(0, sizeof all, &all);
}

}  // namespace

CpuQueue::CpuQueue(int threads)
    : crowded_(threads > static_cast<int>(std::thread::hardware_concurrency())),
      shares_(static_cast<std::size_t>(threads)) {
  try {
    for (std::size_t i = 1; i < shares_.size(); ++i) workers_.emplace_back([this, i] { serve(i); });
  } catch (const std::system_error&) {
    const std::size_t started = workers_.size() + 1;
    stop();
    fail(Code::device, "threads is " + std::to_string(threads) + ", must be at most the " + std::to_string(started) +
                           " that this process can start");
  }
}

CpuQueue::~CpuQueue() { stop(); }

void CpuQueue::stop() noexcept {
  stop_ = true;
  { const std::lock_guard lock(mutex_); }  // whoever has looked before is asleep now
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

/// Looks for a moment.
template <class IsThere>
bool CpuQueue::comes_soon(const IsThere& is_there) const {
  if (crowded_) return is_there();
  for (const auto end = Clock::now() + looking; !is_there(); hwy::Pause())
    if (Clock::now() > end) return false;
  return true;
}

void CpuQueue::serve(std::size_t own) {
  Word last = 0;
  const auto is_there = [&] { return stop_ || (batch_ & number) != last; };  // it may be over again by now
  while (true) {
    if (!comes_soon(is_there)) {
      std::unique_lock lock(mutex_);
      ++workers_asleep_;  // before the look: run() looks here after it has opened a batch
      wake_.wait(lock, is_there);
      --workers_asleep_;
    }
    if (stop_) return;
    if (const int core = callers_core_; !crowded_ && core >= 0 && core == ::sched_getcpu()) leave_core(core);
    if (!enters(last)) continue;
    do_tasks(own);
    if ((--batch_ & (inside | open)) == 0 && caller_sleeps_) {
      { const std::lock_guard lock(mutex_); }
      done_.notify_one();
    }
  }
}

bool CpuQueue::enters(Word& last) noexcept {
  for (Word now = batch_;;) {
    last = now & number;
    if ((now & open) == 0) return false;
    if (batch_.compare_exchange_weak(now, now + 1)) return true;
  }
}

void CpuQueue::do_tasks(std::size_t own) {
  for (std::size_t i = 0; i < shares_.size(); ++i) {
    Share& share = shares_[(own + i) % shares_.size()];
    while (share.next.load(std::memory_order_relaxed) < share.end) {
      const std::int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= share.end) break;
      try {
        (*task_)(task);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }
}

void CpuQueue::run_in_pool(std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
  struct Work {
    const std::function<void(std::int64_t)>& task;
    std::mutex mutex{};
    std::exception_ptr error{};
  } work{task};
  const auto one = [](void* argument, std::int64_t i) {
    auto& all = *static_cast<Work*>(argument);
    try {
      all.task(i);
    } catch (...) {
      const std::lock_guard lock(all.mutex);
      if (!all.error) all.error = std::current_exception();
    }
  };
  pool_.run(pool_.context, tasks, one, &work);
  if (work.error) std::rethrow_exception(work.error);
}

void CpuQueue::run(std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
  if (pool_.run != nullptr) return run_in_pool(tasks, task);
  task_ = &task;
  callers_core_ = ::sched_getcpu();
  const auto threads = static_cast<std::int64_t>(shares_.size());
  for (std::int64_t i = 0; i < threads; ++i) {
    Share& share = shares_[static_cast<std::size_t>(i)];
    share.next.store(tasks * i / threads, std::memory_order_relaxed);
    share.end = tasks * (i + 1) / threads;
  }
  batch_ = (batch_ + next_number) | open;  // closed, and nobody inside: only its number was set
  if (workers_asleep_ > 0) {
    { const std::lock_guard lock(mutex_); }  // whoever has looked before is asleep now
    wake_.notify_all();
  }
  do_tasks(0);
  batch_ &= ~open;
  const auto is_done = [this] { return (batch_ & inside) == 0; };
  if (!comes_soon(is_done)) {
    std::unique_lock lock(mutex_);
    caller_sleeps_ = true;
    done_.wait(lock, is_done);
    caller_sleeps_ = false;
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void parallel(Queue& queue, std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
  if (queue.threads() == 1 || tasks <= 1)
    for (std::int64_t i = 0; i < tasks; ++i) task(i);
  else
    static_cast<CpuQueue&>(queue.impl()).run(tasks, task);
}

Queue cpu_queue(const Pool& pool) {
  expect(pool.threads >= 1 && pool.run != nullptr, Code::invalid_argument, [&] {
    return "threads is " + std::to_string(pool.threads) + ", must be at least 1, with a function that runs tasks";
  });
  Queue queue = Queue::cpu(1);
  static_cast<CpuQueue&>(queue.impl()).use(pool);
  return queue;
}

}  // namespace allnorm
