// CPU queues over a caller's threads.
#include "allnorm/pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "allnorm/norm.hpp"
#include "cases.hpp"
#include "harness.hpp"
#include "src/runtime/parallel.hpp"

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

}  // namespace
