// Every function of a backend's table against a plain loop in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/dtype.hpp"
#include "allnorm/partition.hpp"
#include "kernels/ops.hpp"

namespace allnorm {
namespace {

constexpr double eps64 = std::numeric_limits<double>::epsilon();
/// Half a unit in the last place, relative: of what a map over T is computed in, and of what it is stored in.
template <class T>
constexpr double compute_unit = static_cast<double>(std::numeric_limits<compute_t<T>>::epsilon()) / 2;
template <class T>
constexpr double store_unit = std::is_same_v<T, f16>    ? 0x1p-11
                              : std::is_same_v<T, bf16> ? 0x1p-8
                                                        : compute_unit<T>;
constexpr double store_floor = 0x1p-25;  // half the least subnormal of f16

/// Values of T between walls of NaN, that show a read outside as NaN and a write outside as a damaged wall.
template <class T>
class Walled {
 public:
  explicit Walled(std::int64_t size) : data_(static_cast<std::size_t>(size + 2 * wall), nan()), size_(size) {}
  T* data() { return data_.data() + wall; }
  const T* data() const { return data_.data() + wall; }
  std::int64_t size() const { return size_; }
  double operator[](std::int64_t i) const { return static_cast<double>(load(data()[i])); }
  void set(std::int64_t i, double value) { data()[i] = store<T>(static_cast<compute_t<T>>(value)); }
  bool intact() const {
    const T expected = nan();
    for (std::int64_t i = 0; i < wall; ++i)
      for (const std::int64_t at : {i, wall + size_ + i})
        if (std::memcmp(&data_[static_cast<std::size_t>(at)], &expected, sizeof(T)) != 0) return false;
    return true;
  }
  bool same_bits(const Walled& other) const {
    return size_ == 0 || std::memcmp(data(), other.data(), static_cast<std::size_t>(size_) * sizeof(T)) == 0;
  }

 private:
  static constexpr std::int64_t wall = 64;
  static T nan() { return store<T>(std::numeric_limits<compute_t<T>>::quiet_NaN()); }
  std::vector<T> data_;
  std::int64_t size_;
};

template <class T>
Walled<T> normal(std::int64_t size, unsigned seed, double mean = 0.0, double deviation = 1.0) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> draw(mean, deviation);
  Walled<T> values(size);
  for (std::int64_t i = 0; i < size; ++i) values.set(i, draw(engine));
  return values;
}

std::string text(const Partition& p) {
  return std::to_string(p.keep0) + "x" + std::to_string(p.reduce0) + "x" + std::to_string(p.keep1) + "x" +
         std::to_string(p.reduce1);
}

/// Vectors, tails, tiles of columns, blocks, parts, short runs as columns, both kept extents above 1, and empty ones.
const Partition partitions[] = {{1, 5, 3, 49},    {1, 33, 17, 1},    {1, 300, 257, 1}, {2, 7, 3, 1},    {3, 40, 4, 2},
                                {2, 70, 5, 16},   {1, 1, 7, 3},      {1, 1, 5, 257},   {1, 2, 3, 5000}, {1, 1, 1, 1},
                                {4, 1, 3, 1},     {2, 3, 4, 33},     {1, 3000, 2, 1},  {1, 1, 64, 1},   {1, 9, 1030, 1},
                                {1, 3, 2, 70000}, {1, 150000, 3, 1}, {1, 900, 37, 16}, {5, 17, 1, 3},   {1, 0, 3, 5},
                                {0, 2, 3, 5},     {1, 4, 0, 3},      {2, 3, 4, 0}};
const Activation activations[] = {{}, {ActivationKind::relu, 0.0}, {ActivationKind::leaky_relu, 0.125}};

double activated(double z, const Activation& a) {
  if (a.kind == ActivationKind::identity || z > 0) return z;
  return a.kind == ActivationKind::relu ? 0.0 : a.slope * z;
}

template <class T>
struct Kernels : testing::Test {
  Queue queue = Queue::cpu(2);
  const Ops& ops = queue.ops();
};
using Types = testing::Types<double, float, f16, bf16>;
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
  Queue queue = Queue::cpu(2);
  for (const Partition& p : {Partition{1, 8, 1, 125000}, Partition{1, 250000, 4, 1}, Partition{1, 20, 1000, 50}}) {
    SCOPED_TRACE(text(p));
    const auto x = normal<float>(p.elements(), 5, 1e4, 1.0);
    Walled<double> mean(p.groups()), m2(p.groups()), scale(p.groups()), shift(p.groups());
    queue.ops().moments({x.data(), DType::f32, p, mean.data(), m2.data()}, queue);
    const auto truth = true_moments(x, p);
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      EXPECT_NEAR(m2[g] / truth[static_cast<std::size_t>(g)].m2, 1.0, 1e-7);
      scale.set(g, std::sqrt(static_cast<double>(p.group_size()) / m2[g]));
      shift.set(g, 0.0);
    }
    Walled<float> y(p.elements());
    queue.ops().apply({.x = x.data(),
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
  Queue queue = Queue::cpu(1);
  for (const Partition& p : {Partition{1, 5, 1, 40000}, Partition{1, 50000, 4, 1}}) {
    SCOPED_TRACE(text(p));
    auto x = normal<double>(p.elements(), 6, 1e3, 1.0);
    Walled<double> mean(p.groups()), m2(p.groups());
    queue.ops().moments({x.data(), DType::f64, p, mean.data(), m2.data()}, queue);
    const auto truth = true_moments(x, p);
    for (std::int64_t g = 0; g < p.groups(); ++g)
      EXPECT_NEAR(m2[g] / truth[static_cast<std::size_t>(g)].m2, 1.0, 1e-12);
    for (std::int64_t j = 0; j < p.groups(); ++j) x.set(j, 1e5);  // the first value of every group
    queue.ops().moments({x.data(), DType::f64, p, mean.data(), m2.data()}, queue);
    const auto outlier = true_moments(x, p);
    // n values have |pivot - mean|^2 <= m2 for a pivot among them: a block's sums exceed its m2 by at most its n.
    const double block = 2048 * std::sqrt(2048) * eps64;
    for (std::int64_t g = 0; g < p.groups(); ++g)
      EXPECT_NEAR(m2[g] / outlier[static_cast<std::size_t>(g)].m2, 1.0, block);
  }
}

/// Coefficients of every group, all of them different.
struct Coefficients {
  Walled<double> center, scale, shift, gain, slope, offset;
  explicit Coefficients(std::int64_t groups)
      : center(normal<double>(groups, 11, 0.4, 0.3)),
        scale(normal<double>(groups, 12)),
        shift(normal<double>(groups, 13)),
        gain(normal<double>(groups, 14)),
        slope(normal<double>(groups, 15)),
        offset(normal<double>(groups, 16)) {}
};

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

TYPED_TEST(Kernels, SignMaskOfAnyLength) {
  using T = TypeParam;
  for (const std::int64_t n : {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 257, 1000, 70001}) {
    auto y = normal<T>(n, 4);
    for (std::int64_t i = 0; i < n; i += 5) y.set(i, i % 2 == 0 ? 0.0 : -0.0);
    std::vector<std::uint8_t> mask(static_cast<std::size_t>((n + 7) / 8 + 2), 0xa5);
    this->ops.sign_mask({y.data(), dtype_of<T>(), n, mask.data() + 1}, this->queue);
    EXPECT_EQ(mask.front(), 0xa5);
    EXPECT_EQ(mask.back(), 0xa5);
    for (std::int64_t i = 0; i < n; ++i)
      ASSERT_EQ((mask[static_cast<std::size_t>(1 + i / 8)] >> (i % 8)) & 1, y[i] > 0) << i << " of " << n;
  }
}

/// The ways to find the gate, and the gate that each must find.
template <class T>
struct GateCase {
  Gate gate{};
  std::vector<std::uint8_t> mask;
  std::vector<bool> open;  // per element

  /// From the sign that apply itself computed, with a residual (whose mask is then given) or without.
  GateCase(const Walled<T>& x, const Walled<T>& residual, const Partition& p, const Coefficients& k,
           const Activation& activation, bool masked, Queue& queue) {
    Walled<T> y(p.elements());
    Activation relu = activation;
    if (relu.kind == ActivationKind::leaky_relu) relu.kind = ActivationKind::relu;
    queue.ops().apply({.x = x.data(),
                       .residual = masked ? residual.data() : nullptr,
                       .y = y.data(),
                       .dtype = dtype_of<T>(),
                       .partition = p,
                       .center = k.center.data(),
                       .scale = k.scale.data(),
                       .shift = k.shift.data(),
                       .activation = relu},
                      queue);
    for (std::int64_t i = 0; i < p.elements(); ++i)
      open.push_back(activation.kind == ActivationKind::identity || y[i] > 0);
    gate.activation = activation;
    if (masked) {
      mask.resize(static_cast<std::size_t>((p.elements() + 7) / 8));
      queue.ops().sign_mask({y.data(), dtype_of<T>(), p.elements(), mask.data()}, queue);
      gate.mask = mask.data();
    } else {
      gate.scale = k.scale.data(), gate.shift = k.shift.data();
    }
  }
  double g(std::int64_t i, double dy) const {
    if (open[static_cast<std::size_t>(i)]) return dy;
    return gate.activation.kind == ActivationKind::relu ? 0.0 : gate.activation.slope * dy;
  }
};

TYPED_TEST(Kernels, BackwardOfEveryPartition) {
  using T = TypeParam;
  constexpr double u = compute_unit<T>;
  for (const Partition& p : partitions) {
    const auto x = normal<T>(p.elements(), 2), residual = normal<T>(p.elements(), 3), dy = normal<T>(p.elements(), 4);
    const Coefficients k(p.groups());
    for (const Activation& activation : activations)
      for (const bool masked : {false, true}) {
        SCOPED_TRACE(text(p) + (masked ? " masked" : "") + " activation " +
                     std::to_string(static_cast<int>(activation.kind)));
        const GateCase<T> expected(x, residual, p, k, activation, masked, this->queue);

        Walled<double> sum_g(p.groups()), sum_gx(p.groups());
        this->ops.moments_grad(
            {x.data(), dy.data(), dtype_of<T>(), p, k.center.data(), expected.gate, sum_g.data(), sum_gx.data()},
            this->queue);
        EXPECT_TRUE(sum_g.intact() && sum_gx.intact());
        std::vector<double> g_sum(static_cast<std::size_t>(p.groups())), gx_sum(g_sum), g_size(g_sum), gx_size(g_sum);
        for (std::int64_t i = 0; i < p.elements(); ++i) {
          const auto group = static_cast<std::size_t>(p.group_of(i));
          const double g = expected.g(i, dy[i]), centred = x[i] - k.center[p.group_of(i)];
          g_sum[group] += g, gx_sum[group] += g * centred;
          g_size[group] += std::abs(g), gx_size[group] += std::abs(g * centred);
        }
        // One rounding of x - center each (and of slope * dy); sums in double, here and there.
        const double sums = 2 * eps64 * std::sqrt(static_cast<double>(p.group_size()));
        for (std::int64_t group = 0; group < p.groups(); ++group) {
          const auto i = static_cast<std::size_t>(group);
          ASSERT_NEAR(sum_g[group], g_sum[i], (u + sums) * g_size[i]) << "group " << group;
          ASSERT_NEAR(sum_gx[group], gx_sum[i], (2 * u + sums) * gx_size[i] + sums * g_size[i]) << "group " << group;
        }

        Walled<T> dx(p.elements()), dresidual(p.elements()), in_place = dy, only(p.elements());
        ApplyGradArgs args{.x = x.data(),
                           .dy = dy.data(),
                           .dx = dx.data(),
                           .dresidual = dresidual.data(),
                           .dtype = dtype_of<T>(),
                           .partition = p,
                           .center = k.center.data(),
                           .gate = expected.gate,
                           .gain = k.gain.data(),
                           .slope = k.slope.data(),
                           .offset = k.offset.data()};
        this->ops.apply_grad(args, this->queue);
        EXPECT_TRUE(dx.intact() && dresidual.intact());
        for (std::int64_t i = 0; i < p.elements(); ++i) {
          const std::int64_t group = p.group_of(i);
          const double g = expected.g(i, dy[i]), a = g * k.gain[group], b = (x[i] - k.center[group]) * k.slope[group];
          const double want = a + b + k.offset[group];
          const double sizes = 2 * std::abs(a) + 2 * std::abs(b) + std::abs(k.center[group] * k.slope[group]) +
                               std::abs(k.offset[group]);
          ASSERT_NEAR(dx[i], want, 4 * u * sizes + 2 * store_unit<T> * std::abs(want) + store_floor * (sizeof(T) == 2))
              << "element " << i;
          ASSERT_NEAR(dresidual[i], g, store_unit<T> * std::abs(g) + store_floor * (sizeof(T) == 2)) << "element " << i;
        }
        args.dx = nullptr, args.dresidual = only.data();
        this->ops.apply_grad(args, this->queue);
        EXPECT_TRUE(only.same_bits(dresidual));
        args.dy = args.dx = in_place.data(), args.dresidual = nullptr;
        this->ops.apply_grad(args, this->queue);
        EXPECT_TRUE(in_place.same_bits(dx) && in_place.intact());
      }
  }
}

TYPED_TEST(Kernels, GradientSumsOfWholeNumbersAreExact) {
  using T = TypeParam;
  for (const Partition& p :
       {Partition{1, 5, 3, 49}, Partition{1, 333, 5, 1}, Partition{2, 70, 3, 7}, Partition{1, 2, 1, 90000}}) {
    SCOPED_TRACE(text(p));
    Walled<T> x(p.elements()), dy(p.elements());
    Walled<double> center(p.groups()), sum_g(p.groups()), sum_gx(p.groups());
    std::vector<double> g(static_cast<std::size_t>(p.groups())), gx(g);
    for (std::int64_t i = 0; i < p.groups(); ++i) center.set(i, static_cast<double>(i % 3));
    for (std::int64_t i = 0; i < p.elements(); ++i) {
      x.set(i, static_cast<double>(i * 5 % 13 - 6)), dy.set(i, static_cast<double>(i * 3 % 11 - 4));
      const auto group = static_cast<std::size_t>(p.group_of(i));
      g[group] += dy[i], gx[group] += dy[i] * (x[i] - center[p.group_of(i)]);
    }
    this->ops.moments_grad({x.data(), dy.data(), dtype_of<T>(), p, center.data(), {}, sum_g.data(), sum_gx.data()},
                           this->queue);
    for (std::int64_t i = 0; i < p.groups(); ++i) {
      EXPECT_EQ(sum_g[i], g[static_cast<std::size_t>(i)]);
      EXPECT_EQ(sum_gx[i], gx[static_cast<std::size_t>(i)]);
    }
  }
}

TYPED_TEST(Kernels, NotANumberPassesActivationsAndGates) {
  using T = TypeParam;
  const Partition p{1, 3, 2, 21};
  auto x = normal<T>(p.elements(), 2), dy = normal<T>(p.elements(), 3);
  const std::int64_t at = 100;
  x.set(at, std::nan(""));
  const Coefficients k(p.groups());
  for (const Activation& activation : activations) {
    Walled<T> y(p.elements()), dresidual(p.elements());
    std::vector<std::uint8_t> mask(static_cast<std::size_t>((p.elements() + 7) / 8));
    this->ops.apply({.x = x.data(),
                     .y = y.data(),
                     .dtype = dtype_of<T>(),
                     .partition = p,
                     .center = k.center.data(),
                     .scale = k.scale.data(),
                     .shift = k.shift.data(),
                     .activation = activation},
                    this->queue);
    this->ops.sign_mask({y.data(), dtype_of<T>(), p.elements(), mask.data()}, this->queue);
    EXPECT_TRUE(std::isnan(y[at]));
    for (const std::uint8_t* bits :
         {static_cast<const std::uint8_t*>(nullptr), static_cast<const std::uint8_t*>(mask.data())}) {
      this->ops.apply_grad({.x = x.data(),
                            .dy = dy.data(),
                            .dresidual = dresidual.data(),
                            .dtype = dtype_of<T>(),
                            .partition = p,
                            .center = k.center.data(),
                            .gate = {activation, bits, k.scale.data(), k.shift.data()},
                            .gain = k.gain.data(),
                            .slope = k.slope.data(),
                            .offset = k.offset.data()},
                           this->queue);
      EXPECT_EQ(dresidual[at], dy[at]);
    }
    Walled<double> mean(p.groups()), m2(p.groups());
    this->ops.moments({x.data(), dtype_of<T>(), p, mean.data(), m2.data()}, this->queue);
    EXPECT_TRUE(std::isnan(mean[p.group_of(at)]) && std::isnan(m2[p.group_of(at)]));
    EXPECT_FALSE(std::isnan(mean[1 - p.group_of(at)]));
  }
}

struct Extent {
  std::int64_t rows, columns;
};
const Extent extents[] = {{1, 1},   {300, 1},  {5, 3}, {4, 64}, {7, 257},   {3, 1030},
                          {40, 17}, {2, 8192}, {0, 5}, {6, 0},  {2000, 70}, {9, 513}};

TYPED_TEST(Kernels, RowsOfEveryExtent) {
  using T = TypeParam;
  constexpr double u = compute_unit<T>, floor = sizeof(T) == 2 ? store_floor : 0.0;
  for (const auto& [rows, columns] : extents)
    for (const bool affine : {true, false}) {
      SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(columns) + (affine ? " affine" : ""));
      const std::int64_t n = rows * columns;
      const auto x = normal<T>(n, 2), dy = normal<T>(n, 3);
      const auto weight = normal<double>(columns, 21), bias = normal<double>(columns, 22);
      const Coefficients k(rows);
      Walled<T> y(n), dx(n);
      Walled<double> sum_g(rows), sum_gx(rows), dweight(columns), dbias(columns);
      const RowsArgs args{.x = x.data(),
                          .dy = dy.data(),
                          .y = y.data(),
                          .dx = dx.data(),
                          .dtype = dtype_of<T>(),
                          .rows = rows,
                          .columns = columns,
                          .weight = affine ? weight.data() : nullptr,
                          .bias = affine ? bias.data() : nullptr,
                          .center = k.center.data(),
                          .scale = k.scale.data(),
                          .shift = k.shift.data(),
                          .gain = k.gain.data(),
                          .slope = k.slope.data(),
                          .offset = k.offset.data(),
                          .sum_g = sum_g.data(),
                          .sum_gx = sum_gx.data(),
                          .dweight = dweight.data(),
                          .dbias = dbias.data()};
      this->ops.apply_rows(args, this->queue);
      this->ops.moments_grad_rows(args, this->queue);
      this->ops.affine_grad_rows(args, this->queue);
      this->ops.apply_grad_rows(args, this->queue);
      EXPECT_TRUE(y.intact() && dx.intact() && sum_g.intact() && sum_gx.intact() && dweight.intact() && dbias.intact());
      std::vector<double> weight_sum(static_cast<std::size_t>(columns)), bias_sum(weight_sum), weight_size(weight_sum),
          bias_size(weight_sum);
      for (std::int64_t r = 0; r < rows; ++r) {
        double g_sum = 0, gx_sum = 0, g_size = 0, gx_size = 0;
        for (std::int64_t j = 0; j < columns; ++j) {
          const std::int64_t i = r * columns + j;
          const double w = affine ? weight[j] : 1.0, b = affine ? bias[j] : 0.0, centred = x[i] - k.center[r],
                       g = w * dy[i];
          const double product = centred * k.scale[r], z = product + k.shift[r];
          const double z_size = 2 * std::abs(product) + std::abs(k.center[r] * k.scale[r]) + std::abs(k.shift[r]);
          ASSERT_NEAR(y[i], z * w + b,
                      4 * u * (z_size * std::abs(w) + std::abs(b)) + store_unit<T> * std::abs(z * w + b) + floor);
          const double want = g * k.gain[r] + centred * k.slope[r] + k.offset[r];
          const double want_size = 2 * std::abs(g * k.gain[r]) + 2 * std::abs(centred * k.slope[r]) +
                                   std::abs(k.center[r] * k.slope[r]) + std::abs(k.offset[r]);
          ASSERT_NEAR(dx[i], want, 4 * u * want_size + store_unit<T> * std::abs(want) + floor);
          g_sum += g, gx_sum += g * centred, g_size += std::abs(g), gx_size += std::abs(g * centred);
          const auto c = static_cast<std::size_t>(j);
          weight_sum[c] += dy[i] * z, bias_sum[c] += dy[i];
          weight_size[c] += std::abs(dy[i]) * z_size, bias_size[c] += std::abs(dy[i]);
        }
        const double sums = 2 * eps64 * std::sqrt(static_cast<double>(columns));
        ASSERT_NEAR(sum_g[r], g_sum, sums * g_size);
        ASSERT_NEAR(sum_gx[r], gx_sum, (u + sums) * gx_size + sums * g_size);
      }
      const double sums = 2 * eps64 * std::sqrt(static_cast<double>(rows));
      for (std::int64_t j = 0; j < columns; ++j) {
        const auto c = static_cast<std::size_t>(j);
        ASSERT_NEAR(dweight[j], weight_sum[c], (4 * u + sums) * weight_size[c]);
        ASSERT_NEAR(dbias[j], bias_sum[c], sums * bias_size[c]);
      }
    }
}

TYPED_TEST(Kernels, BitsDoNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  for (const Partition& p :
       {Partition{1, 4, 3, 50000}, Partition{1, 70000, 5, 1}, Partition{2, 9000, 6, 8}, Partition{1, 300, 700, 1}}) {
    SCOPED_TRACE(text(p));
    const auto x = normal<T>(p.elements(), 2, 1.0), dy = normal<T>(p.elements(), 3);
    const Coefficients k(p.groups()), rows(p.reduce0);
    struct Results {
      Walled<double> mean, m2, sum_g, sum_gx, dweight, dbias;
      Walled<T> y, dx;
    };
    std::vector<Results> results;
    for (const int threads : {1, 2, 3}) {
      Queue some = Queue::cpu(threads);
      const std::int64_t columns = p.elements() / p.reduce0;
      const Walled<double> groups(p.groups()), width(columns);
      auto& r = results.emplace_back(
          Results{groups, groups, groups, groups, width, width, Walled<T>(p.elements()), Walled<T>(p.elements())});
      const Gate gate{{ActivationKind::relu, 0.0}, nullptr, k.scale.data(), k.shift.data()};
      some.ops().moments({x.data(), dtype_of<T>(), p, r.mean.data(), r.m2.data()}, some);
      some.ops().apply({.x = x.data(),
                        .y = r.y.data(),
                        .dtype = dtype_of<T>(),
                        .partition = p,
                        .center = k.center.data(),
                        .scale = k.scale.data(),
                        .shift = k.shift.data(),
                        .activation = gate.activation},
                       some);
      some.ops().moments_grad(
          {x.data(), dy.data(), dtype_of<T>(), p, k.center.data(), gate, r.sum_g.data(), r.sum_gx.data()}, some);
      some.ops().apply_grad({.x = x.data(),
                             .dy = dy.data(),
                             .dx = r.dx.data(),
                             .dtype = dtype_of<T>(),
                             .partition = p,
                             .center = k.center.data(),
                             .gate = gate,
                             .gain = k.gain.data(),
                             .slope = k.slope.data(),
                             .offset = k.offset.data()},
                            some);
      some.ops().affine_grad_rows({.x = x.data(),
                                   .dy = dy.data(),
                                   .dtype = dtype_of<T>(),
                                   .rows = p.reduce0,
                                   .columns = columns,
                                   .center = rows.center.data(),
                                   .scale = rows.scale.data(),
                                   .shift = rows.shift.data(),
                                   .dweight = r.dweight.data(),
                                   .dbias = r.dbias.data()},
                                  some);
    }
    for (std::size_t i = 1; i < results.size(); ++i) {
      EXPECT_TRUE(results[i].mean.same_bits(results[0].mean) && results[i].m2.same_bits(results[0].m2));
      EXPECT_TRUE(results[i].sum_g.same_bits(results[0].sum_g) && results[i].sum_gx.same_bits(results[0].sum_gx));
      EXPECT_TRUE(results[i].dweight.same_bits(results[0].dweight) && results[i].dbias.same_bits(results[0].dbias));
      EXPECT_TRUE(results[i].y.same_bits(results[0].y) && results[i].dx.same_bits(results[0].dx));
    }
  }
}

/// Every f16 and bf16 pattern through an identity map, and floats around every rounding boundary of bf16 and f16.
template <class T>
void expect_identity() {
  Queue queue = Queue::cpu(1);
  const Partition p{1, 1, 1, 65536};
  Walled<T> x(p.elements()), y(p.elements());
  for (std::int64_t i = 0; i < p.elements(); ++i) x.data()[i].bits = static_cast<std::uint16_t>(i);
  const double zero = 0.0, one = 1.0;
  queue.ops().apply({.x = x.data(),
                     .y = y.data(),
                     .dtype = dtype_of<T>(),
                     .partition = p,
                     .center = &zero,
                     .scale = &one,
                     .shift = &zero},
                    queue);
  for (std::int64_t i = 0; i < p.elements(); ++i) {
    if (std::isnan(x[i]))
      ASSERT_TRUE(std::isnan(y[i])) << i;
    else
      ASSERT_EQ(y[i], x[i]) << i;
  }
  // x * scale is not a value of T: the store rounds as allnorm::store does.
  const double scale = static_cast<double>(1.0f + 0x1p-7f + 0x1p-10f + 0x1p-12f);
  queue.ops().apply({.x = x.data(),
                     .y = y.data(),
                     .dtype = dtype_of<T>(),
                     .partition = p,
                     .center = &zero,
                     .scale = &scale,
                     .shift = &zero},
                    queue);
  for (std::int64_t i = 0; i < p.elements(); ++i)
    if (!std::isnan(x[i])) {
      const float product = static_cast<float>(x[i]) * static_cast<float>(scale);
      ASSERT_EQ(y[i], static_cast<double>(load(store<T>(product)))) << i;
    }
}
TEST(KernelsConversions, EveryBinary16) { expect_identity<f16>(); }
TEST(KernelsConversions, EveryBfloat16) { expect_identity<bf16>(); }

}  // namespace
}  // namespace allnorm
