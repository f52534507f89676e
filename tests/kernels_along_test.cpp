// Gamma and beta that values read along, in every kernel that knows them, against a plain loop in double: behind
// activations, with residuals and masks, over partitions of any kind.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels_support.hpp"

namespace allnorm::kernel_test {
namespace {

/// How a norm and its gamma cut the same tensor.
struct Cuts {
  const char* edge;
  Partition norm, affine;
};
const Cuts cuts[] = {
    {"a gamma per column", {1, 1, 9, 64}, {1, 9, 64, 1}},
    {"a gamma per column, off the vector's width", {1, 1, 7, 37}, {1, 7, 37, 1}},
    {"long rows", {1, 1, 3, 5000}, {1, 3, 5000, 1}},
    {"many short rows", {1, 1, 700, 8}, {1, 700, 8, 1}},
    {"rows of one value", {1, 1, 40, 1}, {1, 40, 1, 1}},
    {"one row", {1, 1, 1, 72}, {1, 1, 72, 1}},
    {"a gamma per value, channels first", {1, 3, 5, 48}, {1, 1, 3 * 5 * 48, 1}},
    {"a gamma per value, channels last", {1, 60, 24, 1}, {1, 1, 60 * 24, 1}},
    {"a gamma per value, odd planes", {1, 3, 5, 49}, {1, 1, 3 * 5 * 49, 1}},
    {"a gamma per value, odd channels last", {1, 41, 17, 1}, {1, 1, 41 * 17, 1}},
    {"a gamma per value, instances", {4, 30, 6, 1}, {1, 1, 4 * 30 * 6, 1}},
    {"a gamma per place", {1, 1, 12, 49}, {1, 12, 49, 1}},
    {"a gamma per place, channels last", {3, 40, 8, 1}, {1, 3, 40, 8}},
    {"a gamma per run", {1, 6, 4, 32}, {1, 1, 6 * 4, 32}},
    {"a gamma per part of a run", {1, 1, 5, 96}, {1, 5, 24, 4}},
    {"a gamma per run of a matrix", {1, 1, 6, 70}, {3, 2, 7, 10}},
    {"a gamma for two groups", {1, 1, 8, 40}, {1, 4, 80, 1}},
    {"one gamma", {1, 5, 7, 9}, {1, 1, 1, 315}},
    {"no values", {1, 0, 3, 5}, {1, 0, 15, 1}},
    {"no groups", {1, 1, 0, 5}, {1, 0, 5, 1}},
};
enum class Given { both, gamma, beta };

std::string text_of(const Cuts& c, const Activation& a, bool masked, Given given) {
  return std::string(c.edge) + ", activation " + std::to_string(static_cast<int>(a.kind)) +
         (masked ? ", with a residual" : "") + ", given " + std::to_string(static_cast<int>(given));
}

/// Values from the place `shift` of a walled array on: off the alignment of vectors where it is not 0.
template <class T>
struct Shifted {
  Walled<T> all;
  std::int64_t shift;

  Shifted(const Walled<T>& values, std::int64_t by) : all(values.size() + by), shift(by) {
    for (std::int64_t i = 0; i < values.size(); ++i) all.set(i + by, values[i]);
  }
  T* data() { return all.data() + shift; }
  const T* data() const { return all.data() + shift; }
  double operator[](std::int64_t i) const { return all[i + shift]; }
};

template <class T>
struct AlongKernels : OverTypes<T> {
  static constexpr double u = compute_unit<T>, floor = sizeof(T) == 2 ? store_floor : 0.0;

  /// P: the parameters' type.
  template <class P>
  void expect_calls(const Cuts& cut, const Activation& activation, bool masked, Given given, std::int64_t shift) {
    const std::int64_t n = cut.norm.elements(), groups = cut.norm.groups(), parameters = cut.affine.groups();
    ASSERT_EQ(cut.affine.elements(), n);
    const Shifted<T> x(normal<T>(n, 2), shift), dy(normal<T>(n, 3), shift), residual(normal<T>(n, 4), shift);
    const Shifted<P> weight(normal<P>(parameters, 21, 0.3), shift), bias(normal<P>(parameters, 22), shift);
    const Coefficients k(groups);
    constexpr DType type = dtype_of<P>();
    const Along along{{given == Given::beta ? nullptr : weight.data(), type, 1},
                      {given == Given::gamma ? nullptr : bias.data(), type, 0},
                      cut.affine,
                      true};
    const auto gamma = [&](std::int64_t i) { return given == Given::beta ? 1.0 : weight[cut.affine.group_of(i)]; };
    const auto beta = [&](std::int64_t i) { return given == Given::gamma ? 0.0 : bias[cut.affine.group_of(i)]; };

    Shifted<T> y(Walled<T>(n), shift), dx(Walled<T>(n), shift), dresidual(Walled<T>(n), shift);
    ApplyArgs map{.x = x.data(),
                  .residual = masked ? residual.data() : nullptr,
                  .y = y.data(),
                  .dtype = dtype_of<T>(),
                  .partition = cut.norm,
                  .center = k.center.data(),
                  .scale = k.scale.data(),
                  .shift = k.shift.data(),
                  .activation = activation,
                  .along = along};
    this->ops.apply(map, this->queue);
    EXPECT_TRUE(y.all.intact());
    std::vector<double> z(static_cast<std::size_t>(n)), z_size(z);  // before gamma; and of what its roundings come
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t g = cut.norm.group_of(i);
      const double centred = x[i] - k.center[g];
      z[index(i)] = centred * k.scale[g] + k.shift[g];
      z_size[index(i)] = 2 * std::abs(centred * k.scale[g]) + std::abs(k.center[g] * k.scale[g]) + std::abs(k.shift[g]);
      const double moved = z[index(i)] * gamma(i), sum = moved + beta(i) + (masked ? residual[i] : 0.0);
      const double want = activated(sum, activation);
      // z as the kernel has it, gamma and beta rounded to the compute type, and the sums
      const double size = z_size[index(i)] * std::abs(gamma(i)) + 2 * std::abs(moved) + 2 * std::abs(beta(i)) +
                          std::abs(sum) + (masked ? std::abs(residual[i]) : 0.0);
      ASSERT_NEAR(y[i], want, 2 * u * size + store_unit<T> * std::abs(want) + floor) << "element " << i;
    }

    // the gate that the kernels must find is where apply itself gave values above 0
    Walled<T> plain(n);
    map.y = plain.data();
    if (activation.kind != ActivationKind::identity) map.activation = {ActivationKind::relu, 0.0};
    this->ops.apply(map, this->queue);
    const auto mask = sign_mask(plain);
    std::vector<double> gated(index(n));
    for (std::int64_t i = 0; i < n; ++i) {
      const bool open = activation.kind == ActivationKind::identity || plain[i] > 0;
      gated[index(i)] = open ? dy[i] : activation.kind == ActivationKind::relu ? 0.0 : activation.slope * dy[i];
    }
    const Gate gate{activation, masked ? mask.data() : nullptr, k.scale.data(), k.shift.data()};

    Walled<double> sum_g(groups), sum_gx(groups), dweight(parameters), dbias(parameters);
    this->ops.moments_grad(
        {x.data(), dy.data(), dtype_of<T>(), cut.norm, k.center.data(), gate, sum_g.data(), sum_gx.data(), along},
        this->queue);
    this->ops.affine_grad(
        {x.data(), dy.data(), dtype_of<T>(), cut.norm, k.center.data(), gate, along, dweight.data(), dbias.data()},
        this->queue);
    EXPECT_TRUE(sum_g.intact() && sum_gx.intact() && dweight.intact() && dbias.intact());
    std::vector<double> g_sum(index(groups)), gx_sum(g_sum), g_size(g_sum), gx_size(g_sum);
    std::vector<double> weight_sum(index(parameters)), bias_sum(weight_sum), weight_size(weight_sum),
        bias_size(weight_sum);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto group = index(cut.norm.group_of(i)), parameter = index(cut.affine.group_of(i));
      const double g = gated[index(i)], product = gamma(i) * g, centred = x[i] - k.center[cut.norm.group_of(i)];
      g_sum[group] += product, g_size[group] += std::abs(product);
      gx_sum[group] += product * centred, gx_size[group] += std::abs(product * centred);
      bias_sum[parameter] += g, bias_size[parameter] += std::abs(g);
      weight_sum[parameter] += g * z[index(i)], weight_size[parameter] += std::abs(g) * z_size[index(i)];
    }
    // A rounding of gamma, of x - center, and of slope * dy each; sums in double, here and there.
    const auto sums = [](std::int64_t count) { return 2 * eps64 * std::sqrt(static_cast<double>(count)); };
    const double in_group = sums(cut.norm.group_size()), in_parameter = sums(cut.affine.group_size());
    for (std::int64_t g = 0; g < groups; ++g) {
      ASSERT_NEAR(sum_g[g], g_sum[index(g)], (2 * u + in_group) * g_size[index(g)]) << "group " << g;
      ASSERT_NEAR(sum_gx[g], gx_sum[index(g)], (3 * u + in_group) * gx_size[index(g)] + in_group * g_size[index(g)])
          << "group " << g;
    }
    for (std::int64_t p = 0; p < parameters; ++p) {
      ASSERT_NEAR(dweight[p], weight_sum[index(p)], (4 * u + in_parameter) * weight_size[index(p)]) << "gamma " << p;
      ASSERT_NEAR(dbias[p], bias_sum[index(p)], (u + in_parameter) * bias_size[index(p)]) << "beta " << p;
    }

    ApplyGradArgs grad{.x = x.data(),
                       .dy = dy.data(),
                       .dx = dx.data(),
                       .dresidual = dresidual.data(),
                       .dtype = dtype_of<T>(),
                       .partition = cut.norm,
                       .center = k.center.data(),
                       .gate = gate,
                       .gain = k.gain.data(),
                       .slope = k.slope.data(),
                       .offset = k.offset.data(),
                       .along = along};
    this->ops.apply_grad(grad, this->queue);
    EXPECT_TRUE(dx.all.intact() && dresidual.all.intact());
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t g = cut.norm.group_of(i);
      const double a = gamma(i) * gated[index(i)] * k.gain[g], b = (x[i] - k.center[g]) * k.slope[g];
      const double want = a + b + k.offset[g];
      const double size =
          2 * std::abs(a) + 2 * std::abs(b) + std::abs(k.center[g] * k.slope[g]) + std::abs(k.offset[g]);
      ASSERT_NEAR(dx[i], want, 4 * u * size + store_unit<T> * std::abs(want) + floor) << "element " << i;
      ASSERT_NEAR(dresidual[i], gated[index(i)], store_unit<T> * std::abs(gated[index(i)]) + floor) << "element " << i;
    }
    Shifted<T> in_place = dy;
    grad.dy = grad.dx = in_place.data(), grad.dresidual = nullptr;
    this->ops.apply_grad(grad, this->queue);
    EXPECT_TRUE(in_place.all.same_bits(dx.all)) << "where dy lay";
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
};
TYPED_TEST_SUITE(AlongKernels, Types);

TYPED_TEST(AlongKernels, EveryCutBehindEveryActivation) {
  for (const Cuts& cut : cuts)
    for (const Activation& activation : activations)
      for (const bool masked : {false, true}) {
        if (backend::takes_some && masked != ((&cut - cuts + (&activation - activations)) % 2 == 0)) continue;
        SCOPED_TRACE(text_of(cut, activation, masked, Given::both));
        this->template expect_calls<float>(cut, activation, masked, Given::both, 0);
      }
}

TYPED_TEST(AlongKernels, OneOfTheTwo) {
  for (const Cuts& cut : cuts)
    for (const Given given : {Given::gamma, Given::beta}) {
      SCOPED_TRACE(text_of(cut, activations[1], false, given));
      this->template expect_calls<float>(cut, activations[1], false, given, 0);
    }
}

/// Gamma and beta of f64 are rounded to what the kernel computes in.
TYPED_TEST(AlongKernels, ParametersOfOtherTypes) {
  for (const Cuts& cut : cuts) {
    SCOPED_TRACE(text_of(cut, activations[2], true, Given::both));
    this->template expect_calls<double>(cut, activations[2], true, Given::both, 0);
    this->template expect_calls<f16>(cut, activations[2], true, Given::both, 0);
    this->template expect_calls<bf16>(cut, activations[2], true, Given::both, 1);
  }
}

TYPED_TEST(AlongKernels, OffTheAlignmentOfVectors) {
  for (const Cuts& cut : cuts)
    for (const std::int64_t shift : {1, 3}) {
      SCOPED_TRACE(text_of(cut, activations[2], false, Given::both) + ", shifted by " + std::to_string(shift));
      this->template expect_calls<float>(cut, activations[2], false, Given::both, shift);
    }
}

}  // namespace
}  // namespace allnorm::kernel_test
