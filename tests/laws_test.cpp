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
#include "plan.hpp"

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

RC_GTEST_PROP(ShiftedSums, OfWholeNumbersAddExactlyAboutAnyPivot,
              (const std::vector<std::int8_t>& values, std::int8_t pivot)) {
  RC_PRE(!values.empty());
  const auto cut = values.size() / 3;
  double sum = 0, squares = 0;
  for (const auto& [from, to] : {std::pair{std::size_t{0}, cut}, {cut, values.size()}}) {
    if (from == to) continue;
    double own = 0;
    for (std::size_t i = from; i < to; ++i) own += values[i];
    const double n = static_cast<double>(to - from), mean = own / n;
    double m2 = 0;
    for (std::size_t i = from; i < to; ++i) m2 += (values[i] - mean) * (values[i] - mean);
    const auto s = formulas::shift(n, mean, m2, pivot);
    sum += s.sum;
    squares += s.squares;
  }
  double all = 0, m2 = 0;
  for (const auto v : values) all += v;
  const double n = static_cast<double>(values.size()), mean = all / n;
  for (const auto v : values) m2 += (v - mean) * (v - mean);
  const auto m = formulas::unshift(n, {sum, squares}, pivot);
  RC_ASSERT(std::abs(m.mean - mean) <= 1e-13 * 256);
  RC_ASSERT(std::abs(m.var - m2 / n) <= 1e-13 * 256 * 256);
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
