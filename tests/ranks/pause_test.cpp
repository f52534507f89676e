// What a rank does while it waits: it looks again, gives way, and sleeps where that takes long.
#include "src/transport/pause.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include "harness.hpp"

namespace pause_test {
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
  EXPECT_FALSE(are_crowded(2, cores(2), {}));
  EXPECT_TRUE(are_crowded(3, cores(2), {}));
  EXPECT_FALSE(are_crowded(3, cores(0), {}));  // not known
  EXPECT_FALSE(are_crowded(2, cores(4), 2.0));
  EXPECT_TRUE(are_crowded(2, cores(4), 1.5));  // a container's share of their time
  const cpu_set_t own = own_cores();
  EXPECT_GE(CPU_COUNT(&own), 1);
}

TEST(Pauses, KnowTheShareOfTimeThatIsLeft) {
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / ("quota" + std::to_string(::getpid()));
  const auto write = [&](const std::string& name, const std::string& text) {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text << "\n";
  };
  const auto quota = [&] { return cpu_quota(root / "groups", root); };
  EXPECT_EQ(quota(), std::nullopt);
  write("groups", "0::/job/step");
  EXPECT_EQ(quota(), std::nullopt);
  write("job/step/cpu.max", "max 100000");
  EXPECT_EQ(quota(), std::nullopt);
  write("job/cpu.max", "250000 100000");
  EXPECT_EQ(quota(), 2.5);
  write("job/step/cpu.max", "150000 100000");
  EXPECT_EQ(quota(), 1.5);
  write("cpu.max", "50000 100000");  // of a container, which sees its own as the root
  EXPECT_EQ(quota(), 0.5);
  write("groups", "3:cpuset:/other\n1:cpu,cpuacct:/task\n0::/");
  write("cpu.max", "max 100000");
  EXPECT_EQ(quota(), std::nullopt);
  write("cpu/task/cpu.cfs_period_us", "100000");
  write("cpu/task/cpu.cfs_quota_us", "-1");
  EXPECT_EQ(quota(), std::nullopt);
  write("cpu/task/cpu.cfs_quota_us", "300000");
  EXPECT_EQ(quota(), 3.0);
  fs::remove_all(root);
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
}  // namespace pause_test
