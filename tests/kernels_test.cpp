// The forward kernels of a backend's table against a plain loop in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels_support.hpp"

namespace allnorm::kernel_test {
namespace {

template <class T>
struct Kernels : OverTypes<T> {};
TYPED_TEST_SUITE(Kernels, Types);

/// n, mean and centred sum of squares of every group, and the largest difference of two of its values.
struct GroupTruth {
  double n = 0, mean = 0, m2 = 0, low = 0, high = 0;
};
template <class T>
std::vector<GroupTruth> true_moments(const Walled<T>& x, const Partition& p) {
  std::vector<GroupTruth> groups(static_cast<std::size_t>(p.groups()));
  std::vector<long double> sum(groups.size()), squares(groups.size());
  const auto at = [&](std::int64_t i) { return static_cast<std::size_t>(p.group_of(i)); };
  for (std::int64_t i = 0; i < x.size(); ++i) {
    auto& g = groups[at(i)];
    g.low = g.n == 0 ? x[i] : std::min(g.low, x[i]);
    g.high = g.n == 0 ? x[i] : std::max(g.high, x[i]);
    g.n += 1;
    sum[at(i)] += x[i];
  }
  for (std::size_t g = 0; g < groups.size(); ++g)
    if (groups[g].n > 0) sum[g] /= groups[g].n;
  for (std::int64_t i = 0; i < x.size(); ++i) squares[at(i)] += (x[i] - sum[at(i)]) * (x[i] - sum[at(i)]);
  for (std::size_t g = 0; g < groups.size(); ++g)
    groups[g].mean = static_cast<double>(sum[g]), groups[g].m2 = static_cast<double>(squares[g]);
  return groups;
}

TYPED_TEST(Kernels, MomentsOfEveryPartition) {
  using T = TypeParam;
  for (const Partition& p : partitions) {
    SCOPED_TRACE(text(p));
    const auto x = normal<T>(p.elements(), 1, 3.0, 2.0);
    Walled<double> mean(p.groups()), m2(p.groups());
    this->ops.moments({x.data(), dtype_of<T>(), p, mean.data(), m2.data()}, this->queue);
    EXPECT_TRUE(mean.intact() && m2.intact());
    const auto truth = true_moments(x, p);
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      const auto& t = truth[static_cast<std::size_t>(g)];
      // Each difference from a pivot of the group is rounded once in the compute type; sums are of doubles.
      const double range = t.high - t.low, rounding = compute_unit<T> * range + eps64 * std::sqrt(t.n) * range;
      ASSERT_NEAR(mean[g], t.mean, rounding + 2 * eps64 * std::abs(t.mean)) << "group " << g;
      ASSERT_NEAR(m2[g], t.m2, 2 * t.n * rounding * range) << "group " << g;
    }
  }
}

TYPED_TEST(Kernels, MeansOfWholeNumbersAndMomentsOfConstantsAreExact) {
  using T = TypeParam;
  for (const Partition& p : {Partition{1, 4, 3, 1024}, Partition{1, 4096, 5, 1}, Partition{2, 256, 3, 16}}) {
    SCOPED_TRACE(text(p));
    Walled<T> x(p.elements());
    std::vector<double> sum(static_cast<std::size_t>(p.groups())), squares(sum.size());
    for (std::int64_t i = 0; i < p.elements(); ++i) {
      x.set(i, static_cast<double>((i * 7 + i / 11) % 17 - 8));
      sum[static_cast<std::size_t>(p.group_of(i))] += x[i];
      squares[static_cast<std::size_t>(p.group_of(i))] += x[i] * x[i];
    }
    Walled<double> mean(p.groups()), m2(p.groups());
    this->ops.moments({x.data(), dtype_of<T>(), p, mean.data(), m2.data()}, this->queue);
    const double n =
        static_cast<double>(p.group_size());  // a power of two, so a mean is exact; m2 takes some roundings a block
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      const auto i = static_cast<std::size_t>(g);
      EXPECT_EQ(mean[g], sum[i] / n);
      EXPECT_NEAR(m2[g], squares[i] - sum[i] * (sum[i] / n), 16 * eps64 * squares[i]);
    }
  }
  for (const Partition& p : partitions) {
    if (p.elements() == 0) continue;
    SCOPED_TRACE(text(p));
    Walled<T> x(p.elements());
    for (std::int64_t i = 0; i < p.elements(); ++i) x.set(i, 0.1 + static_cast<double>(p.group_of(i)));
    Walled<double> mean(p.groups()), m2(p.groups());
    this->ops.moments({x.data(), dtype_of<T>(), p, mean.data(), m2.data()}, this->queue);
    for (std::int64_t i = 0; i < p.elements(); ++i) ASSERT_EQ(mean[p.group_of(i)], x[i]);
    for (std::int64_t g = 0; g < p.groups(); ++g) ASSERT_EQ(m2[g], 0.0);
  }
}

TYPED_TEST(Kernels, EmptyGroupsHaveNoMoments) {
  using T = TypeParam;
  for (const Partition& p : {Partition{1, 0, 3, 5}, Partition{2, 3, 4, 0}, Partition{1, 0, 4, 1}}) {
    Walled<double> mean(p.groups()), m2(p.groups()), sum_g(p.groups()), sum_gx(p.groups()), center(p.groups());
    this->ops.moments({nullptr, dtype_of<T>(), p, mean.data(), m2.data()}, this->queue);
    this->ops.moments_grad({nullptr, nullptr, dtype_of<T>(), p, center.data(), {}, sum_g.data(), sum_gx.data()},
                           this->queue);
    for (std::int64_t g = 0; g < p.groups(); ++g)
      for (const auto* values : {&mean, &m2, &sum_g, &sum_gx}) EXPECT_EQ((*values)[g], 0.0);
  }
}

/// The goal of the project: |mean| / std = 1e4 in f32 over a million values.
TEST(KernelsPrecision, VarianceAndOutputWhereTheMeanIsTenThousandDeviations) {
  Queue queue = backend::queue(2);
  const Calls ops = calls_of(queue);
  for (const Partition& p : {Partition{1, 8, 1, 125000}, Partition{1, 250000, 4, 1}, Partition{1, 20, 1000, 50}}) {
    SCOPED_TRACE(text(p));
    const auto x = normal<float>(p.elements(), 5, 1e4, 1.0);
    Walled<double> mean(p.groups()), m2(p.groups()), scale(p.groups()), shift(p.groups());
    ops.moments({x.data(), DType::f32, p, mean.data(), m2.data()}, queue);
    const auto truth = true_moments(x, p);
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      EXPECT_NEAR(m2[g] / truth[static_cast<std::size_t>(g)].m2, 1.0, 1e-7);
      scale.set(g, std::sqrt(static_cast<double>(p.group_size()) / m2[g]));
      shift.set(g, 0.0);
    }
    Walled<float> y(p.elements());
    ops.apply({.x = x.data(),
               .y = y.data(),
               .dtype = DType::f32,
               .partition = p,
               .center = mean.data(),
               .scale = scale.data(),
               .shift = shift.data()},
              queue);
    double worst = 0, largest = 0;
    for (std::int64_t i = 0; i < p.elements(); ++i) {
      const auto& t = truth[static_cast<std::size_t>(p.group_of(i))];
      const double exact = (x[i] - t.mean) / std::sqrt(t.m2 / t.n);
      worst = std::max(worst, std::abs(y[i] - exact)), largest = std::max(largest, std::abs(exact));
    }
    EXPECT_LT(worst, 1e-6 * largest);
  }
}

TEST(KernelsPrecision, DoublesKeepTwelveDigitsAndOutliersAsPivotsDoNoHarm) {
  Queue queue = backend::queue(1);
  const Calls ops = calls_of(queue);
  for (const Partition& p : {Partition{1, 5, 1, 40000}, Partition{1, 50000, 4, 1}}) {
    SCOPED_TRACE(text(p));
    auto x = normal<double>(p.elements(), 6, 1e3, 1.0);
    Walled<double> mean(p.groups()), m2(p.groups());
    ops.moments({x.data(), DType::f64, p, mean.data(), m2.data()}, queue);
    const auto truth = true_moments(x, p);
    for (std::int64_t g = 0; g < p.groups(); ++g)
      EXPECT_NEAR(m2[g] / truth[static_cast<std::size_t>(g)].m2, 1.0, 1e-12);
    for (std::int64_t j = 0; j < p.groups(); ++j) x.set(j, 1e5);  // the first value of every group
    ops.moments({x.data(), DType::f64, p, mean.data(), m2.data()}, queue);
    const auto outlier = true_moments(x, p);
    // n values have |pivot - mean|^2 <= m2 for a pivot among them: a block's sums exceed its m2 by at most its n.
    const double block = 2048 * std::sqrt(2048) * eps64;
    for (std::int64_t g = 0; g < p.groups(); ++g)
      EXPECT_NEAR(m2[g] / outlier[static_cast<std::size_t>(g)].m2, 1.0, block);
  }
}

TYPED_TEST(Kernels, ApplyOfEveryPartition) {
  using T = TypeParam;
  for (const Partition& p : partitions) {
    SCOPED_TRACE(text(p));
    const auto x = normal<T>(p.elements(), 2), residual = normal<T>(p.elements(), 3);
    const Coefficients k(p.groups());
    for (const Activation& activation : activations)
      for (const bool with_residual : {false, true}) {
        Walled<T> y(p.elements()), in_place = x;
        ApplyArgs args{.x = x.data(),
                       .residual = with_residual ? residual.data() : nullptr,
                       .y = y.data(),
                       .dtype = dtype_of<T>(),
                       .partition = p,
                       .center = k.center.data(),
                       .scale = k.scale.data(),
                       .shift = k.shift.data(),
                       .activation = activation};
        this->ops.apply(args, this->queue);
        EXPECT_TRUE(y.intact());
        for (std::int64_t i = 0; i < p.elements(); ++i) {
          const std::int64_t g = p.group_of(i);
          const double product = (x[i] - k.center[g]) * k.scale[g], extra = with_residual ? residual[i] : 0.0;
          const double expected = activated(product + k.shift[g] + extra, activation);
          const double sizes =
              2 * std::abs(product) + std::abs(k.center[g] * k.scale[g]) + std::abs(k.shift[g]) + std::abs(extra);
          ASSERT_NEAR(
              y[i], expected,
              4 * compute_unit<T> * sizes + 2 * store_unit<T> * std::abs(expected) + store_floor * (sizeof(T) == 2))
              << "element " << i;
        }
        args.x = args.y = in_place.data();
        this->ops.apply(args, this->queue);
        EXPECT_TRUE(in_place.same_bits(y) && in_place.intact());
      }
  }
}

/// Large results bypass the caches unless they overwrite their input, so a call in place shows what they must be.
TYPED_TEST(Kernels, StreamedMapsEqualMapsInPlace) {
  using T = TypeParam;
  const auto elements = static_cast<std::int64_t>((16 << 20) / sizeof(T));
  for (const Partition& p : {Partition{1, 1, 3, elements / 3 + 1}, Partition{1, elements / 37 + 1, 37, 1}}) {
    SCOPED_TRACE(text(p));
    Walled<T> x(p.elements()), y(p.elements()), dx(p.elements());
    for (std::int64_t i = 0; i < p.elements(); ++i) x.set(i, static_cast<double>(i % 23 - 9) / 8);
    const Coefficients k(p.groups());
    auto in_place = x;
    ApplyArgs args{.x = x.data(),
                   .y = y.data(),
                   .dtype = dtype_of<T>(),
                   .partition = p,
                   .center = k.center.data(),
                   .scale = k.scale.data(),
                   .shift = k.shift.data(),
                   .activation = activations[1]};
    this->ops.apply(args, this->queue);
    args.x = args.y = in_place.data();
    this->ops.apply(args, this->queue);
    EXPECT_TRUE(y.same_bits(in_place) && y.intact());

    ApplyGradArgs grad{.x = x.data(),
                       .dy = y.data(),
                       .dx = dx.data(),
                       .dtype = dtype_of<T>(),
                       .partition = p,
                       .center = k.center.data(),
                       .gain = k.gain.data(),
                       .slope = k.slope.data(),
                       .offset = k.offset.data()};
    this->ops.apply_grad(grad, this->queue);
    grad.dy = grad.dx = in_place.data();
    this->ops.apply_grad(grad, this->queue);
    EXPECT_TRUE(dx.same_bits(in_place) && dx.intact());
  }
}

/// Every f16 and bf16 pattern through an identity map, and floats around every rounding boundary of bf16 and f16.
template <class T>
void expect_identity() {
  Queue queue = backend::queue(1);
  const Calls ops = calls_of(queue);
  const Partition p{1, 1, 1, 65536};
  Walled<T> x(p.elements()), y(p.elements());
  for (std::int64_t i = 0; i < p.elements(); ++i) x.data()[i].bits = static_cast<std::uint16_t>(i);
  const backend::Array<double> coefficients{0.0, 1.0, static_cast<double>(1.0f + 0x1p-7f + 0x1p-10f + 0x1p-12f)};
  const double *zero = coefficients.data(), *one = zero + 1, *scale = zero + 2;
  ops.apply({.x = x.data(),
             .y = y.data(),
             .dtype = dtype_of<T>(),
             .partition = p,
             .center = zero,
             .scale = one,
             .shift = zero},
            queue);
  for (std::int64_t i = 0; i < p.elements(); ++i) {
    if (std::isnan(x[i]))
      ASSERT_TRUE(std::isnan(y[i])) << i;
    else
      ASSERT_EQ(y[i], x[i]) << i;
  }
  // x * scale is not a value of T: the store rounds as allnorm::store does.
  ops.apply({.x = x.data(),
             .y = y.data(),
             .dtype = dtype_of<T>(),
             .partition = p,
             .center = zero,
             .scale = scale,
             .shift = zero},
            queue);
  for (std::int64_t i = 0; i < p.elements(); ++i)
    if (!std::isnan(x[i])) {
      const float product = static_cast<float>(x[i]) * static_cast<float>(*scale);
      ASSERT_EQ(y[i], static_cast<double>(load(store<T>(product)))) << i;
    }
}
TEST(KernelsConversions, EveryBinary16) { expect_identity<f16>(); }
TEST(KernelsConversions, EveryBfloat16) { expect_identity<bf16>(); }

}  // namespace
}  // namespace allnorm::kernel_test
