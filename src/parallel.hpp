// The thread pool behind a CPU queue.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "allnorm/device.hpp"

namespace allnorm {

/// `threads` - 1 workers that wait for the next batch of tasks.
class Queue::Impl {
 public:
  /// Throws device where the threads cannot be started.
  explicit Impl(int threads);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  int threads() const noexcept { return static_cast<int>(workers_.size()) + 1; }
  /// Calls task(0) ... task(tasks - 1), each once, in any order and on any thread; returns when all are done. The first
  /// exception is rethrown.
  void run(std::int64_t tasks, const std::function<void(std::int64_t)>& task);

 private:
  void work(std::unique_lock<std::mutex>& lock);
  void stop() noexcept;

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(std::int64_t)>* task_ = nullptr;
  std::int64_t next_ = 0, tasks_ = 0, running_ = 0;
  std::exception_ptr error_;
  bool stop_ = false;
  std::vector<std::thread> workers_;
};

/// Runs the tasks on the queue's threads (on the caller alone when there is one thread or one task).
void parallel(Queue& queue, std::int64_t tasks, const std::function<void(std::int64_t)>& task);

}  // namespace allnorm
