#include "src/runtime/parallel.hpp"

#include <string>
#include <system_error>
#include <utility>

#include "allnorm/error.hpp"

namespace allnorm {

CpuQueue::CpuQueue(int threads) {
  const auto loop = [this] {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      work(lock);
      wake_.wait(lock, [this] { return stop_ || next_ < tasks_; });
    }
  };
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back(loop);
  } catch (const std::system_error&) {
    const std::size_t started = workers_.size() + 1;
    stop();
    fail(Code::device, "threads is " + std::to_string(threads) + ", must be at most the " + std::to_string(started) +
                           " that this process can start");
  }
}

CpuQueue::~CpuQueue() { stop(); }

void CpuQueue::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

// Takes tasks until none is left. The lock is held on entry and on return, not while a task runs.
void CpuQueue::work(std::unique_lock<std::mutex>& lock) {
  while (next_ < tasks_) {
    const std::int64_t i = next_++;
    ++running_;
    lock.unlock();
    std::exception_ptr error;
    try {
      (*task_)(i);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !error_) error_ = error;
    if (--running_ == 0 && next_ >= tasks_) done_.notify_all();
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
  std::unique_lock lock(mutex_);
  task_ = &task;
  next_ = 0;
  tasks_ = tasks;
  wake_.notify_all();
  work(lock);
  done_.wait(lock, [this] { return running_ == 0; });
  tasks_ = next_ = 0;
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
