// The CPU queue: a pool of threads, and the host's memory.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/pool.hpp"
#include "src/runtime/queue.hpp"

namespace allnorm {

/// `threads` - 1 workers that wait for the next batch of tasks, or a caller's.
class CpuQueue final : public Queue::Impl {
 public:
  /// Throws device where the threads cannot be started.
  explicit CpuQueue(int threads);
  ~CpuQueue() override;

  int threads() const noexcept override {
    return pool_.run != nullptr ? pool_.threads : static_cast<int>(workers_.size()) + 1;
  }
  /// From now on tasks are done by these threads.
  void use(const Pool& pool) noexcept { pool_ = pool; }
  void* stream() const noexcept override { return nullptr; }
  void wait() override {}
  void leave_multiprocessors(int) override;
  int multiprocessors_left() const noexcept override { return 0; }
  // src/device_cpu.cpp
  void* allocate(std::size_t bytes, Fill fill) override;
  void release(void* data) noexcept override;
  void copy_to_device(void* to, const void* from, std::size_t bytes) override;
  void copy_to_host(void* to, const void* from, std::size_t bytes) override;
  void copy_on_device(void* to, const void* from, std::size_t bytes) override;
  void expect_memory(const void* data, const char* name) const override;

  /// Calls task(0) ... task(tasks - 1), each once, in any order and on any thread; returns when all are done. The first
  /// exception is rethrown.
  void run(std::int64_t tasks, const std::function<void(std::int64_t)>& task);

 private:
  void work(std::unique_lock<std::mutex>& lock);
  void stop() noexcept;
  void run_in_pool(std::int64_t tasks, const std::function<void(std::int64_t)>& task);

  Pool pool_{};
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
