// The tests' own tools: splits, the relative error, the generator of normals.
#include "cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace cases {
namespace {

TEST(Cases, SplitsAreUnevenAndComplete) {
  Random random(3);
  for (int ranks = 1; ranks <= 5; ++ranks)
    for (std::int64_t n = 0; n <= 6; ++n) {
      const auto counts = split(random, n, ranks);
      ASSERT_EQ(counts.size(), static_cast<std::size_t>(ranks));
      EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}), n);
      for (const std::int64_t c : counts) EXPECT_GE(c, 0);
      const auto has = [&](std::int64_t value) { return std::count(counts.begin(), counts.end(), value) > 0; };
      EXPECT_TRUE(ranks < 3 || has(0));
      EXPECT_TRUE(ranks < 2 || n < 1 || has(1));
    }
  const reference::Array whole = normal(random, {5, 2, 3});
  EXPECT_EQ(reference::concatenate(scatter(random, whole, 4)).v, whole.v);
}

TEST(Cases, RelativeErrorHidesNothing) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  using D = reference::Doubles;
  EXPECT_EQ(relative_error(D{1, 2.5}, D{1, 2}), 0.25);
  EXPECT_EQ(relative_error(D{0.5}, D{0}), 0.5);
  EXPECT_EQ(relative_error(D{}, D{}), 0);
  EXPECT_TRUE(std::isinf(relative_error(D{nan}, D{1})));
  EXPECT_TRUE(std::isinf(relative_error(D{1}, D{nan})));
  EXPECT_EQ(relative_error(D{nan, 1}, D{nan, 1}), 0);
  EXPECT_TRUE(std::isinf(relative_error(D{1}, D{1, 2})));
}

TEST(Cases, NormalsHaveTheirMeanAndDeviation) {
  Random random(4);
  const reference::Array x = normal(random, {40000, 1}, 3, 2);
  const reference::Layer layer = reference::make_layer(1);
  const reference::Result result = reference::evaluate(layer, {{x}, {}, {}, {}});
  EXPECT_NEAR(result.mean[0], 3, 5 * 2 / std::sqrt(40000.0));  // five standard errors
  EXPECT_NEAR(result.var[0], 4, 5 * 4 * std::sqrt(2.0 / 40000.0));
}

}  // namespace
}  // namespace cases
