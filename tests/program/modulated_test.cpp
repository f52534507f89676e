// Layers whose gamma and beta are each sample's or each value's own, in the program: files, cuts, exit codes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "runner.hpp"

namespace allnorm::test {
namespace {

using launch::NpyArray;
using launch::NpyType;
using Values = std::vector<double>;

template <class T>
void write(const Workplace& place, std::string_view name, NpyType type, const Shape& shape,
           const std::vector<T>& values) {
  NpyArray array{type, shape, std::vector<std::byte>(values.size() * sizeof(T))};
  if (!values.empty()) std::memcpy(array.data.data(), values.data(), array.data.size());
  place.write(name, array);
}

// The parts of an output that ranks wrote, one behind the other.
Values joined(const Workplace& place, const std::string& name, int ranks) {
  Values all;
  for (int r = 0; r < ranks; ++r) {
    const Values part = place.values(name + ".r" + std::to_string(r) + ".npy");
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

void expect_near(const Values& got, const Values& want, double bound) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], bound) << i;
}

TEST(ConditionalBatchNorm, TakesLabelsOfAnyIntegerType) {
  Workplace place;
  place.make("x.npy", {3, 2, 4});
  place.make("gamma.npy", {2, 2});
  write<std::int32_t>(place, "i32.npy", NpyType::i32, {3}, {1, 0, 1});
  write<std::uint8_t>(place, "u8.npy", NpyType::u8, {3}, {1, 0, 1});
  const std::string words = "apply conditional_batch_norm --input x.npy --weight gamma.npy --grad-output x.npy";
  for (const std::string type : {"i32", "u8"}) {
    const Outcome outcome = place.run(words + " --tensor labels=" + type + ".npy --out " + type);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
  }
  EXPECT_EQ(place.bytes("i32/output.npy"), place.bytes("u8/output.npy"));
  EXPECT_EQ(place.read("i32/grad_weight.npy").shape, (Shape{2, 2}));
  EXPECT_EQ(place.list("i32"),
            (std::vector<std::string>{"grad_input.npy", "grad_weight.npy", "mean.npy", "num_batches_tracked.npy",
                                      "output.npy", "running_mean.npy", "running_var.npy", "var.npy"}));
}

TEST(ConditionalBatchNorm, CutOverRanksIsOneRank) {
  Workplace place;
  place.make("x.npy", {5, 3, 4});
  place.make("dy.npy", {5, 3, 4});
  place.make("table.npy", {4, 3});
  place.make("delta.npy", {5, 3});
  write<std::int64_t>(place, "labels.npy", NpyType::i64, {5}, {3, 0, 1, 1, 2});
  const std::string words =
      "apply conditional_batch_norm --input x.npy --grad-output dy.npy --weight table.npy --bias table.npy --tensor "
      "delta_weight=delta.npy --tensor delta_bias=delta.npy --tensor labels=labels.npy";
  ASSERT_EQ(place.run(words + " --out whole").code, 0);
  const Outcome cut = place.run(words + " --split batch --ranks 2 --set sync=world --out cut");
  ASSERT_EQ(cut.code, 0) << cut.err;
  for (const char* name : {"output", "grad_input", "grad_delta_weight", "grad_delta_bias"})
    expect_near(joined(place, "cut/" + std::string(name), 2), place.values("whole/" + std::string(name) + ".npy"),
                1e-12);
  Values sum = place.values("cut/grad_weight.r0.npy");
  const Values other = place.values("cut/grad_weight.r1.npy");
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
  expect_near(sum, place.values("whole/grad_weight.npy"), 1e-12);

  const Outcome channels = place.run(words + " --split channels --ranks 3 --out channels");
  ASSERT_EQ(channels.code, 0) << channels.err;
  const Values whole = place.values("whole/grad_weight.npy"), delta = place.values("whole/grad_delta_bias.npy");
  for (std::size_t c = 0; c < 3; ++c) {
    const Values table = place.values("channels/grad_weight.r" + std::to_string(c) + ".npy"),
                 bias = place.values("channels/grad_delta_bias.r" + std::to_string(c) + ".npy");
    for (std::size_t k = 0; k < 4; ++k) EXPECT_NEAR(table[k], whole[3 * k + c], 1e-12);
    for (std::size_t n = 0; n < 5; ++n) EXPECT_NEAR(bias[n], delta[3 * n + c], 1e-12);
  }
}

TEST(ConditionalBatchNorm, GoesOnFromItsState) {
  Workplace place;
  for (int i = 0; i < 4; ++i) place.make("x." + std::to_string(i) + ".npy", {3, 2, 4 + i});
  place.make("table.npy", {2, 2});
  write<std::int64_t>(place, "labels.npy", NpyType::i64, {3}, {1, 0, 1});
  const std::string words =
      "apply conditional_batch_norm --set window=3 --set compensate=false --weight table.npy --tensor "
      "labels=labels.npy";
  ASSERT_EQ(place.run(words + " --steps 3 --input x.{step}.npy --out whole").code, 0);
  ASSERT_EQ(place.run(words + " --steps 2 --input x.{step}.npy --save-state s.st --out a").code, 0);
  const Outcome outcome = place.run(words + " --load-state s.st --input x.2.npy --out b");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.values("b/output.npy"), place.values("whole/output.s2.npy"));
  EXPECT_EQ(place.values("b/running_var.npy"), place.values("whole/running_var.s2.npy"));
}

TEST(ConditionalBatchNorm, SaysWhatIsWrong) {
  Workplace place;
  place.make("x.npy", {3, 2, 4});
  place.make("table.npy", {2, 2});
  place.make("floats.npy", {3});
  write<std::int64_t>(place, "large.npy", NpyType::i64, {3}, {1, 2, 1});
  write<std::int64_t>(place, "less.npy", NpyType::i64, {3}, {1, -1, 1});
  write<std::int64_t>(place, "short.npy", NpyType::i64, {2}, {1, 0});
  const auto run = [&](const std::string& words) {
    return place.run("apply conditional_batch_norm --input x.npy --out o " + words);
  };
  for (const char* labels : {"large", "less", "short", "floats"}) {
    const Outcome outcome = run("--weight table.npy --tensor labels=" + std::string(labels) + ".npy");
    EXPECT_EQ(outcome.code, 3) << labels;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_NE(outcome.err.find("labels"), std::string::npos) << outcome.err;
    EXPECT_FALSE(place.exists("o"));
  }
  EXPECT_EQ(run("--weight table.npy").code, 3);
  EXPECT_EQ(run("--tensor styles=large.npy").code, 2);
  EXPECT_EQ(run("--set sync=world --split batch --ranks 3 --weight table.npy --tensor labels=large.npy").code, 3);
}

TEST(ConditionalInstanceNorm, TakesStylesOrWeightsOfThem) {
  Workplace place;
  place.make("x.npy", {4, 2, 3});
  place.make("table.npy", {3, 2});
  write<std::int64_t>(place, "styles.npy", NpyType::i64, {4}, {2, 0, 1, 2});
  write<float>(place, "weights.npy", NpyType::f32, {4, 3}, {0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1});
  const std::string words =
      "apply conditional_instance_norm --input x.npy --weight table.npy --bias table.npy --grad-output x.npy";
  for (const char* styles : {"styles", "weights"})
    for (const char* ranks : {"", " --split batch --ranks 3"}) {
      const Outcome outcome =
          place.run(words + " --tensor styles=" + styles + ".npy --out " + styles + (*ranks != 0 ? "cut" : "") + ranks);
      ASSERT_EQ(outcome.code, 0) << outcome.err;
    }
  EXPECT_EQ(place.list("styles"),
            (std::vector<std::string>{"grad_bias.npy", "grad_input.npy", "grad_weight.npy", "output.npy"}));
  for (const char* name : {"output", "grad_input"}) {
    const Values whole = place.values("styles/" + std::string(name) + ".npy");
    expect_near(place.values("weights/" + std::string(name) + ".npy"), whole, 1e-14);
    for (const std::string folder : {"stylescut/", "weightscut/"})
      expect_near(joined(place, folder + name, 3), whole, 1e-14);
  }
  for (const char* name : {"grad_weight", "grad_bias"}) {
    const Values whole = place.values("styles/" + std::string(name) + ".npy");
    expect_near(place.values("weights/" + std::string(name) + ".npy"), whole, 1e-13);
    Values sum(whole.size());
    for (int r = 0; r < 3; ++r) {
      const Values part = place.values("stylescut/" + std::string(name) + ".r" + std::to_string(r) + ".npy");
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    expect_near(sum, whole, 1e-13);
  }
}

TEST(ConditionalInstanceNorm, SaysWhatIsWrong) {
  Workplace place;
  place.make("x.npy", {4, 2, 3});
  place.make("table.npy", {3, 2});
  write<std::int64_t>(place, "styles.npy", NpyType::i64, {4}, {2, 0, 1, 3});
  place.make("weights.npy", {4, 2});
  place.make("floats.npy", {4});
  const auto run = [&](const std::string& words) {
    return place.run("apply conditional_instance_norm --input x.npy --out o " + words);
  };
  EXPECT_EQ(run("--weight table.npy").code, 2);
  for (const char* styles : {"styles", "weights", "floats"}) {
    const Outcome outcome = run("--weight table.npy --tensor styles=" + std::string(styles) + ".npy");
    EXPECT_EQ(outcome.code, 3) << styles;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_NE(outcome.err.find("styles"), std::string::npos) << outcome.err;
  }
}

TEST(AdaptiveInstanceNorm, IsTheSameInBothLayoutsAndOverRanks) {
  Workplace place;
  place.make("x.npy", {3, 2, 4});
  place.make("style.npy", {3, 2, 2, 3});
  const auto last = [&](const char* from, const char* to, const Shape& shape, std::size_t space) {
    const Values values = place.values(from);  // (3, 2, space) -> (3, space, 2)
    Values moved(values.size());
    for (std::size_t n = 0; n < 3; ++n)
      for (std::size_t c = 0; c < 2; ++c)
        for (std::size_t s = 0; s < space; ++s) moved[(n * space + s) * 2 + c] = values[(n * 2 + c) * space + s];
    write<double>(place, to, NpyType::f64, shape, moved);
  };
  last("x.npy", "x_last.npy", {3, 4, 2}, 4);
  last("style.npy", "style_last.npy", {3, 2, 3, 2}, 6);
  const std::string words = "apply adaptive_instance_norm --set alpha=0.75 ";
  const std::string given = "--input x.npy --grad-output x.npy --tensor style=style.npy ";
  ASSERT_EQ(place.run(words + given + "--out whole").code, 0);
  ASSERT_EQ(place.run(words + given + "--split batch --ranks 2 --out cut").code, 0);
  const Outcome outcome =
      place.run(words +
                "--input x_last.npy --grad-output x_last.npy --tensor style=style_last.npy --layout "
                "channels_last --out last");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.list("whole"), (std::vector<std::string>{"grad_input.npy", "grad_style.npy", "output.npy"}));
  EXPECT_EQ(place.read("whole/grad_style.npy").shape, (Shape{3, 2, 2, 3}));
  EXPECT_EQ(place.read("last/grad_style.npy").shape, (Shape{3, 2, 3, 2}));
  for (const char* name : {"output", "grad_input", "grad_style"})
    expect_near(joined(place, "cut/" + std::string(name), 2), place.values("whole/" + std::string(name) + ".npy"),
                1e-13);
  last("whole/output.npy", "output_last.npy", {3, 4, 2}, 4);
  last("whole/grad_style.npy", "grad_style_last.npy", {3, 2, 3, 2}, 6);
  expect_near(place.values("last/output.npy"), place.values("output_last.npy"), 1e-13);
  expect_near(place.values("last/grad_style.npy"), place.values("grad_style_last.npy"), 1e-13);
}

TEST(AdaptiveInstanceNorm, WritesGradientsInTheTypeOfTheInput) {
  Workplace place;
  place.make("x.npy", {2, 2, 4});
  place.make("style.npy", {2, 2, 5});
  const Outcome outcome = place.run(
      "apply adaptive_instance_norm --dtype f16 --input x.npy --grad-output x.npy --tensor style=style.npy --out o");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* name : {"o/output.npy", "o/grad_style.npy"}) EXPECT_EQ(place.read(name).type, NpyType::f16);
}

TEST(AdaptiveInstanceNorm, SaysWhatIsWrong) {
  Workplace place;
  place.make("x.npy", {2, 2, 4});
  place.make("style.npy", {2, 3, 5});
  EXPECT_EQ(place.run("apply adaptive_instance_norm --input x.npy --out o").code, 2);
  EXPECT_EQ(
      place.run("apply adaptive_instance_norm --input x.npy --tensor style=style.npy --set alpha=-1 --out o").code, 2);
  const Outcome outcome = place.run("apply adaptive_instance_norm --input x.npy --tensor style=style.npy --out o");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
}

TEST(Spade, WritesWhatItsBaseHas) {
  Workplace place;
  for (const char* name : {"x.npy", "gamma.npy", "beta.npy"}) place.make(name, {3, 2, 4}, NpyType::f32);
  const std::string words =
      "apply spade --input x.npy --tensor gamma=gamma.npy --tensor beta=beta.npy --grad-output x.npy ";
  const Outcome batch = place.run(words + "--save-state s.st --out batch");
  ASSERT_EQ(batch.code, 0) << batch.err;
  EXPECT_EQ(place.list("batch"), (std::vector<std::string>{"grad_beta.npy", "grad_gamma.npy", "grad_input.npy",
                                                           "mean.npy", "num_batches_tracked.npy", "output.npy",
                                                           "running_mean.npy", "running_var.npy", "var.npy"}));
  EXPECT_EQ(place.read("batch/grad_gamma.npy").type, NpyType::f32);
  EXPECT_EQ(place.read("batch/mean.npy").shape, Shape{2});
  EXPECT_EQ(place.run(words + "--load-state s.st --out again").code, 0);
  const Outcome instance = place.run(words + "--set base=instance_norm --out instance");
  ASSERT_EQ(instance.code, 0) << instance.err;
  EXPECT_EQ(place.list("instance"), (std::vector<std::string>{"grad_beta.npy", "grad_gamma.npy", "grad_input.npy",
                                                              "mean.npy", "output.npy", "rstd.npy"}));
  EXPECT_EQ(place.read("instance/rstd.npy").shape, (Shape{3, 2}));
}

TEST(Spade, CutOverRanksIsOneRank) {
  Workplace place;
  for (const char* name : {"x.npy", "gamma.npy", "beta.npy"}) place.make(name, {3, 2, 4, 2});
  const std::string words =
      "apply spade --input x.npy --tensor gamma=gamma.npy --tensor beta=beta.npy --grad-output x.npy ";
  for (const std::string base : {"batch_norm", "instance_norm"}) {
    ASSERT_EQ(place.run(words + "--set base=" + base + " --out whole").code, 0);
    const bool batch = base == "batch_norm";
    const Outcome cut = place.run(words + "--set sync=world --ranks 2 --out cut --set base=" + base + " --split " +
                                  (batch ? "batch" : "space"));
    ASSERT_EQ(cut.code, 0) << cut.err;
    for (const char* name : {"output", "grad_input", "grad_gamma"}) {
      const Values whole = place.values("whole/" + std::string(name) + ".npy");
      Values parts = joined(place, "cut/" + std::string(name), 2);
      if (!batch) {  // rows 0 and 1 of four, and 2 and 3, of every channel
        Values sorted(parts.size());
        for (std::size_t i = 0; i < parts.size(); ++i) sorted[i / 4 % 6 * 8 + i / 24 * 4 + i % 4] = parts[i];
        parts = sorted;
      }
      expect_near(parts, whole, 1e-12);
    }
  }
  const Outcome refused =
      place.run(words + "--set sync=world --set base=instance_norm --ranks 2 --split batch --out o");
  EXPECT_EQ(refused.code, 2) << refused.err;
}

TEST(Spade, SaysWhatIsWrong) {
  Workplace place;
  for (const char* name : {"x.npy", "gamma.npy", "beta.npy"}) place.make(name, {3, 2, 4});
  place.make("mean.npy", {2});
  place.make("short.npy", {3, 2, 3});
  const auto run = [&](const std::string& words) { return place.run("apply spade --input x.npy --out o " + words); };
  const std::string maps = "--tensor gamma=gamma.npy --tensor beta=beta.npy ";
  EXPECT_EQ(run("--tensor gamma=gamma.npy").code, 2);
  EXPECT_EQ(run(maps + "--weight mean.npy").code, 2);
  EXPECT_EQ(run(maps + "--bias mean.npy").code, 2);
  EXPECT_EQ(run(maps + "--tensor running_mean=mean.npy").code, 0);
  EXPECT_EQ(run(maps + "--tensor running_mean=mean.npy --set base=instance_norm").code, 2);
  EXPECT_EQ(run(maps + "--set base=instance_norm --set window=2").code, 2);
  EXPECT_EQ(run(maps + "--set base=group_norm").code, 2);
  EXPECT_EQ(run("--tensor gamma=short.npy --tensor beta=beta.npy").code, 3);
}

}  // namespace
}  // namespace allnorm::test
