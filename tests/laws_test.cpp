// Laws that hold for all values, tried on random ones.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <map>
#include <vector>

#include "allnorm/dtype.hpp"
#include "allnorm/partition.hpp"
#include "kernels/formulas.hpp"
#include "src/plan.hpp"

namespace laws_test {
namespace {

using namespace allnorm;

TEST(HalfPrecision, EveryValueSurvivesTheWayThroughFloat) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16 h{static_cast<std::uint16_t>(bits)};
    const bf16 b{static_cast<std::uint16_t>(bits)};
    if (std::isnan(to_float(h))) {
      EXPECT_TRUE(std::isnan(to_float(to_f16(to_float(h)))));
    } else {
      ASSERT_EQ(to_f16(to_float(h)).bits, h.bits);
    }
    if (std::isnan(to_float(b))) {
      EXPECT_TRUE(std::isnan(to_float(to_bf16(to_float(b)))));
    } else {
      ASSERT_EQ(to_bf16(to_float(b)).bits, b.bits);
    }
  }
}

// The nearest of all values of the type; of two equally near ones the even.
template <class Half>
void expect_nearest(float x, Half (*narrow)(float)) {
  const Half got = narrow(x);
  const double error = std::abs(static_cast<double>(to_float(got)) - static_cast<double>(x));
  for (const int step : {-1, 1}) {
    const Half neighbour{static_cast<std::uint16_t>(got.bits + step)};
    if (!std::isfinite(to_float(neighbour)) || std::signbit(to_float(neighbour)) != std::signbit(to_float(got)))
      continue;
    const double other = std::abs(static_cast<double>(to_float(neighbour)) - static_cast<double>(x));
    RC_ASSERT(error <= other);
    if (error == other) RC_ASSERT(got.bits % 2 == 0);
  }
}
RC_GTEST_PROP(HalfPrecision, ConversionRoundsToNearestEven, (std::int32_t mantissa, std::uint8_t scale)) {
  const float x = std::ldexp(static_cast<float>(mantissa % 4096), scale % 34 - 30);
  expect_nearest<f16>(x, to_f16);
  expect_nearest<bf16>(x, to_bf16);
}

rc::Gen<Partition> partitions() {
  const auto extent = rc::gen::inRange<std::int64_t>(1, 6);
  return rc::gen::build<Partition>(rc::gen::set(&Partition::keep0, extent), rc::gen::set(&Partition::reduce0, extent),
                                   rc::gen::set(&Partition::keep1, extent), rc::gen::set(&Partition::reduce1, extent));
}

RC_GTEST_PROP(APartition, CutsTheElementsIntoGroupsOfOneSize, ()) {
  const Partition p = *partitions();
  std::map<std::int64_t, std::int64_t> sizes;
  for (std::int64_t i = 0; i < p.elements(); ++i) ++sizes[p.group_of(i)];
  RC_ASSERT(static_cast<std::int64_t>(sizes.size()) == p.groups());
  for (const auto& [group, size] : sizes) {
    RC_ASSERT(group >= 0 && group < p.groups());
    RC_ASSERT(size == p.group_size());
  }
}

RC_GTEST_PROP(APlan, RefinesTheNormsPartition, (bool last)) {
  const auto extent = rc::gen::inRange<std::int64_t>(1, 5);
  const std::int64_t N = *extent, G = *extent, width = *extent, S = *extent;
  const Order order = last ? Order::channels_last : Order::channels_first;
  Layer layer("group_norm");
  layer.options.groups = G;
  const Plan plan = plan_for(layer, Shape{N, G * width, S}, order);
  for (std::int64_t i = 0; i < plan.norm.elements(); ++i) {
    const std::int64_t fine = plan.fine.group_of(i);
    RC_ASSERT(plan.to_norm(fine) == plan.norm.group_of(i));
    const std::int64_t channel = last ? i % (G * width) : i / S % (G * width);
    RC_ASSERT(plan.to_affine(fine) == channel);
  }
}

// Parts of whole numbers, in any cut, some of them empty: merged rank by rank, and by two rounds of sums.
RC_GTEST_PROP(Moments, OfPartsAreThoseOfTheWhole,
              (const std::vector<std::vector<std::int8_t>>& parts, std::int32_t whole)) {
  const double distance = whole;
  double count = 0, mean = 0, m2 = 0, largest = 0;
  double round_count = 0, round_sum = 0;
  std::vector<double> all;
  struct Part {
    double n, mean, m2;
  };
  std::vector<Part> moments;
  for (const auto& values : parts) {
    Part part{static_cast<double>(values.size()), 0, 0};
    for (const auto v : values) part.mean += (v + distance) / part.n;
    for (const auto v : values) part.m2 += (v + distance - part.mean) * (v + distance - part.mean);
    for (const auto v : values) all.push_back(v + distance);
    moments.push_back(part);
    round_count += part.n;
    round_sum += formulas::SumsAbout::weighed(part.n, part.mean);
    const formulas::Merge merge(count, part.n);
    if (merge.skips()) continue;
    m2 = merge.products(m2, part.m2, part.mean - mean, part.mean - mean);
    mean = merge.mean(mean, part.mean);
    count = merge.count;
  }
  const double middle = formulas::SumsAbout::middle(round_count, round_sum);
  formulas::SumsAbout sums;
  for (const Part& part : moments) {
    const auto own = formulas::SumsAbout::of(part.n, part.mean, part.m2, middle);
    sums.sum += own.sum;
    sums.squares += own.squares;
  }
  RC_ASSERT(count == static_cast<double>(all.size()));
  if (all.empty()) {
    RC_ASSERT(mean == 0 && m2 == 0 && sums.mean(0, middle) == 0 && sums.m2(0) == 0);
    return;
  }
  long double exact_mean = 0, exact_m2 = 0;
  for (const double v : all) exact_mean += v;
  exact_mean /= static_cast<long double>(all.size());
  for (const double v : all) {
    exact_m2 += (v - exact_mean) * (v - exact_mean);
    largest = std::max(largest, std::abs(v));
  }
  // Every mean is rounded to a few units of the largest value, and so are the distances of means whose squares, times
  // the count, are in m2.
  const double unit = 0x1p-53 * largest * static_cast<double>(4 + parts.size() + all.size());
  const double of_m2 = static_cast<double>(exact_m2) * 0x1p-53 * static_cast<double>(8 + parts.size() + all.size()) +
                       count * unit * (2 * 256 + unit);
  for (const auto& [got_mean, got_m2] : {std::pair{mean, m2}, {sums.mean(count, middle), sums.m2(count)}}) {
    RC_ASSERT(std::abs(got_mean - static_cast<double>(exact_mean)) <= unit);
    RC_ASSERT(std::abs(got_m2 - static_cast<double>(exact_m2)) <= of_m2);
  }
}

RC_GTEST_PROP(Cmbn, WithEqualWeightsTheOrderOfMiniBatchesDoesNotMatter, (const std::vector<std::int16_t>& means)) {
  RC_PRE(means.size() >= 2u);
  const auto over = [](const auto& from, const auto& to) {
    formulas::Moments m;
    double t = 0;
    for (auto i = from; i != to; ++i) m = formulas::accumulate(m, {static_cast<double>(*i), 1.0}, 1 / ++t);
    return m;
  };
  const auto forward = over(means.begin(), means.end()), backward = over(means.rbegin(), means.rend());
  RC_ASSERT(std::abs(forward.mean - backward.mean) <= 1e-11 * 32768);
  RC_ASSERT(std::abs(forward.var - backward.var) <= 1e-11 * 32768.0 * 32768.0);
}

RC_GTEST_PROP(TheWindow, OfEqualEntriesIsTheEntry, (std::int16_t mean, std::uint8_t entries)) {
  const formulas::Moments one{static_cast<double>(mean), 2.0};
  const auto average = formulas::window(
      one, 3, entries, Guard::drop, [&](int) { return one; }, [](int) { return 3.0; });
  RC_ASSERT(std::abs(average.moments.mean - one.mean) <= 1e-12 * 32768);
  RC_ASSERT(std::abs(average.moments.var - 2) <= 1e-9);
  RC_ASSERT(average.count == 3.0 * (entries + 1));
  RC_ASSERT(std::abs(average.share * (entries + 1) - 1) <= 1e-15);
}

}  // namespace
}  // namespace laws_test
