// `allnorm apply` of rows with tensors of their own: thresholds, gradients of statistics, maps of positions.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "runner.hpp"

namespace allnorm::test {
namespace {

using launch::NpyType;
using Names = std::vector<std::string>;
using Values = std::vector<double>;

TEST(Thresholds, PartTheGradientBetweenTauAndBeta) {
  Workplace place;
  place.make("x.npy", {2, 3, 4});
  place.make("c.npy", {3}, NpyType::f32);
  ASSERT_EQ(place
                .run("apply filter_response_norm --input x.npy --grad-output x.npy --weight c.npy --bias c.npy "
                     "--tensor tau=c.npy --tensor eps_learned=c.npy --set tie=half --out o")
                .code,
            0);
  EXPECT_EQ(place.list("o"), (Names{"grad_bias.npy", "grad_eps_learned.npy", "grad_input.npy", "grad_tau.npy",
                                    "grad_weight.npy", "output.npy"}));
  const Values z = place.values("o/output.npy"), tau = place.values("c.npy"), dz = place.values("x.npy");
  Values sum(3);
  for (std::size_t i = 0; i < z.size(); ++i) {
    EXPECT_GE(z[i], tau[i / 4 % 3]);
    sum[i / 4 % 3] += dz[i];
  }
  const Values of_tau = place.values("o/grad_tau.npy"), of_bias = place.values("o/grad_bias.npy");
  for (std::size_t c = 0; c < 3; ++c) EXPECT_NEAR(of_tau[c] + of_bias[c], sum[c], 1e-12);
  ASSERT_EQ(place.run("apply filter_response_norm --input x.npy --grad-output x.npy --out p").code, 0);
  EXPECT_EQ(place.list("p"), (Names{"grad_input.npy", "output.npy"}));
  const Outcome outcome = place.run("apply filter_response_norm --input x.npy --set tie=both --out q");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("attribute tie is 'both', must be first, second or half"), std::string::npos);
}

TEST(GradientsOfStatistics, CountWithoutThatOfTheOutput) {
  Workplace place;
  place.make("x.npy", {2, 3, 4});
  place.make("g.npy", {2, 1, 4});
  ASSERT_EQ(place.run("apply positional_norm --input x.npy --tensor grad_mean=g.npy --out o").code, 0);
  EXPECT_EQ(place.list("o"), (Names{"grad_input.npy", "mean.npy", "output.npy", "std.npy"}));
  EXPECT_EQ(place.read("o/mean.npy").shape, (Shape{2, 1, 4}));
  EXPECT_EQ(place.read("o/std.npy").shape, (Shape{2, 1, 4}));
  const Values g = place.values("g.npy"), dx = place.values("o/grad_input.npy");
  for (std::size_t i = 0; i < dx.size(); ++i) EXPECT_NEAR(dx[i], g[i / 12 * 4 + i % 4] / 3, 1e-15);

  // with that of the output it is added to it
  const char* all = "--weight w.npy --bias w.npy --tensor grad_mean=g.npy --tensor grad_std=g.npy";
  place.make("w.npy", {1, 1, 4});
  const auto run = [&](const std::string& more) {
    const Outcome outcome = place.run("apply positional_norm --input x.npy --set eps=1e-3 " + more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
  };
  run(std::string(all) + " --out both --grad-output x.npy");
  run(std::string(all) + " --out direct");
  run("--weight w.npy --bias w.npy --out plain --grad-output x.npy");
  const Values both = place.values("both/grad_input.npy"), direct = place.values("direct/grad_input.npy"),
               plain = place.values("plain/grad_input.npy");
  for (std::size_t i = 0; i < both.size(); ++i) EXPECT_NEAR(both[i], direct[i] + plain[i], 1e-12);
  EXPECT_EQ(place.values("direct/grad_weight.npy"), Values(4, 0.0));
  EXPECT_EQ(place.values("both/grad_weight.npy"), place.values("plain/grad_weight.npy"));
  run("--out none");
  EXPECT_FALSE(place.exists("none/grad_input.npy"));

  // parts of samples and of space are those of the whole
  for (const char* split : {"batch", "space"}) {
    run(std::string(all) + " --grad-output x.npy --ranks 2 --split " + split + " --out " + split);
    const std::string folder = split;
    Values whole_mean = place.values("both/mean.npy"), mean = place.values(folder + "/mean.r0.npy");
    EXPECT_EQ(mean.size(), 4u);
    EXPECT_EQ(mean[0], whole_mean[0]);
    const Values part = place.values(folder + "/grad_input.r1.npy");
    EXPECT_EQ(part.back(), both.back());
  }
}

TEST(Shortcuts, AreOfTheInputsType) {
  Workplace place;
  place.make("x.npy", {2, 3, 4});
  place.make("g.npy", {2, 1, 4});
  const auto run = [&](const std::string& more) {
    const Outcome outcome = place.run(
        "apply moment_shortcut --input x.npy --grad-output x.npy --tensor gamma=g.npy --tensor beta=g.npy " + more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
  };
  run("--out o");
  const Values x = place.values("x.npy"), g = place.values("g.npy"), y = place.values("o/output.npy");
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double own = g[i / 12 * 4 + i % 4];
    EXPECT_NEAR(y[i], own * x[i] + own, 1e-14);
  }
  run("--dtype f16 --out half");
  for (const char* name : {"output", "grad_input", "grad_gamma", "grad_beta"})
    EXPECT_EQ(place.read("half/" + std::string(name) + ".npy").type, NpyType::f16) << name;
  EXPECT_EQ(place.read("half/grad_gamma.npy").shape, (Shape{2, 1, 4}));
  run("--dtype bf16 --out brain");
  EXPECT_EQ(place.read("brain/grad_gamma.npy").type, NpyType::f32);
  for (const char* split : {"batch", "space", "channels"}) run(std::string("--ranks 2 --out s --split ") + split);
  const Values first = place.values("s/grad_beta.r0.npy"), second = place.values("s/grad_beta.r1.npy"),
               whole = place.values("o/grad_beta.npy");
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(first[i] + second[i], whole[i], 1e-14);
}

}  // namespace
}  // namespace allnorm::test
