// The CPU queue: a pool of threads, and the host's memory.
#pragma once

#include <atomic>
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

/// `threads` - 1 workers that wait for the next batch of tasks, or a caller's. Kernels follow each other within
/// microseconds, and to wake a thread takes tens of them: who waits, for a batch or for its end, looks again for a
/// moment before it sleeps. Every thread has a share of a batch, the same one of every batch that is cut alike, so that
/// it finds in its core's cache what it left there; who is done with his own takes from the others'.
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
  struct alignas(64) Share {  // of the tasks: `next` up to `end`
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };
  using Word = std::uint64_t;

  void serve(std::size_t own);
  bool enters(Word& last) noexcept;
  void do_tasks(std::size_t own);
  template <class IsThere>
  bool comes_soon(const IsThere& is_there) const;
  void stop() noexcept;
  void run_in_pool(std::int64_t tasks, const std::function<void(std::int64_t)>& task);

  Pool pool_{};
  bool crowded_ = false;  // more threads than cores: to look again would keep another one from its work
  const std::function<void(std::int64_t)>* task_ = nullptr;  // and shares: written while nobody is inside a batch
  std::vector<Share> shares_;                                // (threads)
  // The batch: its number, whether workers may still enter, and how many are inside. A worker that comes late finds it
  // closed, and nobody waits for one that sleeps.
  std::atomic<Word> batch_{0};
  std::atomic<int> callers_core_{-1};
  std::atomic<bool> stop_{false}, caller_sleeps_{false};
  std::atomic<int> workers_asleep_{0};
  std::mutex mutex_;  // of those who sleep, and of the error
  std::condition_variable wake_, done_;
  std::exception_ptr error_;
  std::vector<std::thread> workers_;
};

/// Runs the tasks on the queue's threads (on the caller alone when there is one thread or one task).
void parallel(Queue& queue, std::int64_t tasks, const std::function<void(std::int64_t)>& task);

}  // namespace allnorm
