// What has no deadline of its own ends all the same.
#include "launch/watchdog.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace allnorm::test {
namespace {

using launch::Watchdog;

TEST(WatchdogDeathTest, EndsAProcessThatWaitsForEver) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EXIT(
      {
        const Watchdog watchdog(0.3, 5, "a call: a rank is missing\nor late");
        for (;;) ::pause();
      },
      testing::ExitedWithCode(5), "^allnorm: a call: a rank is missing or late\n$");
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(300));
}

TEST(Watchdog, IsCalledOffAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  { const Watchdog watchdog(1e9, 5, "never"); }
  {
    const Watchdog watchdog(0.2, 5, "not yet", 1);  // gives way to rank 0
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
  }
  EXPECT_LE(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

}  // namespace
}  // namespace allnorm::test
