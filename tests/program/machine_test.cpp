// Other programs, as `allnorm doctor` runs them.
#include <gtest/gtest.h>

#include <chrono>

#include "launch/machine.hpp"

namespace allnorm::test {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(RunProgram, TellsWhatWasWrittenAndHowItEnded) {
  const launch::Ended ended = launch::run_program({"sh", "-c", "echo one; echo two >&2; exit 3"}, 60);
  EXPECT_TRUE(ended.in_time);
  EXPECT_EQ(ended.code, 3);
  EXPECT_EQ(ended.text, "one\ntwo\n");
}

// Its output is over long before it is.
TEST(RunProgram, EndsOneThatHasClosedItsOutput) {
  const auto start = std::chrono::steady_clock::now();
  const launch::Ended ended = launch::run_program({"sh", "-c", "echo one; exec >&- 2>&-; sleep 60"}, 0.5);
  EXPECT_FALSE(ended.in_time);
  EXPECT_EQ(ended.text, "one\n");
  EXPECT_GE(seconds_since(start), 0.5);
  EXPECT_LE(seconds_since(start), 20);
}

TEST(RunProgram, WaitsForOneThatClosesItsOutputAndEndsInTime) {
  const launch::Ended ended = launch::run_program({"sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 4"}, 60);
  EXPECT_TRUE(ended.in_time);
  EXPECT_EQ(ended.code, 4);
}

}  // namespace
}  // namespace allnorm::test
