// AdaIN: every channel of a sample takes mean and deviation of that of a style.
#include <gtest/gtest.h>

#include <cmath>

#include "modulated_support.hpp"

namespace {

using namespace allnorm;
using namespace modulated;
using harness::error_of;

struct Options {
  double eps = 1e-5, alpha = 1;
  bool unbiased = false;
};
Layer layer_of(const Options& o) {
  Layer layer("adaptive_instance_norm");
  layer.options.eps = o.eps;
  layer.options.alpha = o.alpha;
  layer.options.unbiased = o.unbiased;
  return layer;
}

struct Adapted {
  Doubles y, dx, dstyle;
};
Adapted adapt(const Options& o, const Extents& shape, const Extents& of_style, const Doubles& x, const Doubles& style,
              const Doubles& dy) {
  using Real = long double;
  const Extent3 e(shape), f(of_style);
  Adapted a{Doubles(e.size()), Doubles(e.size()), Doubles(f.size())};
  const int less = o.unbiased ? 1 : 0;
  for (std::int64_t n = 0; n < e.N; ++n)
    for (std::int64_t c = 0; c < e.C; ++c) {
      Real mean = 0, var = 0, mean_style = 0, var_style = 0;
      for (std::int64_t s = 0; s < e.S; ++s) mean += x[e.at(n, c, s)] / static_cast<Real>(e.S);
      for (std::int64_t s = 0; s < e.S; ++s)
        var += (x[e.at(n, c, s)] - mean) * (x[e.at(n, c, s)] - mean) / static_cast<Real>(e.S - less);
      for (std::int64_t s = 0; s < f.S; ++s) mean_style += style[f.at(n, c, s)] / static_cast<Real>(f.S);
      for (std::int64_t s = 0; s < f.S; ++s)
        var_style +=
            (style[f.at(n, c, s)] - mean_style) * (style[f.at(n, c, s)] - mean_style) / static_cast<Real>(f.S - less);
      const Real sigma = std::sqrt(var + o.eps), sigma_style = std::sqrt(var_style + o.eps);
      Real sum = 0, sum_xh = 0;
      for (std::int64_t s = 0; s < e.S; ++s) {
        const std::size_t i = e.at(n, c, s);
        const Real xh = (x[i] - mean) / sigma;
        a.y[i] = static_cast<double>(o.alpha * (sigma_style * xh + mean_style) + (1 - o.alpha) * x[i]);
        sum += dy[i];
        sum_xh += dy[i] * xh;
      }
      for (std::int64_t s = 0; s < e.S; ++s) {
        const std::size_t i = e.at(n, c, s);
        const Real xh = (x[i] - mean) / sigma, g = dy[i] - sum / static_cast<Real>(e.S);
        const Real own = e.S == 1 ? 0 : g - xh * sum_xh / static_cast<Real>(e.S - less);
        a.dx[i] = static_cast<double>(o.alpha * sigma_style / sigma * own + (1 - o.alpha) * dy[i]);
      }
      for (std::int64_t s = 0; s < f.S; ++s) {
        const std::size_t i = f.at(n, c, s);
        const Real centred = style[i] - mean_style;
        a.dstyle[i] = static_cast<double>(
            o.alpha * (sum / static_cast<Real>(f.S) +
                       (f.S == 1 ? 0 : sum_xh * centred / (sigma_style * static_cast<Real>(f.S - less)))));
      }
    }
  return a;
}

struct Pair {
  Extents input, style;
};
const Pair pairs[] = {{{2, 3, 5}, {2, 3, 4, 2}}, {{3, 2, 4, 4}, {3, 2, 4, 4}}, {{1, 5, 3, 2, 2}, {1, 5, 7}},
                      {{2, 2, 1}, {2, 2, 6}},    {{2, 2, 6}, {2, 2}},          {{0, 3, 4}, {0, 3, 5}}};

template <class T>
class Adaptive : public testing::Test {};
using Types = testing::Types<double, float, f16, bf16>;
TYPED_TEST_SUITE(Adaptive, Types);

TYPED_TEST(Adaptive, IsItsDefinitionForwardAndBackward) {
  using T = TypeParam;
  Queue queue = backend::queue();
  for (const auto& [shape, of_style] : pairs)
    for (const Order order : {Order::channels_first, Order::channels_last})
      for (const Options& o :
           {Options{}, Options{1e-3, 0.25, false}, Options{1e-5, 1, true}, Options{1e-5, 0, false}}) {
        const std::int64_t least = std::min(Extent3(shape).S, Extent3(of_style).S);
        if (o.unbiased && least == 1) continue;  // nan: a test of its own
        SCOPED_TRACE(std::to_string(shape.size()) + "-D, " + std::to_string(least) + " values, alpha " +
                     std::to_string(o.alpha) + (order == Order::channels_last ? ", last" : ""));
        Random random(21);
        const Doubles x = rounded<T>(normals(random, Extent3(shape).size(), 0.5)),
                      style = rounded<T>(normals(random, Extent3(of_style).size(), -1, 2)),
                      dy = rounded<T>(normals(random, x.size()));
        const Adapted want = adapt(o, shape, of_style, x, style, dy);
        Call<T> call(layer_of(o), shape, order, self(), queue);
        call.give("input", x);
        call.give("style", style, of_style);
        expect_near("output", call.forward(), want.y, map_bound<T>, 4);
        call.backward(dy);
        const double rstd = least == 1 ? 1 / std::sqrt(o.eps) : 5;
        expect_near("grad_input", call.gradient("input"), want.dx, map_bound<T>, 4 * rstd);
        expect_near("grad_style", call.gradient("style"), want.dstyle, map_bound<T>, 4);
      }
}

TEST(AdaptiveInstanceNorm, HasTheGradientsThatCentralDifferencesHave) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  Queue queue = backend::queue();
  const Extents shape{2, 2, 4}, of_style{2, 2, 3};
  for (const Options& o : {Options{}, Options{1e-3, 0.7, true}}) {
    Random random(8);
    const Doubles x = normals(random, 16), style = normals(random, 12), dy = normals(random, 16);
    const auto forward = [&](Call<double>& call, const Doubles& at, const Doubles& with) {
      call.give("input", at);
      call.give("style", with, of_style);
      return dot(dy, call.forward());
    };
    const auto loss = [&](const Doubles& at, const Doubles& with) {
      Call<double> call(layer_of(o), shape, Order::channels_first, self(), queue);
      return forward(call, at, with);
    };
    Call<double> call(layer_of(o), shape, Order::channels_first, self(), queue);
    forward(call, x, style);
    call.backward(dy);
    for (std::size_t i = 0; i < x.size(); ++i)
      EXPECT_NEAR(call.gradient("input")[i], slope(x, i, [&](const Doubles& at) { return loss(at, style); }), 1e-7);
    for (std::size_t i = 0; i < style.size(); ++i)
      EXPECT_NEAR(call.gradient("style")[i], slope(style, i, [&](const Doubles& at) { return loss(x, at); }), 1e-7);
  }
}

// Scales at which sigma^-3 and products of deviations leave f32.
TEST(AdaptiveInstanceNorm, IsRightAtAnyScale) {
  Queue queue = backend::queue();
  const Extents shape{1, 2, 64};
  for (const double scale : {1e-25, 1e-12, 1e12, 1e25})
    for (const double of_style : {1e-12, 1.0, 1e12}) {
      SCOPED_TRACE(std::to_string(std::log10(scale)) + ", style " + std::to_string(std::log10(of_style)));
      Random random(4);
      const Options o{0, 1, false};
      const Doubles x = rounded<float>(normals(random, 128, 0, scale)),
                    style = rounded<float>(normals(random, 128, 0, of_style)),
                    dy = rounded<float>(normals(random, 128));
      const Adapted want = adapt(o, shape, shape, x, style, dy);
      Call<float> call(layer_of(o), shape, Order::channels_first, self(), queue);
      call.give("input", x);
      call.give("style", style);
      expect_near("output", call.forward(), want.y, map_bound<float>, 0);
      if (of_style / scale > 1e30) continue;  // beyond f32
      call.backward(dy);
      expect_near("grad_input", call.gradient("input"), want.dx, map_bound<float>, 0);
      expect_near("grad_style", call.gradient("style"), want.dstyle, map_bound<float>, 0);
    }
}

TEST(AdaptiveInstanceNorm, KnowsNothingOfOneValueUnbiased) {
  Queue queue = backend::queue();
  for (const bool of_style : {false, true}) {
    Call<double> call(layer_of({1e-5, 1, true}), {1, 1, of_style ? 2 : 1}, Order::channels_first, self(), queue);
    call.give("input", of_style ? Doubles{1, 2} : Doubles{1});
    call.give("style", of_style ? Doubles{1} : Doubles{1, 2}, {1, 1, of_style ? 1 : 2});
    EXPECT_TRUE(std::isnan(call.forward()[0]));
    call.backward(of_style ? Doubles{1, 1} : Doubles{1});
    EXPECT_TRUE(std::isnan(call.gradient("input")[0]));
  }
}

TEST(AdaptiveInstanceNorm, ReplaysAndHasNoState) {
  Queue queue = backend::queue();
  Random random(6);
  Call<double> call(layer_of({}), {2, 2, 3}, Order::channels_first, self(), queue);
  call.give("input", normals(random, 12));
  call.give("style", normals(random, 8), {2, 2, 2});
  const Doubles first = call.forward();
  call.clear();
  call.operation().replay(call.saved(), call.inputs(), call.output(), queue);
  EXPECT_EQ(call.result(), first);
  EXPECT_TRUE(call.operation().save(queue).entries.empty());
  call.operation().load({}, queue);
  EXPECT_EQ(
      error_of([&] { call.operation().infer(call.inputs(), call.output(), queue); }),
      "unsupported: adaptive_instance_norm has no running statistics and is the same in inference, must be called "
      "with forward");
}

TEST(AdaptiveInstanceNorm, SaysWhatIsWrong) {
  Queue queue = backend::queue();
  const auto told = [&](const Extents& of_style) {
    return error_of([&] {
      Call<double> call(layer_of({}), {2, 1, 2}, Order::channels_first, self(), queue);
      call.give("input", Doubles(4));
      if (!of_style.empty())
        call.give("style", Doubles(static_cast<std::size_t>(reference::elements(of_style))), of_style);
      call.forward();
    });
  };
  EXPECT_EQ(told({}), "invalid argument: style is missing, must be given");
  EXPECT_EQ(told({2, 2, 2}),
            "invalid input: style has shape (2,2,2), must have 2,1 as its first axes, N and C of input");
  EXPECT_EQ(told({2}), "invalid input: style has shape (2,), must have 2,1 as its first axes, N and C of input");
  EXPECT_EQ(told({2, 1, 0}), "invalid input: style has shape (2,1,0), must have at least one value of every channel");
}

}  // namespace
