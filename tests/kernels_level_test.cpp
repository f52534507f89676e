// Maps and reductions with a level that y does not fall below: where z is at it, below it, and not a number.
#include <cmath>
#include <limits>
#include <string>

#include "kernels_support.hpp"

namespace allnorm::kernel_test {
namespace {

template <class T>
struct LevelKernels : OverTypes<T> {};
TYPED_TEST_SUITE(LevelKernels, Types);

// The activation says what y takes of dy where it is at the level.
const Activation ties[] = {
    {ActivationKind::leaky_relu, 1}, {ActivationKind::relu, 0}, {ActivationKind::leaky_relu, 0.5}};
double share_of(const Activation& tie) { return tie.kind == ActivationKind::relu ? 0 : tie.slope; }

TYPED_TEST(LevelKernels, EveryPartition) {
  using T = TypeParam;
  constexpr double u = compute_unit<T>, floor_of_type = sizeof(T) == 2 ? store_floor : 0.0;
  for (const Partition& p : partitions)
    for (const Activation& tie : ties) {
      if (backend::takes_some && &tie != &ties[2] && p.elements() > 5000) continue;
      SCOPED_TRACE(text(p) + ", tie " + std::to_string(share_of(tie)));
      const std::int64_t n = p.elements(), G = p.groups(),
                         levels = std::min<std::int64_t>(3, std::max<std::int64_t>(1, G));
      const auto x = normal<T>(n, 2), dy = normal<T>(n, 3);
      Coefficients k(G);
      Walled<float> level = normal<float>(levels, 5);
      for (std::int64_t g = 0; g < G; g += 4) {  // all of its values are at the level
        k.scale.set(g, 0);
        k.shift.set(g, level[g % levels]);
      }
      const Floor floor{{level.data(), DType::f32}, {1, levels}};
      Walled<T> z(n), y(n), dx(n);
      ApplyArgs map{.x = x.data(),
                    .y = z.data(),
                    .dtype = dtype_of<T>(),
                    .partition = p,
                    .center = k.center.data(),
                    .scale = k.scale.data(),
                    .shift = k.shift.data()};
      this->ops.apply(map, this->queue);
      map.y = y.data();
      map.activation = tie;
      map.floor = floor;
      this->ops.apply(map, this->queue);
      EXPECT_TRUE(y.intact());

      const Gate gate{tie, nullptr, k.scale.data(), k.shift.data(), floor};
      Walled<double> sum_g(G), sum_gx(G), sum_level(G);
      this->ops.moments_grad({.x = x.data(),
                              .dy = dy.data(),
                              .dtype = dtype_of<T>(),
                              .partition = p,
                              .center = k.center.data(),
                              .gate = gate,
                              .sum_g = sum_g.data(),
                              .sum_gx = sum_gx.data(),
                              .sum_level = sum_level.data()},
                             this->queue);
      this->ops.apply_grad({.x = x.data(),
                            .dy = dy.data(),
                            .dx = dx.data(),
                            .dtype = dtype_of<T>(),
                            .partition = p,
                            .center = k.center.data(),
                            .gate = gate,
                            .gain = k.gain.data(),
                            .slope = k.slope.data(),
                            .offset = k.offset.data()},
                           this->queue);
      EXPECT_TRUE(dx.intact() && sum_g.intact() && sum_gx.intact() && sum_level.intact());

      std::vector<double> g(static_cast<std::size_t>(G)), gx(g), rest(g), sizes(g);
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t of = p.group_of(i);
        const auto at = static_cast<std::size_t>(of);
        const double at_level = level[of % levels];
        // apply says on which side z is; but for 16 bits, whose rounding may put it at the level
        const double centred = x[i] - k.center[of], exact = centred * k.scale[of] + k.shift[of];
        const bool tied = of % 4 == 0;
        const double size =
            std::abs(centred * k.scale[of]) + std::abs(k.shift[of]) + std::abs(k.center[of] * k.scale[of]);
        if (!tied && std::abs(exact - at_level) < 8 * u * size) continue;  // never so far
        ASSERT_NEAR(y[i], std::max(exact, at_level),
                    2 * u * size + store_unit<T> * std::abs(std::max(exact, at_level)) + floor_of_type);
        const double own = dy[i] * (tied ? share_of(tie) : exact < at_level ? 0 : 1);
        const double terms[] = {own * k.gain[of], centred * k.slope[of], k.offset[of]};
        const double want = terms[0] + terms[1] + terms[2];
        ASSERT_NEAR(dx[i], want,
                    4 * u *
                            (std::abs(terms[0]) + 3 * std::abs(terms[1]) + std::abs(k.center[of] * k.slope[of]) +
                             std::abs(terms[2])) +
                        store_unit<T> * std::abs(want) + floor_of_type);
        g[at] += own;
        gx[at] += own * centred;
        rest[at] += dy[i] - own;
        sizes[at] += std::abs(dy[i]) * (1 + std::abs(centred));
      }
      const double sums = backend::statistics_unit(dtype_of<T>()) + 1e-12;
      for (std::int64_t of = 0; of < G; ++of) {
        const auto at = static_cast<std::size_t>(of);
        ASSERT_NEAR(sum_g[of], g[at], sums * sizes[at]);
        ASSERT_NEAR(sum_gx[of], gx[at], sums * sizes[at]);
        ASSERT_NEAR(sum_level[of], rest[at], sums * sizes[at]);
      }
    }
}

TYPED_TEST(LevelKernels, NaNOfEitherStays) {
  using T = TypeParam;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Walled<T> x(6), y(6);
  for (std::int64_t i = 0; i < 6; ++i) x.set(i, static_cast<double>(i));
  x.set(1, nan);
  Walled<double> center(2), scale(2), shift(2), level(2);
  for (std::int64_t g = 0; g < 2; ++g) {
    center.set(g, 0);
    scale.set(g, 1);
    shift.set(g, 0);
    level.set(g, g == 0 ? 2 : nan);
  }
  this->ops.apply({.x = x.data(),
                   .y = y.data(),
                   .dtype = dtype_of<T>(),
                   .partition = {1, 1, 2, 3},
                   .center = center.data(),
                   .scale = scale.data(),
                   .shift = shift.data(),
                   .floor = {{level.data(), DType::f64}, {1, 2}}},
                  this->queue);
  EXPECT_EQ(y[0], 2);
  EXPECT_TRUE(std::isnan(y[1]));
  EXPECT_EQ(y[2], 2);
  for (std::int64_t i = 3; i < 6; ++i) EXPECT_TRUE(std::isnan(y[i]));
}

}  // namespace
}  // namespace allnorm::kernel_test
