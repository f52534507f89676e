// `allnorm apply` of the layer that mixes statistics: cuts over ranks, files, exit codes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "runner.hpp"

namespace allnorm::test {
namespace {

using Values = std::vector<double>;
using Names = std::vector<std::string>;

class Switchable : public testing::Test {
 protected:
  void SetUp() override {
    place.make("x.npy", {5, 3, 4});
    place.make("dy.npy", {5, 3, 4});
    place.make("c.npy", {3});
    place.make("v.npy", {3});
  }
  Outcome run(const std::string& more) {
    return place.run(
        "apply switchable_norm --input x.npy --grad-output dy.npy --weight c.npy --bias c.npy --tensor "
        "mean_logits=c.npy --tensor var_logits=v.npy " +
        more);
  }
  Values values(const std::string& out, const std::string& name, int rank) {
    return place.values(out + "/" + name + ".r" + std::to_string(rank) + ".npy");
  }
  static void expect_near(const Values& got, const Values& want, const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    for (std::size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], want[i], 1e-11 * std::max(1.0, std::abs(want[i]))) << what << " " << i;
  }
  Workplace place;
};

TEST_F(Switchable, CutOverRanksIsOneRank) {
  ASSERT_EQ(run("--out whole").code, 0);
  EXPECT_EQ(place.list("whole"),
            (Names{"grad_bias.npy", "grad_input.npy", "grad_mean_logits.npy", "grad_var_logits.npy", "grad_weight.npy",
                   "output.npy", "running_mean.npy", "running_var.npy"}));
  EXPECT_EQ(place.read("whole/grad_mean_logits.npy").shape, (Shape{3}));
  for (const std::string shard : {"batch", "space"})
    for (int ranks = 2; ranks <= 6; ranks += 2) {  // of 5 samples and 4 positions: some have none
      const std::string out = shard + std::to_string(ranks);
      const Outcome outcome = run("--set sync=world --set shard=" + shard + " --split " + shard + " --ranks " +
                                  std::to_string(ranks) + " --out " + out);
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      for (const char* name : {"output", "grad_input"}) {
        Values all;
        for (std::size_t g = 0; g < (shard == "batch" ? 1 : 15); ++g)
          for (int r = 0; r < ranks; ++r) {
            const Values part = values(out, name, r);
            const auto size = static_cast<std::ptrdiff_t>(shard == "batch" ? part.size() : part.size() / 15);
            const auto from = part.begin() + static_cast<std::ptrdiff_t>(g) * size;
            all.insert(all.end(), from, from + size);
          }
        expect_near(all, place.values("whole/" + std::string(name) + ".npy"), out + " " + name);
      }
      for (const char* name : {"grad_weight", "grad_bias", "grad_mean_logits", "grad_var_logits"}) {
        Values sum(3);
        for (int r = 0; r < ranks; ++r)
          for (std::size_t i = 0; i < 3; ++i) sum[i] += values(out, name, r)[i];
        expect_near(sum, place.values("whole/" + std::string(name) + ".npy"), out + " " + name);
      }
      for (const char* name : {"running_mean", "running_var"})
        for (int r = 0; r < ranks; ++r)
          expect_near(values(out, name, r), place.values("whole/" + std::string(name) + ".npy"), out + " " + name);
    }
}

TEST_F(Switchable, GoesOnFromItsStateToInference) {
  ASSERT_EQ(run("--steps 3 --save-state s.st --out a").code, 0);
  ASSERT_EQ(run("--load-state s.st --set training=false --out b").code, 0);
  ASSERT_EQ(run("--tensor running_mean=a/running_mean.s2.npy --tensor running_var=a/running_var.s2.npy --set "
                "training=false --out c")
                .code,
            0);
  EXPECT_EQ(place.bytes("b/output.npy"), place.bytes("c/output.npy"));
  EXPECT_FALSE(place.exists("b/running_mean.npy"));
  const Outcome parts =
      run("--load-state s.st --set training=false --set sync=world --set shard=space --split space --ranks 2 --out d");
  ASSERT_EQ(parts.code, 0) << parts.err;
}

TEST_F(Switchable, SaysWhatIsWrong) {
  const std::string two = "--set sync=world --ranks 2 --out o --split ";
  EXPECT_EQ(run(two + "channels").code, 2);
  const auto refused = [&](const std::string& more) {
    const Outcome outcome = run(more);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    return outcome.err;
  };
  for (const auto& [split, shard] : {std::pair<std::string, std::string>{"space", "batch"}, {"batch", "space"}}) {
    const std::string told = refused(two + split + " --set shard=" + shard);
    EXPECT_NE(told.find("--split is " + split + ", must be an axis that switchable_norm with shard=" + shard +
                        " reduces over, or sync none"),
              std::string::npos)
        << told;
  }
  const std::string told = refused("--out o --set shard=channels");
  EXPECT_NE(told.find("attribute shard is 'channels', must be batch or space"), std::string::npos) << told;
  EXPECT_EQ(run("--out o --set unbiased=true").code, 2);
  EXPECT_EQ(run("--out o --split space --ranks 2").code, 0);  // each its own
  place.make("long.npy", {4});
  const Outcome logits = place.run("apply switchable_norm --input x.npy --tensor mean_logits=long.npy --out p");
  EXPECT_EQ(logits.code, 3);
  EXPECT_NE(logits.err.find("mean_logits has the shape (4,), must have (3,)"), std::string::npos) << logits.err;
  place.make("minus.npy", {3});  // begins with -1
  EXPECT_EQ(place.run("apply switchable_norm --input x.npy --tensor running_var=minus.npy --out p").code, 3);
  EXPECT_EQ(place.run("apply batch_norm --input x.npy --save-state bn.st --out q").code, 0);
  EXPECT_EQ(run("--load-state bn.st --out p").code, 3);
}

}  // namespace
}  // namespace allnorm::test
