// Layers that read whole axes and exchange nothing: local_response_norm and cosine_norm through `allnorm apply`.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "runner.hpp"

namespace allnorm::test {
namespace {

using launch::NpyType;
using Names = std::vector<std::string>;

/// The parts of all ranks, one after another.
std::vector<double> joined(const Workplace& place, const std::string& name, int ranks) {
  std::vector<double> all;
  for (int rank = 0; rank < ranks; ++rank)
    for (const double value : place.values(name + ".r" + std::to_string(rank) + ".npy")) all.push_back(value);
  return all;
}

TEST(LocalResponseNorm, IsTheSameOverRanksAndInBothLayouts) {
  Workplace place;
  place.make("x.npy", {5, 4, 3});
  const std::string call = "apply local_response_norm --input x.npy --grad-output x.npy --set alpha=0.5 --set size=4 ";
  ASSERT_EQ(place.run(call + "--out whole").code, 0);
  EXPECT_EQ(place.list("whole"), (Names{"grad_input.npy", "output.npy"}));
  ASSERT_EQ(place.run(call + "--split batch --ranks 3 --out batch").code, 0);
  ASSERT_EQ(place.run(call + "--split space --ranks 2 --out space").code, 0);
  // read as channels last, the file has 3 channels at 4 positions
  const Outcome last = place.run(call + "--layout channels_last --out last");
  ASSERT_EQ(last.code, 0) << last.err;
  for (const char* name : {"output", "grad_input"}) {
    const std::string file = "whole/" + std::string(name) + ".npy";
    EXPECT_EQ(joined(place, "batch/" + std::string(name), 3), place.values(file));
    EXPECT_EQ(place.read("space/" + std::string(name) + ".r1.npy").shape, (Shape{5, 4, 1}));
    EXPECT_EQ(place.values("space/" + std::string(name) + ".r1.npy")[1], place.values(file)[5]);
    EXPECT_EQ(place.read("last/" + std::string(name) + ".npy").shape, (Shape{5, 4, 3}));
  }
  const std::vector<double> x = place.values("x.npy");
  const double squares = x[0] * x[0] + x[1] * x[1];  // one channel ahead of the first
  EXPECT_NEAR(place.values("last/output.npy")[0], x[0] * std::pow(1 + 0.5 / 4 * squares, -0.75), 1e-15);
}

TEST(LocalResponseNorm, SaysWhatIsWrong) {
  Workplace place;
  place.make("x.npy", {5, 4, 3});
  place.make("row.npy", {5});
  const auto told = [&](const std::string& words, int code) {
    const Outcome outcome = place.run("apply local_response_norm --out o " + words);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    return outcome.err;
  };
  EXPECT_EQ(told("--input x.npy --split channels --ranks 2", 2),
            "allnorm: --split is channels, must be batch or space: the channels of local_response_norm read their "
            "neighbours\n");
  EXPECT_EQ(told("--input x.npy --set convention=caffe --set size=2", 2),
            "allnorm: attribute size is 2, must be odd where convention is caffe\n");
  for (const char* set : {"size=0", "size=2.5", "alpha=-1", "beta=nan", "k=-0.9", "convention=tf", "eps=1"})
    told("--input x.npy --set " + std::string(set), 2);
  told("--input x.npy --weight x.npy", 2);
  told("--input row.npy", 3);
  told("--input x.npy --grad-output row.npy", 3);
}

TEST(CosineNorm, IsTheSameOverRanks) {
  Workplace place;
  place.make("x.npy", {5, 3});
  place.make("w.npy", {2, 3});
  place.make("dy.npy", {5, 2});
  const std::string call =
      "apply cosine_norm --input x.npy --weight w.npy --grad-output dy.npy --set eps=1e-3 --set centred=true ";
  const Outcome outcome = place.run(call + "--out whole");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.list("whole"), (Names{"grad_input.npy", "grad_weight.npy", "output.npy"}));
  EXPECT_EQ(place.read("whole/output.npy").shape, (Shape{5, 2}));
  EXPECT_EQ(place.read("whole/grad_weight.npy").shape, (Shape{2, 3}));
  ASSERT_EQ(place.run(call + "--split batch --ranks 2 --layout channels_last --out parts").code, 0);
  for (const char* name : {"output", "grad_input"})
    EXPECT_EQ(joined(place, "parts/" + std::string(name), 2), place.values("whole/" + std::string(name) + ".npy"));
  const std::vector<double> a = place.values("parts/grad_weight.r0.npy"), b = place.values("parts/grad_weight.r1.npy"),
                            all = place.values("whole/grad_weight.npy");
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_NEAR(a[i] + b[i], all[i], 1e-14);
}

TEST(CosineNorm, WritesItsTypes) {
  Workplace place;
  place.make("x.npy", {5, 3}, NpyType::f16);
  place.make("w.npy", {2, 3});
  place.make("dy.npy", {5, 2});
  const Outcome outcome = place.run("apply cosine_norm --input x.npy --weight w.npy --grad-output dy.npy --out o");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* name : {"o/output.npy", "o/grad_input.npy"}) EXPECT_EQ(place.read(name).type, NpyType::f16);
  EXPECT_EQ(place.read("o/grad_weight.npy").type, NpyType::f64);
}

TEST(CosineNorm, SaysWhatIsWrong) {
  Workplace place;
  place.make("x.npy", {5, 3});
  place.make("w.npy", {2, 3});
  place.make("wide.npy", {2, 4});
  place.make("cube.npy", {5, 3, 1});
  place.make("none.npy", {5, 0});
  const auto told = [&](const std::string& words, int code) {
    const Outcome outcome = place.run("apply cosine_norm --out o " + words);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    return outcome.err;
  };
  EXPECT_EQ(told("--input x.npy", 2), "allnorm: tensor weight of cosine_norm is missing, must be given with input\n");
  for (const char* split : {"space", "channels"})
    EXPECT_EQ(told("--input x.npy --weight w.npy --ranks 2 --split " + std::string(split), 2),
              "allnorm: --split is " + std::string(split) + ", must be batch: cosine_norm compares whole rows\n");
  for (const char* set : {"eps=-1", "eps_mode=outside", "centred=yes", "dim=0"})
    told("--input x.npy --weight w.npy --set " + std::string(set), 2);
  EXPECT_EQ(told("--input x.npy --weight wide.npy", 3),
            "allnorm: wide.npy: weight has the shape (2,4), must have 2 axes (M,K), K = 3 as input\n");
  EXPECT_EQ(told("--input x.npy --weight w.npy --grad-output x.npy", 3),
            "allnorm: x.npy: grad_output has the shape (5,3), must have (5,2), as the output\n");
  for (const char* input : {"cube.npy", "none.npy"}) told("--weight w.npy --input " + std::string(input), 3);
}

}  // namespace
}  // namespace allnorm::test
