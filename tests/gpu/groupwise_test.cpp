// Norms whose groups stay on chip against plain loops in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../kernels_support.hpp"
#include "allnorm/partition.hpp"
#include "allnorm/tensor.hpp"
#include "kernels/cuda/halves.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::kernel_test {
namespace {

/// What a layer sees: src/plan.cpp makes the same.
struct Layout {
  const char* edge;
  Partition norm{}, affine{}, fine{};
  Coarsening to_norm{}, to_affine{};
  bool along = false, by_row = false;  // gamma is read along; and rows may be read once for all gradients

  std::int64_t parameter_of(std::int64_t i) const { return affine.group_of(i); }
  template <class T>
  void describe(LayerCall& call, const Walled<T>& x, const Parameter& weight, const Parameter& bias,
                const steps::FrameView& frame) const {
    call.x = x.data();
    call.dtype = dtype_of<T>();
    call.norm = norm;
    call.affine = affine;
    call.fine = fine;
    call.to_norm = to_norm;
    call.to_affine = to_affine;
    call.along = along;
    call.weight = weight;
    call.bias = bias;
    call.frame = frame;
  }
};
Layout along(const char* edge, const Partition& norm, const Partition& affine) {
  return {edge, norm, affine, norm, {1, norm.groups()}, {}, true};
}
Layout rows(const char* edge, std::int64_t count, std::int64_t columns) {
  Layout layout = along(edge, {1, 1, count, columns}, {1, count, columns, 1});
  layout.by_row = true;
  return layout;
}
Layout blocks(const char* edge, const Shape& shape, Order order, std::int64_t groups) {
  const std::int64_t C = shape[1];
  return {edge,
          partition({Axis::sample, Axis::group}, shape, order, {.groups = groups}),
          partition({Axis::channel}, shape, order),
          partition({Axis::sample, Axis::channel}, shape, order),
          {C / groups, shape[0] * groups},
          {1, C}};
}
Layout channels(const char* edge, const Partition& p) { return {edge, p, p, p, {1, p.groups()}, {1, p.groups()}}; }
/// Large groups are kept on chip where there are enough of them: half as many as the device has multiprocessors.
std::vector<Layout> layouts(const cudaDeviceProp& device) {
  constexpr auto first = Order::channels_first, last = Order::channels_last;
  const std::int64_t enough = std::max(2, (device.multiProcessorCount + 1) / 2);
  const std::int64_t halves = std::max<std::int64_t>(2, (enough + 1) / 2);
  return {rows("one value", 1, 1), rows("a warp per row", 9, 64), rows("rows off the vector's width", 7, 257),
          rows("a block per row", 3, 1032), rows("more values than threads read at once", enough, 20000),
          // these need 48 KiB of shared memory forward, backward with x and dy, or backward with two doubles per
          // column: no room for a variable where nothing was asked for
          rows("48 KiB of f64, or of pairs of doubles", enough, 3072),
          rows("48 KiB of f64, or of pairs of f32", enough, 6144),
          rows("48 KiB of f32, or of pairs of halves", enough, 12288), rows("48 KiB of halves", enough, 24576),
          rows("many rows", 300, 24), rows("more rows than are added in the compute type", 2000, 40),
          rows("several teams of more than a warp", 50, 304),
          blocks("groups of planes off the vector's width", {2, 6, 7, 7}, first, 3),
          blocks("whole planes in vectors", {2, 32, 8, 8}, first, 4),
          blocks("vectors that cross planes", {2, 16, 3, 4}, first, 2), blocks("instances", {3, 5, 9, 11}, first, 5),
          blocks("large instances", {halves, 3, 60, 64}, first, 3), blocks("one group", {2, 7, 5, 5}, first, 1),
          blocks("channels last", {2, 64, 5, 6}, last, 4),
          blocks("channels last, many rows", {halves, 32, 31, 30}, last, 2),
          blocks("channels last, more channels than a warp has lanes", {2, 96, 4, 5}, last, 2),
          blocks("channels last, off the vector's width", {2, 30, 7, 5}, last, 3),
          channels("a small batch's channels", {1, 5, 7, 48}),
          channels("a small batch's channels, off the vector's width", {1, 6, 3, 49}),
          blocks("one plane's value", {4, 40, 1, 1}, first, 2),
          along("a gamma for every value", {1, 1, 12, 64}, {1, 1, 12 * 64, 1}),
          along("a gamma for every value, groups of runs", {1, 5, 6, 16}, {1, 1, 5 * 6 * 16, 1}),
          along("a gamma for every place of a plane", {1, 1, 10, 49}, {1, 10, 49, 1}),
          along("a gamma for every four values", {1, 1, 6, 96}, {1, 6, 24, 4}),
          along("a gamma for every run of a matrix", {1, 1, 6, 64}, {3, 2, 8, 8}),
          along("gammas that several groups share", {1, 1, 6, 64}, {1, 1, 6 * 16, 4}),
          along("gammas of two groups in turn", {1, 1, 8, 40}, {1, 4, 80, 1})};
}

template <class T>
struct GroupwiseKernels : OverTypes<T> {
  const cudaDeviceProp& device = cuda::properties_of(this->queue);
  /// Bytes of a group's values. No layout comes so close to it that the room for other things counts.
  const std::size_t on_chip = device.sharedMemPerBlockOptin;
};
TYPED_TEST_SUITE(GroupwiseKernels, Types);

/// A layer's state without values, as norms without running statistics have it.
struct CallState {
  backend::Array<Counters> counters{2};
  backend::Array<std::uint32_t> turn;
  backend::Array<Turn> last{1};
  backend::Array<steps::FrameScalars> scalars{1};
  LayerState state{};
  CallState() : turn(1, 0u) {
    state.counters = counters.data();
    state.parity = turn.data();
    state.last = last.data();
  }
};
struct FrameArrays {
  Walled<double> mean, var, rstd, share;
  explicit FrameArrays(std::int64_t groups) : mean(groups), var(groups), rstd(groups), share(groups) {}
  steps::FrameView view(CallState& state) {
    return {mean.data(), var.data(), rstd.data(), nullptr, nullptr, share.data(), state.scalars.data()};
  }
  bool intact() const { return mean.intact() && var.intact() && rstd.intact() && share.intact(); }
};

/// Every group's moments, summed in long double, and the largest distance of two of its values.
struct Moments {
  std::vector<double> mean, var, spread;
  template <class T>
  Moments(const Walled<T>& x, const Partition& p) {
    const auto groups = static_cast<std::size_t>(p.groups());
    std::vector<double> low(groups, std::numeric_limits<double>::infinity());
    std::vector<double> high(groups, -std::numeric_limits<double>::infinity());
    std::vector<long double> sum(groups), squares(groups);
    const auto count = static_cast<long double>(p.group_size());
    for (std::int64_t i = 0; i < p.elements(); ++i) {
      const auto g = static_cast<std::size_t>(p.group_of(i));
      sum[g] += x[i], low[g] = std::min(low[g], x[i]), high[g] = std::max(high[g], x[i]);
    }
    for (std::int64_t i = 0; i < p.elements(); ++i) {
      const auto g = static_cast<std::size_t>(p.group_of(i));
      squares[g] += (x[i] - sum[g] / count) * (x[i] - sum[g] / count);
    }
    for (std::size_t g = 0; g < groups; ++g) {
      mean.push_back(static_cast<double>(sum[g] / count));
      var.push_back(static_cast<double>(squares[g] / count));
      spread.push_back(high[g] - low[g]);
    }
  }
};

constexpr double eps = 1e-5;
constexpr Activation relu{ActivationKind::relu, 0.0};
// In the compute type: up to 8 values are added, of which each was rounded as a difference and a square.
constexpr double roundings = 16;

template <class T>
void expect_forward(const Layout& layout, const Walled<T>& x, const Walled<T>* residual, const Walled<double>& weight,
                    const Walled<double>& bias, const Activation& activation, const Walled<T>& y,
                    const FrameArrays& frame) {
  constexpr double u = compute_unit<T>, floor = sizeof(T) == 2 ? store_floor : 0.0;
  const Moments want(x, layout.norm);
  const double n = 4 * eps64 * std::sqrt(static_cast<double>(layout.norm.group_size()));
  for (std::int64_t g = 0; g < layout.norm.groups(); ++g) {
    const auto i = static_cast<std::size_t>(g);
    ASSERT_NEAR(frame.mean[g], want.mean[i], roundings * u * want.spread[i] + n * std::abs(want.mean[i]));
    ASSERT_NEAR(frame.var[g], want.var[i],
                roundings * u * want.var[i] + n * (want.var[i] + want.mean[i] * want.mean[i] * eps64));
    ASSERT_NEAR(frame.rstd[g], 1 / std::sqrt(frame.var[g] + eps), 4 * eps64 * frame.rstd[g]);
    ASSERT_EQ(frame.share[g], 1);
  }
  for (std::int64_t i = 0; i < x.size(); ++i) {
    const std::int64_t g = layout.norm.group_of(i), p = layout.parameter_of(i);
    const double rstd = 1 / std::sqrt(want.var[static_cast<std::size_t>(g)] + eps);
    const double z = (x[i] - want.mean[static_cast<std::size_t>(g)]) * rstd;
    const double other = residual != nullptr ? (*residual)[i] : 0.0;
    const double sum = z * weight[p] + bias[p] + other, result = activated(sum, activation);
    const double size = 2 * std::abs(z) + want.spread[static_cast<std::size_t>(g)] * rstd;
    ASSERT_NEAR(y[i], result,
                (roundings + 4) * u * (size * std::abs(weight[p]) + std::abs(bias[p]) + std::abs(other)) +
                    store_unit<T> * std::abs(result) + floor)
        << i;
  }
}

TYPED_TEST(GroupwiseKernels, OneLaunchNormalizesAGroup) {
  using T = TypeParam;
  for (const Layout& layout : layouts(this->device))
    for (const bool with_residual : {false, true}) {
      SCOPED_TRACE(std::string(layout.edge) + (with_residual ? ", residual" : ""));
      const std::int64_t n = layout.norm.elements();
      Walled<T> y = normal<T>(n, 2, 3.0, 0.5);
      const Walled<T> x = y, residual = normal<T>(n, 4);
      const std::int64_t parameters = layout.affine.groups();
      const auto weight = normal<double>(parameters, 21), bias = normal<double>(parameters, 22);
      CallState state;
      FrameArrays frame(layout.norm.groups());
      ForwardArgs args;
      layout.describe(args, with_residual ? x : y, {weight.data(), DType::f64, 1}, {bias.data(), DType::f64, 0},
                      frame.view(state));  // otherwise in place
      args.residual = with_residual ? residual.data() : nullptr;
      args.y = y.data();
      args.activation = relu;
      args.rules.eps = eps;
      args.state = state.state;
      const bool fits = static_cast<std::size_t>(layout.norm.group_size()) * sizeof(T) <= this->on_chip;
      EXPECT_EQ(cuda::groupwise_fits(args, this->device), fits);
      if (!fits) continue;
      for (std::uint32_t call = 0; call < 2; ++call) {
        std::memcpy(static_cast<void*>(y.data()), x.data(), static_cast<std::size_t>(n) * sizeof(T));
        cuda::groupwise_forward(args, this->queue);
        this->queue.wait();
        EXPECT_TRUE(y.intact() && frame.intact());
        expect_forward(layout, x, with_residual ? &residual : nullptr, weight, bias, relu, y, frame);
        EXPECT_EQ(state.turn[0], call + 1);
        EXPECT_EQ(state.state.now().calls, call + 1);
        EXPECT_EQ(state.scalars[0].call, call);
        EXPECT_EQ(state.scalars[0].count, static_cast<double>(layout.norm.group_size()));
      }
    }
}

TYPED_TEST(GroupwiseKernels, FarMeansKeepTheirVariance) {
  using T = TypeParam;
  if (sizeof(T) == 2) GTEST_SKIP() << "16 bits do not hold values so close to each other";
  const Layout layout = rows("", 4, 2048);
  const auto x = normal<T>(layout.norm.elements(), 5, 1e4, 1.0);
  Walled<T> y(x.size());
  CallState state;
  FrameArrays frame(layout.norm.groups());
  ForwardArgs args;
  layout.describe(args, x, {.otherwise = 1}, {}, frame.view(state));
  args.y = y.data();
  args.rules.eps = eps;
  args.state = state.state;
  cuda::groupwise_forward(args, this->queue);
  this->queue.wait();
  const Moments want(x, layout.norm);
  for (std::int64_t g = 0; g < layout.norm.groups(); ++g)
    EXPECT_NEAR(frame.var[g] / want.var[static_cast<std::size_t>(g)], 1, 1e-7);
}

/// z as the kernels compute it.
template <class T>
bool passes(const Layout& layout, double x, double center, double rstd, double weight, double bias) {
  using C = compute_t<T>;
  const C c = static_cast<C>(center);
  const double scale = layout.along ? rstd : weight * rstd, shift = layout.along ? 0 : bias;
  const C s = static_cast<C>(std::fma(scale, static_cast<double>(c) - center, shift));
  const C z = std::fma(static_cast<C>(x) - c, static_cast<C>(scale), s);
  return !((layout.along ? std::fma(z, static_cast<C>(weight), static_cast<C>(bias)) : z) <= 0);
}

/// A backward call, what it writes, and what it should.
template <class T>
struct Gradients {
  static constexpr double u = compute_unit<T>, floor = sizeof(T) == 2 ? store_floor : 0.0;
  // sums of up to 16 in the compute type, of differences that were rounded against values of size |mean|
  static constexpr double sums = (roundings + 4) * u;

  const Layout& layout;
  std::int64_t n = layout.norm.elements(), G = layout.norm.groups(), P = layout.affine.groups();
  Walled<T> x = normal<T>(n, 2, 3.0, 0.5), dy = normal<T>(n, 3), dx{n}, dresidual{n};
  Walled<double> weight = normal<double>(P, 21), bias = normal<double>(P, 22), dweight{P}, dbias{P};
  Walled<double> scratch{4 * (layout.fine.groups() + P)};
  backend::Array<std::uint8_t> mask = backend::Array<std::uint8_t>(index((n + 7) / 8));
  CallState state{};
  FrameArrays frame{G};
  BackwardArgs args{};

  Gradients(const Layout& cut, const Activation& activation, bool with_mask) : layout(cut) {
    for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<std::uint8_t>(37 * i + 11);
    const Moments moments(x, layout.norm);
    for (std::int64_t g = 0; g < G; ++g) {
      const auto i = static_cast<std::size_t>(g);
      frame.mean.set(g, moments.mean[i]), frame.var.set(g, moments.var[i]), frame.share.set(g, 1);
      frame.rstd.set(g, 1 / std::sqrt(moments.var[i] + eps));
    }
    state.scalars[0] = {static_cast<double>(layout.norm.group_size()), 0};
    layout.describe(args, x, {weight.data(), DType::f64, 1}, {bias.data(), DType::f64, 0}, frame.view(state));
    args.dy = dy.data();
    args.dx = dx.data();
    args.dresidual = with_mask ? dresidual.data() : nullptr;
    args.activation = activation;
    args.mask = with_mask ? mask.data() : nullptr;
    args.dweight = {dweight.data(), DType::f64};
    args.dbias = {dbias.data(), DType::f64};
    args.wants_weight = true;
    args.scratch = scratch.data();
  }

  double gated(std::int64_t i) const {
    const std::int64_t g = layout.norm.group_of(i), p = layout.parameter_of(i);
    bool open = args.activation.kind == ActivationKind::identity;
    if (args.mask != nullptr) open = open || (mask[index(i / 8)] >> (i % 8) & 1) != 0;
    if (args.mask == nullptr) open = open || passes<T>(layout, x[i], frame.mean[g], frame.rstd[g], weight[p], bias[p]);
    return open ? dy[i] : 0;
  }
  void expect_written() const {
    EXPECT_TRUE(dx.intact() && dresidual.intact() && dweight.intact() && dbias.intact() && scratch.intact());
    std::vector<double> s1(index(G)), s2(s1), size1(s1), size2(s1);
    std::vector<double> gamma(index(P)), beta(gamma), gamma_size(gamma), beta_size(gamma);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t g = layout.norm.group_of(i), p = layout.parameter_of(i);
      const auto at = index(g), of = index(p);
      const double value = gated(i), centred = x[i] - frame.mean[g];
      s1[at] += weight[p] * value, size1[at] += std::abs(weight[p] * value);
      s2[at] += weight[p] * value * centred, size2[at] += std::abs(weight[p] * value * centred);
      gamma[of] += frame.rstd[g] * value * centred, gamma_size[of] += std::abs(frame.rstd[g] * value * centred);
      beta[of] += value, beta_size[of] += std::abs(value);
    }
    const double count = static_cast<double>(layout.norm.group_size());
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t g = layout.norm.group_of(i), p = layout.parameter_of(i);
      const auto at = index(g);
      const double value = gated(i), r = frame.rstd[g], centred = x[i] - frame.mean[g];
      const double want = value * weight[p] * r - (r * s1[at] + centred * r * r * r * s2[at]) / count;
      const double size =
          std::abs(value * weight[p] * r) + (r * size1[at] + std::abs(centred) * r * r * r * size2[at]) / count;
      ASSERT_NEAR(dx[i], want, sums * size + store_unit<T> * std::abs(want) + floor) << i;
      if (args.dresidual != nullptr) {
        ASSERT_EQ(dresidual[i], value);
      }
    }
    for (std::int64_t p = 0; p < P; ++p) {
      ASSERT_NEAR(dweight[p], gamma[index(p)], sums * gamma_size[index(p)]) << p;
      ASSERT_NEAR(dbias[p], beta[index(p)], sums * beta_size[index(p)]) << p;
    }
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
};

TYPED_TEST(GroupwiseKernels, OneLaunchGivesAGroupsGradients) {
  using T = TypeParam;
  for (const Layout& layout : layouts(this->device))
    for (const bool with_mask : {false, true}) {
      SCOPED_TRACE(std::string(layout.edge) + (with_mask ? ", mask" : ""));
      Gradients<T> call(layout, relu, with_mask);
      const bool fits = 2 * static_cast<std::size_t>(layout.norm.group_size()) * sizeof(T) <= this->on_chip;
      EXPECT_EQ(cuda::groupwise_fits(call.args, this->device), fits);
      EXPECT_FALSE(cuda::rows_grad_fits(call.args)) << "which knows no gate";
      if (!fits) continue;
      cuda::groupwise_backward(call.args, this->queue);
      this->queue.wait();
      call.expect_written();
    }
}

/// Where rows have gammas along and nothing else, their gradients come in the same pass; the slow twin is the group's.
TYPED_TEST(GroupwiseKernels, OnePassGivesTheGradientsOfRows) {
  using T = TypeParam;
  for (const Layout& layout : layouts(this->device)) {
    if (!layout.along) continue;
    SCOPED_TRACE(layout.edge);
    const std::int64_t columns = layout.norm.group_size(), width = 16 / static_cast<std::int64_t>(sizeof(T));
    const bool fits = layout.by_row && columns % width == 0 && columns <= 512 * width;
    for (const bool by_row : {false, true}) {
      Gradients<T> call(layout, {}, false);
      EXPECT_EQ(cuda::rows_grad_fits(call.args), fits);
      if (by_row ? !fits : !cuda::groupwise_fits(call.args, this->device)) continue;
      (by_row ? cuda::rows_grad : cuda::groupwise_backward)(call.args, this->queue);
      this->queue.wait();
      call.expect_written();
    }
  }
}

}  // namespace
}  // namespace allnorm::kernel_test
