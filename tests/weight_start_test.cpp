// Where training with weights of a given length begins: the pre-activations of the first batch have mean 0, variance 1.
#include "allnorm/weight_start.hpp"

#include <gtest/gtest.h>

#include <span>
#include <utility>
#include <vector>

#include "cases.hpp"
#include "harness.hpp"

namespace weight_start_test {
namespace {

using namespace allnorm;
using cases::Random;
using reference::Array;
using reference::Doubles;

Shape shape_of(const Array& t) { return Shape(std::span<const std::int64_t>(t.shape)); }

// Mean and variance of channel c of g t + bias, over all parts.
std::pair<double, double> moments_after(const reference::Ranks& parts, std::size_t c, const WeightStart& start) {
  Doubles values;
  for (const Array& t : parts) {
    const auto channels = static_cast<std::size_t>(t.shape[1]), space = static_cast<std::size_t>(t.shape[2]);
    for (std::size_t i = 0; i < t.v.size(); ++i)
      if (i / space % channels == c) values.push_back(start.g[c] * t.v[i] + start.bias[c]);
  }
  double mean = 0, var = 0;
  for (const double v : values) mean += v / static_cast<double>(values.size());
  for (const double v : values) var += (v - mean) * (v - mean) / static_cast<double>(values.size());
  return {mean, var};
}

TEST(WeightStart, GivesAFirstBatchMeanZeroAndVarianceOneOverAllRanks) {
  Random random(31);
  const Array whole = cases::channelwise(random, {9, 5, 7}, 3, 2);
  for (const int ranks : {1, 2, 3}) {
    const reference::Ranks parts = cases::scatter(random, whole, ranks);
    std::vector<WeightStart> starts(parts.size());
    harness::run(ranks, [&](const harness::World& world, Queue& queue) {
      const auto rank = static_cast<std::size_t>(world->rank());
      starts[rank] = weight_start(view(parts[rank].v.data(), shape_of(parts[rank])), world, queue);
    });
    for (const WeightStart& start : starts) {
      EXPECT_EQ(start.g, starts[0].g);
      EXPECT_EQ(start.bias, starts[0].bias);
    }
    for (std::size_t c = 0; c < 5; ++c) {
      const auto [mean, var] = moments_after(parts, c, starts[0]);
      EXPECT_NEAR(mean, 0, 1e-14);
      EXPECT_NEAR(var, 1, 1e-13);
    }
  }
}

TEST(WeightStart, SaysWhichChannelNeverVaries) {
  Queue queue = Queue::cpu();
  const std::vector<float> constant{1, 5, 2, 5};  // (N, C) = (2, 2)
  EXPECT_EQ(harness::error_of([&] {
              weight_start(view(constant.data(), {2, 2}), nullptr, queue);
            }),
            "invalid input: variance of channel 1 of t is 0, must be finite, and above 0 with eps");
  EXPECT_EQ(weight_start(view(constant.data(), {2, 2}), nullptr, queue, 0.25).g[1], 2);
}

}  // namespace
}  // namespace weight_start_test
