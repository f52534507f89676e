// Kernels with gamma and beta along rows against a plain loop in double, and all kernels on different numbers of
// threads.
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
struct KernelsRows : OverTypes<T> {};
TYPED_TEST_SUITE(KernelsRows, Types);

struct Extent {
  std::int64_t rows, columns;
};
const Extent extents[] = {{1, 1},    {300, 1}, {5, 3}, {4, 64},    {7, 257}, {3, 1030},  {40, 17},
                          {2, 8192}, {0, 5},   {6, 0}, {2000, 70}, {9, 513}, {3, 20008}, {1, 30001}};

TYPED_TEST(KernelsRows, RowsOfEveryExtent) {
  using T = TypeParam;
  constexpr double u = compute_unit<T>, floor = sizeof(T) == 2 ? store_floor : 0.0;
  for (const auto& [rows, columns] : extents)
    for (const bool affine : {true, false}) {
      SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(columns) + (affine ? " affine" : ""));
      const std::int64_t n = rows * columns;
      const auto x = normal<T>(n, 2), dy = normal<T>(n, 3);
      const auto weight = normal<compute_t<T>>(columns, 21), bias = normal<compute_t<T>>(columns, 22);
      const Coefficients k(rows);
      Walled<T> y(n), dx(n);
      Walled<double> sum_g(rows), sum_gx(rows), dweight(columns), dbias(columns), zeros(rows);
      for (std::int64_t r = 0; r < rows; ++r) zeros.set(r, 0);
      const Partition of_rows{1, 1, rows, columns};
      constexpr DType type = dtype_of<compute_t<T>>();
      const Along along{{weight.data(), type, 1}, {bias.data(), type, 0}, {1, rows, columns, 1}, affine};
      const Gate gate{{}, nullptr, k.scale.data(), zeros.data()};
      this->ops.apply({.x = x.data(),
                       .y = y.data(),
                       .dtype = dtype_of<T>(),
                       .partition = of_rows,
                       .center = k.center.data(),
                       .scale = k.scale.data(),
                       .shift = zeros.data(),
                       .along = along},
                      this->queue);
      this->ops.moments_grad(
          {x.data(), dy.data(), dtype_of<T>(), of_rows, k.center.data(), gate, sum_g.data(), sum_gx.data(), along},
          this->queue);
      this->ops.affine_grad(
          {x.data(), dy.data(), dtype_of<T>(), of_rows, k.center.data(), gate, along, dweight.data(), dbias.data()},
          this->queue);
      this->ops.apply_grad({.x = x.data(),
                            .dy = dy.data(),
                            .dx = dx.data(),
                            .dtype = dtype_of<T>(),
                            .partition = of_rows,
                            .center = k.center.data(),
                            .gain = k.gain.data(),
                            .slope = k.slope.data(),
                            .offset = k.offset.data(),
                            .along = along},
                           this->queue);
      EXPECT_TRUE(y.intact() && dx.intact() && sum_g.intact() && sum_gx.intact() && dweight.intact() && dbias.intact());
      std::vector<double> weight_sum(static_cast<std::size_t>(columns)), bias_sum(weight_sum), weight_size(weight_sum),
          bias_size(weight_sum);
      for (std::int64_t r = 0; r < rows; ++r) {
        double g_sum = 0, gx_sum = 0, g_size = 0, gx_size = 0;
        for (std::int64_t j = 0; j < columns; ++j) {
          const std::int64_t i = r * columns + j;
          const double w = affine ? weight[j] : 1.0, b = affine ? bias[j] : 0.0, centred = x[i] - k.center[r],
                       g = w * dy[i];
          const double z = centred * k.scale[r];
          const double z_size = 2 * std::abs(z) + std::abs(k.center[r] * k.scale[r]);
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
        const double sums =
            2 * eps64 * std::sqrt(static_cast<double>(columns)) + backend::statistics_unit(dtype_of<T>());
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

// (x - center) * scale is a number of the type, though the scale is not; and so is dx's slope, given with its power.
TYPED_TEST(KernelsRows, FactorsBeyondTheRangeOfTheType) {
  using T = TypeParam;
  constexpr double u = compute_unit<T>, floor = std::is_same_v<T, f16> ? store_floor : 0.0;
  struct Case {
    double x, result;
  };
  const std::vector<Case> cases = std::is_same_v<T, double> ? std::vector<Case>{{1e-150, 1e150}, {1e150, 1e-150}}
                                  : std::is_same_v<T, f16>  ? std::vector<Case>{{1e-3, 1e3}, {1e3, 1e-3}}
                                                            : std::vector<Case>{{1e-30, 1e12}, {1e30, 1e-12}};
  const std::int64_t rows = 5, columns = 68, n = rows * columns;
  const Partition p{1, 1, rows, columns};
  for (const auto& [size, result] : cases) {
    SCOPED_TRACE("x of size " + std::to_string(std::log10(size)));
    const auto x = normal<T>(n, 2, 0, size), dy = normal<T>(n, 3);
    const double power = std::exp2(std::ilogb(1 / size));
    const auto center = normal<double>(rows, 4, 0, 0.3 * size), scale = normal<double>(rows, 5, 0, result / size);
    const auto slope = normal<double>(rows, 6, 0, result), offset = normal<double>(rows, 7, 0, result),
               gain = normal<double>(rows, 8, 0, result);
    Walled<double> powers(rows), zeros(rows);
    for (std::int64_t r = 0; r < rows; ++r) powers.set(r, power), zeros.set(r, 0);
    Walled<T> y(n), dx(n), y_of_rows(n), dx_of_rows(n);
    for (const bool given : {false, true}) {
      const Along along{{.otherwise = 1}, {}, {1, rows, columns, 1}, given};  // 1 and 0 for each
      this->ops.apply({.x = x.data(),
                       .y = given ? y_of_rows.data() : y.data(),
                       .dtype = dtype_of<T>(),
                       .partition = p,
                       .center = center.data(),
                       .scale = scale.data(),
                       .shift = zeros.data(),
                       .along = along},
                      this->queue);
      this->ops.apply_grad({.x = x.data(),
                            .dy = dy.data(),
                            .dx = given ? dx_of_rows.data() : dx.data(),
                            .dtype = dtype_of<T>(),
                            .partition = p,
                            .center = center.data(),
                            .gain = gain.data(),
                            .slope = slope.data(),
                            .offset = offset.data(),
                            .power = powers.data(),
                            .along = along},
                           this->queue);
    }
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t r = i / columns;
      const double centred = x[i] - center[r], parts = std::abs(x[i]) + std::abs(center[r]);
      const double z = centred * scale[r], rest = centred * power * slope[r];
      const double z_bound = 4 * u * parts * std::abs(scale[r]) + store_unit<T> * std::abs(z) + floor;
      ASSERT_NEAR(y[i], z, z_bound);
      ASSERT_NEAR(y_of_rows[i], z, z_bound);
      const double want = dy[i] * gain[r] + rest + offset[r];
      const double terms = std::abs(dy[i] * gain[r]) + parts * power * std::abs(slope[r]) + std::abs(offset[r]);
      const double bound = 4 * u * terms + store_unit<T> * std::abs(want) + floor;
      ASSERT_NEAR(dx[i], want, bound);
      ASSERT_NEAR(dx_of_rows[i], want, bound);
    }
  }
}

TYPED_TEST(KernelsRows, BitsDoNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  for (const Partition& p :
       {Partition{1, 4, 3, 50000}, Partition{1, 70000, 5, 1}, Partition{2, 9000, 6, 8}, Partition{1, 300, 700, 1}}) {
    if (backend::takes_some && p.elements() > 400000) continue;
    SCOPED_TRACE(text(p));
    const auto x = normal<T>(p.elements(), 2, 1.0), dy = normal<T>(p.elements(), 3);
    const Coefficients k(p.groups()), rows(p.reduce0);
    struct Results {
      Walled<double> mean, m2, sum_g, sum_gx, dweight, dbias;
      Walled<T> y, dx;
    };
    std::vector<Results> results;
    for (const int threads : {1, 2, 3}) {
      Queue some = backend::queue(threads);
      const Calls calls = calls_of(some);
      const std::int64_t columns = p.elements() / p.reduce0;
      const Walled<double> groups(p.groups()), width(columns);
      auto& r = results.emplace_back(
          Results{groups, groups, groups, groups, width, width, Walled<T>(p.elements()), Walled<T>(p.elements())});
      const Gate gate{{ActivationKind::relu, 0.0}, nullptr, k.scale.data(), k.shift.data()};
      calls.moments({x.data(), dtype_of<T>(), p, r.mean.data(), r.m2.data()}, some);
      calls.apply({.x = x.data(),
                   .y = r.y.data(),
                   .dtype = dtype_of<T>(),
                   .partition = p,
                   .center = k.center.data(),
                   .scale = k.scale.data(),
                   .shift = k.shift.data(),
                   .activation = gate.activation},
                  some);
      calls.moments_grad(
          {x.data(), dy.data(), dtype_of<T>(), p, k.center.data(), gate, r.sum_g.data(), r.sum_gx.data()}, some);
      calls.apply_grad({.x = x.data(),
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
      calls.affine_grad({x.data(),
                         dy.data(),
                         dtype_of<T>(),
                         {1, 1, p.reduce0, columns},
                         rows.center.data(),
                         {{}, nullptr, rows.scale.data(), rows.shift.data()},
                         {.affine = {1, p.reduce0, columns, 1}},
                         r.dweight.data(),
                         r.dbias.data()},
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

}  // namespace
}  // namespace allnorm::kernel_test
