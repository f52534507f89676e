// `--nonfinite`: lines, exit codes, and what is written.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "launch/files/npy_convert.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

class NonFiniteOption : public testing::Test {
 protected:
  void SetUp() override {
    std::vector<double> values(2 * 3 * 4);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.25 * static_cast<double>(i * i % 7) - 1;
    for (const char* name : {"x.0.0.npy", "x.0.1.npy", "x.1.0.npy", "x.0.2.npy", "x.1.2.npy"})
      place.write(name, launch::from_doubles(values, Shape{2, 3, 4}));
    values[5] = std::nan("");
    place.write("x.1.1.npy", launch::from_doubles(values, Shape{2, 3, 4}));  // rank 1, step 1
  }
  Outcome run(const std::string& words) {
    return place.run("apply " + words + " --input x.{rank}.{step}.npy --steps 3 --ranks 2 --out o");
  }
  const std::string told = "rank 1: sync_batch_norm, call 1, forward: input is not finite in channel 1";
  Workplace place;
};

TEST_F(NonFiniteOption, PropagateWarnsOnce) {
  const Outcome outcome = run("sync_batch_norm");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find(told), std::string::npos) << outcome.err;
  EXPECT_EQ(place.values("o/num_batches_tracked.r0.s2.npy"), std::vector<double>{3});
  for (const double value : place.values("o/running_mean.r0.s2.npy")) EXPECT_TRUE(std::isfinite(value));
}

TEST_F(NonFiniteOption, SkipUpdateWarnsAndCounts) {
  const Outcome outcome = run("sync_batch_norm --nonfinite skip_update");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find(told + "; the layer's update is skipped, 1 so far"), std::string::npos) << outcome.err;
  EXPECT_EQ(place.values("o/running_mean.r0.s1.npy"), place.values("o/running_mean.r0.s0.npy"));
  EXPECT_EQ(place.values("o/num_batches_tracked.r0.s2.npy"), std::vector<double>{2});
}

TEST_F(NonFiniteOption, FailWritesNothing) {
  const Outcome outcome = run("sync_batch_norm --nonfinite fail");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_EQ(outcome.err, "allnorm: " + told + ", must be finite everywhere\n");
  EXPECT_FALSE(place.exists("o"));
}

TEST_F(NonFiniteOption, HoldsForLayersWithoutStatistics) {
  const std::string lone = "rank 1: weight_norm, call 1, forward: input is not finite";
  const Outcome warned = run("weight_norm");
  EXPECT_EQ(warned.code, 0);
  EXPECT_NE(warned.err.find(lone + "\n"), std::string::npos) << warned.err;
  const Outcome failed = run("weight_norm --nonfinite fail");
  EXPECT_EQ(failed.code, 1);
  EXPECT_EQ(failed.err, "allnorm: " + lone + ", must be finite everywhere\n");
}

TEST_F(NonFiniteOption, GivesWayToALayersOwnAttribute) {
  EXPECT_EQ(run("sync_batch_norm --nonfinite fail --set nonfinite=propagate").code, 0);
}

TEST_F(NonFiniteOption, HoldsForSwitchableNorm) {
  for (const std::string shard : {"batch", "space"}) {
    const std::string layer = "switchable_norm --set sync=world --set shard=" + shard + " --nonfinite ",
                      named = "rank 1: switchable_norm, call 1, forward: input is not finite in channel 1";
    const Outcome skipped = run(layer + "skip_update");
    EXPECT_EQ(skipped.code, 0) << skipped.err;
    EXPECT_EQ(skipped.err, "allnorm: warning: " + named + "; the layer's update is skipped, 1 so far\n");
    EXPECT_EQ(place.bytes("o/running_mean.r0.s1.npy"), place.bytes("o/running_mean.r0.s0.npy"));
    EXPECT_NE(place.bytes("o/running_mean.r0.s2.npy"), place.bytes("o/running_mean.r0.s0.npy"));
    const Outcome warned = run(layer + "propagate");
    EXPECT_EQ(warned.code, 0) << warned.err;
    EXPECT_EQ(warned.err, "allnorm: warning: " + named + "; what is hit stays out of running statistics and windows\n");
    const auto before = place.values("o/running_mean.r0.s0.npy"), after = place.values("o/running_mean.r0.s1.npy");
    EXPECT_EQ(after[1], before[1]);
    EXPECT_NE(after[0], before[0]);
    std::filesystem::remove_all(place.path("o"));
    const Outcome failed = run(layer + "fail");
    EXPECT_EQ(failed.code, 1);
    EXPECT_EQ(failed.err, "allnorm: " + named + ", must be finite everywhere\n");
    EXPECT_FALSE(place.exists("o"));
  }
}

TEST_F(NonFiniteOption, HoldsForLayersThatWhiten) {
  const std::string layer = "iterative_norm --set group_size=1 --set sync=world --nonfinite ",
                    named = "rank 1: iterative_norm, call 1, forward: input is not finite in channel 1";
  const Outcome skipped = run(layer + "skip_update");
  EXPECT_EQ(skipped.code, 0) << skipped.err;
  EXPECT_EQ(skipped.err, "allnorm: warning: " + named + "; the layer's update is skipped, 1 so far\n");
  EXPECT_EQ(place.bytes("o/running_whitening.r0.s1.npy"), place.bytes("o/running_whitening.r0.s0.npy"));
  EXPECT_NE(place.bytes("o/running_whitening.r0.s2.npy"), place.bytes("o/running_whitening.r0.s0.npy"));
  const Outcome failed = run(layer + "fail");
  EXPECT_EQ(failed.code, 1);
  EXPECT_EQ(failed.err, "allnorm: " + named + ", must be finite everywhere\n");
}

TEST_F(NonFiniteOption, HasThreeWords) {
  const Outcome outcome = run("sync_batch_norm --nonfinite ignore");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.err, "allnorm: --nonfinite is 'ignore', must be one of propagate, fail, skip_update\n");
}

}  // namespace
}  // namespace allnorm::test
