// `allnorm apply` of the layers that whiten: cuts over ranks, files, exit codes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "runner.hpp"

namespace allnorm::test {
namespace {

using Values = std::vector<double>;
using Names = std::vector<std::string>;

class WhiteningProgram : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    place.make("x.npy", {5, 4, 3});
    place.make("dy.npy", {5, 4, 3});
  }
  Outcome run(const std::string& more, const std::string& size = "2") {
    return place.run("apply " + std::string(GetParam()) + " --input x.npy --grad-output dy.npy --set eps=1e-2 " +
                     "--set group_size=" + size + " " + more);
  }
  static void expect_near(const Values& got, const Values& want, const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    for (std::size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], want[i], 1e-10 * std::max(1.0, std::abs(want[i]))) << what << " " << i;
  }
  // The parts of all ranks put together again along `axis` of (5, 4, 3).
  Values joined(const std::string& out, const std::string& name, int ranks, const std::string& axis) {
    const std::size_t outer = axis == "batch" ? 1 : axis == "channels" ? 5 : 20;
    Values all;
    for (std::size_t i = 0; i < outer; ++i)
      for (int r = 0; r < ranks; ++r) {
        const Values part = place.values(out + "/" + name + ".r" + std::to_string(r) + ".npy");
        const auto size = static_cast<std::ptrdiff_t>(part.size() / outer);
        const auto from = part.begin() + static_cast<std::ptrdiff_t>(i) * size;
        all.insert(all.end(), from, from + size);
      }
    return all;
  }
  Workplace place;
};

TEST_P(WhiteningProgram, CutOverRanksIsOneRank) {
  ASSERT_EQ(run("--steps 2 --out whole").code, 0);
  EXPECT_EQ(place.list("whole"),
            (Names{"grad_input.s0.npy", "grad_input.s1.npy", "output.s0.npy", "output.s1.npy", "running_mean.s0.npy",
                   "running_mean.s1.npy", "running_whitening.s0.npy", "running_whitening.s1.npy"}));
  ASSERT_EQ(run("--out whole").code, 0);
  EXPECT_EQ(place.read("whole/running_whitening.npy").shape, (Shape{2, 2, 2}));
  for (const std::string axis : {"batch", "space", "channels"})
    for (const int ranks : {2, 6}) {  // of 5 samples and 3 positions: some have none
      if (axis == "channels" && ranks > 2) continue;
      const std::string out = axis + std::to_string(ranks), whole = "whole/";
      const std::string sync = axis == "channels" ? "none" : "world";
      const Outcome outcome =
          run("--set sync=" + sync + " --split " + axis + " --ranks " + std::to_string(ranks) + " --out " + out);
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      for (const char* name : {"output", "grad_input"})
        expect_near(joined(out, name, ranks, axis), place.values(whole + name + ".npy"), out + " " + name);
      if (axis == "channels") continue;
      for (const char* name : {"running_mean", "running_whitening"})
        for (int r = 0; r < ranks; ++r)
          expect_near(place.values(out + "/" + name + ".r" + std::to_string(r) + ".npy"),
                      place.values(whole + name + ".npy"), out + " " + name);
    }
}

TEST_P(WhiteningProgram, GoesOnFromItsStateToInference) {
  ASSERT_EQ(run("--steps 3 --save-state s.st --out a").code, 0);
  ASSERT_EQ(run("--load-state s.st --set training=false --out b").code, 0);
  const std::string given =
      "--tensor running_mean=a/running_mean.s2.npy --tensor running_whitening="
      "a/running_whitening.s2.npy --set training=false --out ";
  ASSERT_EQ(run(given + "c").code, 0);
  EXPECT_EQ(place.bytes("b/output.npy"), place.bytes("c/output.npy"));
  EXPECT_EQ(place.bytes("b/grad_input.npy"), place.bytes("c/grad_input.npy"));
  EXPECT_FALSE(place.exists("b/running_mean.npy"));
  ASSERT_EQ(run(given + "d --split channels --ranks 2").code, 0);
  expect_near(joined("d", "output", 2, "channels"), place.values("c/output.npy"), "output");
}

TEST_P(WhiteningProgram, SaysWhatIsWrong) {
  const std::string two = "--set sync=world --ranks 2 --out o --split ";
  EXPECT_EQ(run(two + "channels").code, 2);
  const Outcome size = run("--out o", "3");
  EXPECT_EQ(size.code, 2);
  EXPECT_NE(size.err.find("attribute group_size is 3, must divide the number of channels, 4"), std::string::npos)
      << size.err;
  EXPECT_EQ(run("--split channels --ranks 2 --out o", "4").code, 2);  // a group cut in two
  EXPECT_EQ(run("--out o", "0").code, 2);
  EXPECT_EQ(run("--weight x.npy --out o").code, 2);
  EXPECT_EQ(run("--set iterations=0 --out o").code, 2);
  const Outcome shape = run("--tensor running_whitening=x.npy --out o");
  EXPECT_EQ(shape.code, 3);
  EXPECT_NE(shape.err.find("running_whitening has the shape (5,4,3), must have (2,2,2), (G,g,g)"), std::string::npos)
      << shape.err;
  EXPECT_EQ(place.run("apply batch_norm --input x.npy --save-state bn.st --out q").code, 0);
  EXPECT_EQ(run("--load-state bn.st --out o").code, 3);
  EXPECT_EQ(run("--save-state four.st --out q", "4").code, 0);
  EXPECT_EQ(run("--load-state four.st --out o").code, 3);
}

INSTANTIATE_TEST_SUITE_P(Layers, WhiteningProgram, testing::Values("decorrelated_batch_norm", "iterative_norm"),
                         [](const auto& one) { return std::string(one.param); });

}  // namespace
}  // namespace allnorm::test
