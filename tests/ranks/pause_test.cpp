// What a rank does while it waits: it looks again, gives way, and sleeps where that takes long.
#include "src/transport/pause.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <ctime>
#include <thread>

#include "harness.hpp"

namespace {

using namespace allnorm;
using Step = Pause::Step;

double cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

cpu_set_t cores(int count) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core = 0; core < count; ++core) CPU_SET(core, &set);
  return set;
}

TEST(Pauses, AreOfCrowdedRanksWhereThereAreFewerCores) {
  EXPECT_FALSE(are_crowded(2, cores(2)));
  EXPECT_TRUE(are_crowded(3, cores(2)));
  EXPECT_FALSE(are_crowded(3, cores(0)));  // not known
  const cpu_set_t own = own_cores();
  EXPECT_GE(CPU_COUNT(&own), 1);
}

TEST(Pauses, EndInSleepsThatGrowAndStayShort) {
  const auto sleep = [](int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); };
  for (const bool crowded : {false, true}) {
    Pause pause;
    pause.next(crowded);  // the wait begins
    sleep(2);
    const Step step = pause.next(crowded);
    EXPECT_EQ(step >= Step{250}, !crowded);  // where it is, other ranks have the cores
    sleep(40);
    EXPECT_EQ(pause.next(crowded), Step{1000});
  }
}

TEST(Pauses, LeaveTheCoreToOthers) {
  double seconds = 1;
  harness::run(2, [&](const std::shared_ptr<Communicator>& world, Queue& queue) {
    if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const double before = cpu_seconds();
    world->exchange({Header("bn", Direction::agreement, 0), {}, 0, {}}, queue);
    if (world->rank() == 0) seconds = cpu_seconds() - before;
  });
  EXPECT_LT(seconds, 0.1);  // of the 0.3 that it waited
}

}  // namespace
