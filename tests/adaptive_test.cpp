// AdaIN: every channel of a sample takes mean and deviation of that of a style.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "backend.hpp"
#include "harness.hpp"
#include "launch/reference/operations.hpp"
#include "modulated_support.hpp"

namespace adaptive_test {
namespace {

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

reference::Adapted adapt(const Options& o, const Arrays& t) {
  return reference::adapt(layer_of(o).options, t.at("input"), t.at("style"), t.at("grad_output"));
}

// With deviations of their own; input's mean is half of its deviation, and style's as much below 0.
Arrays tensors(Random& random, const Extents& shape, const Extents& of_style, DType dtype, double scale = 1,
               double scale_of_style = 2) {
  return {{"input", drawn(random, shape, dtype, scale / 2, scale)},
          {"style", drawn(random, of_style, dtype, -scale_of_style / 2, scale_of_style)},
          {"grad_output", drawn(random, shape, dtype)}};
}

struct Pair {
  Extents input, style;
};
const Pair pairs[] = {{{2, 3, 5}, {2, 3, 4, 2}}, {{3, 2, 4, 4}, {3, 2, 4, 4}}, {{1, 5, 3, 2, 2}, {1, 5, 7}},
                      {{2, 2, 1}, {2, 2, 6}},    {{2, 2, 6}, {2, 2}},          {{0, 3, 4}, {0, 3, 5}}};

TEST(AdaptiveInstanceNorm, IsItsDefinitionForwardAndBackward) {
  for (const auto& pair : pairs)
    for_each_kind({pair.input}, [&](DType dtype, Order order, const Extents& shape) {
      for (const Options& o :
           {Options{}, Options{1e-3, 0.25, false}, Options{1e-5, 1, true}, Options{1e-5, 0, false}}) {
        const std::int64_t least = std::min(Extent3(shape).S, Extent3(pair.style).S);
        if (o.unbiased && least == 1) continue;  // nan: a test of its own
        SCOPED_TRACE(std::to_string(least) + " values, alpha " + std::to_string(o.alpha));
        Random random(21);
        const Arrays given = tensors(random, shape, pair.style, dtype);
        const auto want = adapt(o, given);
        Arrays got = Subject(layer_of(o), shape[1], dtype, order)(given);
        expect_near("output", got["output"].v, want.y.v, tolerance_of(dtype), 4);
        const double rstd = least == 1 ? 1 / std::sqrt(o.eps) : 5;
        expect_near("grad_input", got["grad_input"].v, want.dx.v, tolerance_of(dtype), 4 * rstd);
        expect_near("grad_style", got["grad_style"].v, want.dstyle.v, tolerance_of(dtype), 4);
      }
    });
}

TEST(AdaptiveInstanceNorm, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  for (const Options& o : {Options{}, Options{1e-3, 0.7, true}}) {
    Random random(8);
    expect_gradients([&] { return Subject(layer_of(o), 2); }, tensors(random, {2, 2, 6}, {2, 2, 5}, DType::f64));
  }
}

// Scales at which sigma^-3 and products of deviations leave f32.
TEST(AdaptiveInstanceNorm, IsRightAtAnyScale) {
  const Extents shape{1, 2, 64};
  const double map = tolerance_of(DType::f32);
  for (const double scale : {1e-25, 1e-12, 1e12, 1e25})
    for (const double of_style : {1e-12, 1.0, 1e12}) {
      SCOPED_TRACE(std::to_string(std::log10(scale)) + ", style " + std::to_string(std::log10(of_style)));
      Random random(4);
      const Options o{0, 1, false};
      Arrays given = tensors(random, shape, shape, DType::f32, scale, of_style);
      const auto want = adapt(o, given);
      const bool fits = of_style / scale <= 1e30;  // the gradient of the input, in f32
      if (!fits) given.erase("grad_output");
      Arrays got = Subject(layer_of(o), 2, DType::f32)(given);
      expect_near("output", got["output"].v, want.y.v, map);
      if (!fits) continue;
      expect_near("grad_input", got["grad_input"].v, want.dx.v, map);
      expect_near("grad_style", got["grad_style"].v, want.dstyle.v, map);
    }
}

TEST(AdaptiveInstanceNorm, KnowsNothingOfOneValueUnbiased) {
  const Array one{{1, 1, 1}, {1}}, two{{1, 1, 2}, {1, 2}};
  for (const bool of_style : {false, true}) {
    const Array& input = of_style ? two : one;
    Arrays got =
        Subject(layer_of({1e-5, 1, true}))({{"input", input}, {"style", of_style ? one : two}, {"grad_output", input}});
    EXPECT_TRUE(std::isnan(got["output"].v[0]));
    EXPECT_TRUE(std::isnan(got["grad_input"].v[0]));
  }
}

TEST(AdaptiveInstanceNorm, ReplaysAndHasNoState) {
  Random random(6);
  Arrays given = tensors(random, {2, 2, 3}, {2, 2, 2}, DType::f64);
  given.erase("grad_output");
  Subject subject(layer_of({}), 2);
  EXPECT_EQ(subject.replayed(given), subject(given)["output"].v);
  EXPECT_TRUE(subject.operation->save(subject.queue).entries.empty());
  subject.operation->load({}, subject.queue);
  EXPECT_EQ(error_of([&] { subject.inferred(given); }),
            "unsupported: adaptive_instance_norm has no running statistics and is the same in inference, must be "
            "called with forward");
}

TEST(AdaptiveInstanceNorm, SaysWhatIsWrong) {
  const auto told = [&](const Extents& of_style) {
    Arrays given{{"input", reference::zeros({2, 1, 2})}};
    if (!of_style.empty()) given["style"] = reference::zeros(of_style);
    return error_of([&] { Subject{layer_of({})}(given); });
  };
  EXPECT_EQ(told({}), "invalid argument: style is missing, must be given");
  EXPECT_EQ(told({2, 2, 2}),
            "invalid input: style has shape (2,2,2), must have 2,1 as its first axes, N and C of input");
  EXPECT_EQ(told({2}), "invalid input: style has shape (2,), must have 2,1 as its first axes, N and C of input");
  EXPECT_EQ(told({2, 1, 0}), "invalid input: style has shape (2,1,0), must have at least one value of every channel");
}

}  // namespace
}  // namespace adaptive_test
