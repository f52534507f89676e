// CPU queues: their own threads, and a caller's.
#include "allnorm/pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "allnorm/norm.hpp"
#include "cases.hpp"
#include "harness.hpp"
#include "src/runtime/parallel.hpp"

namespace pool_test {
namespace {

using namespace allnorm;

/// Three threads for every call.
struct Threads {
  std::atomic<int> runs{0};

  static void run(void* context, std::int64_t tasks, Pool::Task task, void* argument) {
    ++static_cast<Threads*>(context)->runs;
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
      for (std::int64_t i = next++; i < tasks; i = next++) task(argument, i);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < 3; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
  }
};

TEST(Pool, ACallHasTheBitsOfTheLibrarysOwnThreads) {
  cases::Random random(3);
  const auto x = cases::normal(random, {4, 8, 70, 70}, 0.5, 2);
  const Shape shape(std::span<const std::int64_t>(x.shape));
  Threads threads;
  std::vector<double> results[2];
  Queue own = Queue::cpu(3), callers = cpu_queue({3, Threads::run, &threads});
  EXPECT_EQ(callers.threads(), 3);
  for (int i = 0; i < 2; ++i) {
    Queue& queue = i == 0 ? own : callers;
    Norm norm(Layer("batch_norm"), 8, nullptr, queue);
    results[i].resize(x.v.size());
    norm.forward({.input = view(x.v.data(), shape)}, view(results[i].data(), shape), queue);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_GT(threads.runs, 0);
}

TEST(Pool, AnErrorComesBackToTheCaller) {
  Threads threads;
  Queue queue = cpu_queue({3, Threads::run, &threads});
  std::atomic<int> done{0};
  const auto fails = [&] {
    parallel(queue, 10, [&](std::int64_t i) {
      ++done;
      if (i == 4) fail(Code::device, "task 4");
    });
  };
  EXPECT_EQ(harness::error_of(fails), "device: task 4");
  EXPECT_EQ(done, 10);
  EXPECT_EQ(harness::error_of([] { cpu_queue({}); }),
            "invalid argument: threads is 1, must be at least 1, with a function that runs tasks");
}

// Batches that follow each other at once, and after pauses in which the threads have gone to sleep; of fewer tasks than
// threads, and of more.
TEST(OwnThreads, DoEveryTaskOnce) {
  for (const int threads : {2, 3, 7}) {
    Queue queue = Queue::cpu(threads);
    for (int batch = 0; batch < 3000; ++batch) {
      if (batch % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      const int tasks = 1 + batch % 23;
      std::vector<int> done(static_cast<std::size_t>(tasks));
      parallel(queue, tasks, [&](std::int64_t i) { ++done[static_cast<std::size_t>(i)]; });
      ASSERT_EQ(done, std::vector<int>(done.size(), 1)) << threads << " threads, batch " << batch;
    }
  }
}

TEST(OwnThreads, AreWaitedForWhereTheyTakeLong) {
  Queue queue = Queue::cpu(2);
  const std::thread::id caller = std::this_thread::get_id();
  for (int batch = 0; batch < 5; ++batch) {
    std::atomic<bool> others{false}, finished{false};
    parallel(queue, 2, [&](std::int64_t) {
      if (std::this_thread::get_id() == caller) {
        while (!others) std::this_thread::yield();
      } else {
        others = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        finished = true;
      }
    });
    EXPECT_TRUE(finished);
  }
}

TEST(OwnThreads, GiveTheirErrorToTheCaller) {
  Queue queue = Queue::cpu(3);
  for (const std::int64_t failing : {0, 5, 9}) {
    std::atomic<int> done{0};
    const auto fails = [&] {
      parallel(queue, 10, [&](std::int64_t i) {
        ++done;
        if (i == failing) fail(Code::device, "a task");
      });
    };
    EXPECT_EQ(harness::error_of(fails), "device: a task");
    EXPECT_EQ(done, 10);
  }
}

}  // namespace
}  // namespace pool_test
