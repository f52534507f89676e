// The backward kernels of a backend's table against a plain loop in double.
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
struct KernelsBackward : OverTypes<T> {};
TYPED_TEST_SUITE(KernelsBackward, Types);

/// The ways to find the gate, and the gate that each must find.
template <class T>
struct GateCase {
  Gate gate{};
  backend::Array<std::uint8_t> mask;
  std::vector<bool> open;  // per element

  /// From the sign that apply itself computed, with a residual (whose mask is then given) or without.
  GateCase(const Walled<T>& x, const Walled<T>& residual, const Partition& p, const Coefficients& k,
           const Activation& activation, bool masked, Queue& queue) {
    const Calls ops = calls_of(queue);
    Walled<T> y(p.elements());
    Activation relu = activation;
    if (relu.kind == ActivationKind::leaky_relu) relu.kind = ActivationKind::relu;
    ops.apply({.x = x.data(),
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
      mask = sign_mask(y);
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

TYPED_TEST(KernelsBackward, BackwardOfEveryPartition) {
  using T = TypeParam;
  constexpr double u = compute_unit<T>;
  for (const Partition& p : partitions) {
    const auto x = normal<T>(p.elements(), 2), residual = normal<T>(p.elements(), 3), dy = normal<T>(p.elements(), 4);
    const Coefficients k(p.groups());
    for (const Activation& activation : activations)
      for (const bool masked : {false, true}) {
        if (backend::takes_some && masked != ((&p - partitions + (&activation - activations)) % 2 == 0)) continue;
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
        // One rounding of x - center each (and of slope * dy); sums in double, here and there, or short ones.
        const double sums =
            2 * eps64 * std::sqrt(static_cast<double>(p.group_size())) + backend::statistics_unit(dtype_of<T>());
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

TYPED_TEST(KernelsBackward, GradientSumsOfWholeNumbersAreExact) {
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

TYPED_TEST(KernelsBackward, NotANumberPassesActivationsAndGates) {
  using T = TypeParam;
  const Partition p{1, 3, 2, 21};
  auto x = normal<T>(p.elements(), 2), dy = normal<T>(p.elements(), 3);
  const std::int64_t at = 100;
  x.set(at, std::nan(""));
  const Coefficients k(p.groups());
  for (const Activation& activation : activations) {
    Walled<T> y(p.elements()), dresidual(p.elements());
    this->ops.apply({.x = x.data(),
                     .y = y.data(),
                     .dtype = dtype_of<T>(),
                     .partition = p,
                     .center = k.center.data(),
                     .scale = k.scale.data(),
                     .shift = k.shift.data(),
                     .activation = activation},
                    this->queue);
    EXPECT_TRUE(std::isnan(y[at]));
    const auto mask = sign_mask(y);
    for (const std::uint8_t* bits : {static_cast<const std::uint8_t*>(nullptr), mask.data()}) {
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

}  // namespace
}  // namespace allnorm::kernel_test
