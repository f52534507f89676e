// `allnorm apply`: which files it writes, of which type and shape, and that ranks, steps and splits agree.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "launch/files/npy_convert.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

using launch::NpyType;
using Names = std::vector<std::string>;

// Sums of n values of magnitude m, in another order, differ by about sqrt(n) rounding errors of the sum.
double tolerance(std::size_t n) { return 64 * std::sqrt(static_cast<double>(n)) * 2.2e-16; }

void expect_near(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  double largest = 1;
  for (const double value : b) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], largest * tolerance(a.size())) << i;
}

TEST(Outputs, OfBatchNormWithoutGradient) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  ASSERT_EQ(place.run("apply batch_norm --input x.npy --weight nowhere.npy --out o").code, 3);
  const Outcome outcome = place.run("apply batch_norm --input x.npy --out deep/o");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(place.list("deep/o"), (Names{"mean.npy", "num_batches_tracked.npy", "output.npy", "running_mean.npy",
                                         "running_var.npy", "var.npy"}));
  EXPECT_EQ(place.read("deep/o/mean.npy").shape, (Shape{4}));
  EXPECT_EQ(place.read("deep/o/output.npy").shape, (Shape{3, 4, 5}));
  EXPECT_EQ(place.read("deep/o/num_batches_tracked.npy").shape, Shape{});
  EXPECT_EQ(place.read("deep/o/num_batches_tracked.npy").type, NpyType::i64);
  EXPECT_EQ(place.values("deep/o/num_batches_tracked.npy"), std::vector<double>{1});
}

TEST(Outputs, GradientsOnlyOfTensorsThatWereGiven) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.make("g.npy", {4}, NpyType::f32);
  ASSERT_EQ(place
                .run("apply batch_norm --input x.npy --grad-output x.npy --bias g.npy --tensor residual=x.npy "
                     "--set training=false --out o")
                .code,
            0);
  EXPECT_EQ(place.list("o"),
            (Names{"grad_bias.npy", "grad_input.npy", "grad_residual.npy", "mean.npy", "output.npy", "var.npy"}));
  EXPECT_EQ(place.read("o/grad_bias.npy").type, NpyType::f64);
  // in inference y = x + x (nearly: eps) and the running statistics are 0 and 1
  EXPECT_EQ(place.values("o/mean.npy"), (std::vector<double>{0, 0, 0, 0}));
  EXPECT_EQ(place.values("o/var.npy"), (std::vector<double>{1, 1, 1, 1}));
}

TEST(Outputs, OfRenormAreSigmaAndRAndD) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  ASSERT_EQ(place.run("apply batch_renorm --input x.npy --out o").code, 0);
  EXPECT_EQ(place.list("o"), (Names{"d.npy", "mean.npy", "num_batches_tracked.npy", "output.npy", "r.npy",
                                    "running_mean.npy", "running_std.npy", "var.npy"}));
  ASSERT_EQ(place.run("apply batch_renorm --input x.npy --set variant=var --out p").code, 0);
  EXPECT_TRUE(place.exists("p/running_var.npy"));
  EXPECT_FALSE(place.exists("p/running_std.npy"));
}

TEST(Outputs, FollowThePlaceOfEps) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  ASSERT_EQ(place.run("apply batch_norm --input x.npy --set eps=0.5 --set eps_place=outside --out o").code, 0);
  const std::vector<double> x = place.values("x.npy"), mean = place.values("o/mean.npy"),
                            var = place.values("o/var.npy");
  std::vector<double> y;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t c = i / 5 % 4;
    y.push_back((x[i] - mean[c]) / (std::sqrt(var[c]) + 0.5));
  }
  expect_near(place.values("o/output.npy"), y);
  const Outcome outcome = place.run("apply batch_norm --input x.npy --set eps_place=above --out o");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.err, "allnorm: attribute eps_place is 'above', must be inside or outside\n");
}

TEST(Outputs, OfLayerAndGroupNormHaveTheirShapes) {
  Workplace place;
  place.make("x.npy", {3, 4, 5, 2});
  place.make("w.npy", {5, 2});
  ASSERT_EQ(
      place.run("apply layer_norm --input x.npy --grad-output x.npy --weight w.npy --set normalized_shape=5,2 --out o")
          .code,
      0);
  EXPECT_EQ(place.list("o"), (Names{"grad_input.npy", "grad_weight.npy", "mean.npy", "output.npy", "rstd.npy"}));
  EXPECT_EQ(place.read("o/rstd.npy").shape, (Shape{3, 4}));
  EXPECT_EQ(place.read("o/grad_weight.npy").shape, (Shape{5, 2}));
  ASSERT_EQ(place.run("apply layer_norm --input x.npy --out q").code, 0);
  EXPECT_EQ(place.read("q/mean.npy").shape, (Shape{3}));
  ASSERT_EQ(place.run("apply group_norm --input x.npy --set groups=2 --out p").code, 0);
  EXPECT_EQ(place.read("p/mean.npy").shape, (Shape{3, 2}));
}

TEST(Outputs, OfGroupNormWithActivationAndResidual) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.make("r.npy", {3, 4, 5});
  const std::string call = "apply group_norm --input x.npy --set groups=2 --out ";
  ASSERT_EQ(place.run(call + "plain").code, 0);
  const Outcome outcome =
      place.run(call + "fused --set activation=leaky_relu --set slope=0.5 --tensor residual=r.npy --grad-output x.npy");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.list("fused"), (Names{"grad_input.npy", "grad_residual.npy", "mean.npy", "output.npy", "rstd.npy"}));
  std::vector<double> y = place.values("plain/output.npy"), dresidual = place.values("x.npy");
  const std::vector<double> residual = place.values("r.npy");
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] += residual[i];
    if (y[i] <= 0) y[i] *= 0.5, dresidual[i] *= 0.5;
  }
  expect_near(place.values("fused/output.npy"), y);
  expect_near(place.values("fused/grad_residual.npy"), dresidual);
  EXPECT_EQ(place.run("apply rms_norm --input x.npy --tensor bias=r.npy --out o").code, 2);
}

TEST(Outputs, OfInstanceNormFollowTrack) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.make("c.npy", {4});
  const std::string call = "apply instance_norm --input x.npy ";
  ASSERT_EQ(place.run(call + "--out plain").code, 0);
  EXPECT_EQ(place.list("plain"), (Names{"mean.npy", "output.npy", "rstd.npy"}));
  ASSERT_EQ(place.run(call + "--set track=true --save-state state.safetensors --out kept").code, 0);
  EXPECT_EQ(place.list("kept"), (Names{"mean.npy", "num_batches_tracked.npy", "output.npy", "rstd.npy",
                                       "running_mean.npy", "running_var.npy"}));
  EXPECT_EQ(place.read("kept/running_var.npy").shape, (Shape{4}));
  const Outcome later =
      place.run(call + "--set track=true --set training=false --load-state state.safetensors --out i");
  ASSERT_EQ(later.code, 0) << later.err;
  EXPECT_EQ(place.list("i"), (Names{"mean.npy", "output.npy", "rstd.npy"}));
  const std::vector<double> mean = place.values("i/mean.npy"), running = place.values("kept/running_mean.npy");
  for (std::size_t i = 0; i < mean.size(); ++i) EXPECT_EQ(mean[i], running[i % 4]);

  for (const auto& [words, line] :
       {std::pair{"--set training=false",
                  "attribute training of instance_norm is false, must be true where no running statistics are kept"},
        {"--tensor running_mean=c.npy", "tensor of instance_norm is running_mean, must be left out unless track=true"},
        {"--set track=yes", "attribute track is 'yes', must be true or false"}}) {
    const Outcome outcome = place.run(call + words + " --out o");
    EXPECT_EQ(outcome.code, 2);
    EXPECT_EQ(outcome.err, "allnorm: " + std::string(line) + "\n");
  }
  EXPECT_EQ(place.run(call + "--set track=true --tensor running_mean=x.npy --out o").code, 3);
}

TEST(Outputs, OfWeightStandardization) {
  Workplace place;
  place.make("w.npy", {3, 4, 2});
  place.make("gain.npy", {3});
  const std::string call = "apply weight_standardization --input w.npy --tensor gain=gain.npy --grad-output w.npy ";
  const Outcome outcome = place.run(call + "--out whole");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.list("whole"), (Names{"grad_gain.npy", "grad_input.npy", "output.npy"}));
  // The rows are cut with their gains; the layout says nothing.
  ASSERT_EQ(place.run(call + "--layout channels_last --split batch --ranks 2 --out parts").code, 0);
  for (const std::string name : {"output", "grad_input", "grad_gain"}) {
    std::vector<double> joined = place.values("parts/" + name + ".r0.npy");
    const std::vector<double> rest = place.values("parts/" + name + ".r1.npy");
    joined.insert(joined.end(), rest.begin(), rest.end());
    EXPECT_EQ(joined, place.values("whole/" + name + ".npy")) << name;
  }
  EXPECT_EQ(place.run(call + "--set unbiased=1 --out o").code, 2);
  EXPECT_EQ(place.run("apply weight_standardization --input w.npy --tensor gain=w.npy --out o").code, 3);
}

TEST(Outputs, OfWeightNorm) {
  Workplace place;
  place.make("v.npy", {3, 4, 2});
  place.make("g.npy", {4});
  place.make("kept.npy", {1, 4, 1});
  const std::string call = "apply weight_norm --input v.npy --grad-output v.npy ";
  for (const std::string words : {"--tensor g=g.npy --set dim=1", "--tensor g=kept.npy --set dim=-2"}) {
    const Outcome outcome = place.run(call + words + " --out o");
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(place.list("o"), (Names{"grad_g.npy", "grad_input.npy", "output.npy"}));
    EXPECT_EQ(place.read("o/grad_g.npy").shape, words.find("kept") == words.npos ? (Shape{4}) : (Shape{1, 4, 1}));
  }
  ASSERT_EQ(place.run(call + "--out plain").code, 0);
  EXPECT_EQ(place.list("plain"), (Names{"grad_input.npy", "output.npy"}));
  expect_near(place.values("plain/output.npy"), place.values("v.npy"));
  const Outcome outcome = place.run(call + "--set dim=3 --out p");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.err, "allnorm: attribute dim is 3, must be from -3 to 2: input has shape (3,4,2)\n");
  EXPECT_EQ(place.run(call + "--tensor g=g.npy --out p").code, 3);
}

TEST(Outputs, OfMeanOnlyBatchNorm) {
  Workplace place;
  place.make("x.npy", {4, 3, 2});
  place.make("b.npy", {3});
  const std::string call = "apply mean_only_batch_norm --input x.npy --bias b.npy --grad-output x.npy ";
  const Outcome outcome = place.run(call + "--save-state state.safetensors --out whole");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.list("whole"),
            (Names{"grad_bias.npy", "grad_input.npy", "mean.npy", "output.npy", "running_mean.npy"}));
  ASSERT_EQ(place.run(call + "--split batch --ranks 2 --set sync=world --out parts").code, 0);
  expect_near(place.values("parts/mean.r1.npy"), place.values("whole/mean.npy"));
  ASSERT_EQ(place.run(call + "--set training=false --load-state state.safetensors --out later").code, 0);
  EXPECT_EQ(place.list("later"), (Names{"grad_bias.npy", "grad_input.npy", "mean.npy", "output.npy"}));
  EXPECT_EQ(place.values("later/mean.npy"), place.values("whole/running_mean.npy"));
  EXPECT_EQ(place.run(call + "--weight b.npy --out o").code, 2);
}

TEST(Names, CarryRankAndStep) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  ASSERT_EQ(place.run("apply group_norm --set groups=2 --input x.npy --steps 2 --ranks 2 --out o").code, 0);
  const Names names = place.list("o");
  EXPECT_EQ(names.size(), 12u);
  EXPECT_EQ(names[0], "mean.r0.s0.npy");
  EXPECT_EQ(names[11], "rstd.r1.s1.npy");
  ASSERT_EQ(place.run("apply group_norm --set groups=2 --input x.npy --steps 2 --out p").code, 0);
  EXPECT_EQ(place.list("p")[0], "mean.s0.npy");
}

TEST(DTypes, OutputFollowsTheInputOrTheOption) {
  Workplace place;
  place.make("d.npy", {3, 4, 5});
  place.make("f.npy", {3, 4, 5}, NpyType::f32);
  place.make("h.npy", {3, 4, 5}, NpyType::f16);
  place.make("i.npy", {3, 4, 5}, NpyType::i64);
  const auto type = [&](const char* words) {
    const Outcome outcome = place.run("apply batch_norm --out o --input " + std::string(words));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(place.read("o/mean.npy").type, NpyType::f64);
    return place.read("o/output.npy").type;
  };
  EXPECT_EQ(type("d.npy"), NpyType::f64);
  EXPECT_EQ(type("f.npy"), NpyType::f32);
  EXPECT_EQ(type("h.npy"), NpyType::f16);
  EXPECT_EQ(type("d.npy --dtype f16"), NpyType::f16);
  EXPECT_EQ(type("d.npy --dtype bf16"), NpyType::f32);
  EXPECT_EQ(type("i.npy --dtype f32"), NpyType::f32);
}

TEST(Layout, ChannelsLastIsTheSameTransposed) {
  Workplace place;
  const Shape first{3, 4, 5, 2}, last{3, 5, 2, 4};
  place.make("x.npy", first);
  const std::vector<double> x = place.values("x.npy");
  const auto to_last = [](const std::vector<double>& values) {
    std::vector<double> moved;
    for (std::size_t n = 0; n < 3; ++n)
      for (std::size_t s = 0; s < 10; ++s)
        for (std::size_t c = 0; c < 4; ++c) moved.push_back(values[(n * 4 + c) * 10 + s]);
    return moved;
  };
  place.write("l.npy", launch::from_doubles(to_last(x), last));
  for (const char* layer : {"batch_norm", "group_norm --set groups=2"}) {
    const std::string words = "apply " + std::string(layer);
    ASSERT_EQ(place.run(words + " --input x.npy --grad-output x.npy --out a").code, 0);
    ASSERT_EQ(place.run(words + " --layout channels_last --input l.npy --grad-output l.npy --out b").code, 0);
    EXPECT_EQ(place.read("b/output.npy").shape, last);
    for (const char* name : {"/output.npy", "/grad_input.npy"})
      expect_near(place.values("b" + std::string(name)), to_last(place.values("a" + std::string(name))));
    expect_near(place.values("b/mean.npy"), place.values("a/mean.npy"));
  }
}

TEST(Split, BatchOverRanksGivesTheWholeBatchsNumbers) {
  Workplace place;
  place.make("x.npy", {5, 4, 6});
  ASSERT_EQ(place.run("apply batch_norm --input x.npy --grad-output x.npy --out whole").code, 0);
  const std::vector<double> whole = place.values("whole/output.npy");
  for (const int ranks : {2, 3, 7}) {  // 7: two ranks have no sample
    const std::string out = "o" + std::to_string(ranks);
    const Outcome outcome = place.run("apply sync_batch_norm --split batch --ranks " + std::to_string(ranks) +
                                      " --input x.npy --grad-output x.npy --out " + out);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    std::vector<double> joined;
    for (int rank = 0; rank < ranks; ++rank) {
      const std::string file = out + "/output.r" + std::to_string(rank) + ".npy";
      EXPECT_EQ(place.read(file).shape[0], 5 / ranks + (rank < 5 % ranks ? 1 : 0));
      const auto part = place.values(file);
      joined.insert(joined.end(), part.begin(), part.end());
    }
    expect_near(joined, whole);
    expect_near(place.values(out + "/running_var.r1.npy"), place.values("whole/running_var.npy"));
  }
}

TEST(Split, ChannelsCutTheParametersToo) {
  Workplace place;
  place.make("x.npy", {3, 5, 2});
  place.make("g.npy", {5});
  ASSERT_EQ(place.run("apply batch_norm --input x.npy --weight g.npy --out whole").code, 0);
  ASSERT_EQ(place.run("apply batch_norm --split channels --ranks 2 --input x.npy --weight g.npy --out o").code, 0);
  std::vector<double> joined = place.values("o/mean.r0.npy");
  const auto part = place.values("o/mean.r1.npy");
  EXPECT_EQ(joined.size(), 3u);
  joined.insert(joined.end(), part.begin(), part.end());
  EXPECT_EQ(joined, place.values("whole/mean.npy"));
}

TEST(Empty, BatchIsWrittenToo) {
  Workplace place;
  place.make("x.0.npy", {0, 4, 5});
  place.make("x.1.npy", {3, 4, 5});
  const Outcome outcome =
      place.run("apply sync_batch_norm --ranks 2 --input x.{rank}.npy --grad-output x.{rank}.npy --out o");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.read("o/output.r0.npy").shape, (Shape{0, 4, 5}));
  EXPECT_EQ(place.values("o/mean.r0.npy"), place.values("o/mean.r1.npy"));
}

TEST(State, SavedAndLoadedContinuesWhereItStopped) {
  Workplace place;
  for (int step = 0; step < 4; ++step) place.make("x." + std::to_string(step) + ".npy", {2 + step, 4, 5});
  for (const char* layer : {"batch_renorm", "cross_mini_batch_norm --set minibatches=3",
                            "cross_iteration_batch_norm --set compensate=false"}) {
    const std::string words = "apply " + std::string(layer);
    ASSERT_EQ(place.run(words + " --steps 4 --input x.{step}.npy --out whole").code, 0);
    ASSERT_EQ(place.run(words + " --steps 2 --input x.{step}.npy --save-state s.st --out a").code, 0);
    ASSERT_EQ(place.run(words + " --load-state s.st --save-state s.st --input x.2.npy --out b").code, 0);
    const Outcome outcome = place.run(words + " --load-state s.st --input x.3.npy --out b");
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(place.values("b/output.npy"), place.values("whole/output.s3.npy")) << layer;
    EXPECT_EQ(place.values("b/running_mean.npy"), place.values("whole/running_mean.s3.npy")) << layer;
  }
}

TEST(Overwriting, KeepsTheOldFilesOnFailure) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  ASSERT_EQ(place.run("apply batch_norm --input x.npy --out o").code, 0);
  const Names before = place.list("o");
  const auto old = place.values("o/output.npy");
  place.make("x.npy", {3, 4, 6});
  place.write_bytes("blocked", "");
  ASSERT_EQ(place.run("apply batch_norm --input x.npy --out o --save-state blocked/s.st").code, 3);
  EXPECT_EQ(place.list("o"), before);
  EXPECT_EQ(place.values("o/output.npy"), old);
}

}  // namespace
}  // namespace allnorm::test
