// The oracle against numbers worked out by hand, and against the rules of state that section 8 spells out.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cases.hpp"
#include "differences.hpp"
#include "launch/reference/reference.hpp"

namespace reference {
namespace {

constexpr double kUlps = 1e-15;  // small numbers, a handful of roundings

/// One rank, one channel, no space: x (N,1).
Array column(const Doubles& values) { return {{static_cast<std::int64_t>(values.size()), 1}, values}; }
Inputs inputs_of(const Doubles& x) { return {{column(x)}, {}, {}, {}}; }
/// x = theta p through a linear layer with one weight.
Inputs linear(const Doubles& p, double theta) {
  const Array weight{{1, 1}, {theta}};
  return {{convolve(column(p), weight, {})}, {}, {column(p)}, weight};
}
void expect_values(const Doubles& got, const Doubles& want) { EXPECT_LE(cases::relative_error(got, want), kUlps); }

/// eps = 0 keeps the numbers round.
BatchOptions exact() {
  BatchOptions options;
  options.eps = 0;
  return options;
}

TEST(ReferenceByHand, BatchNorm) {
  Layer layer = make_layer(1, exact());
  const Inputs inputs = inputs_of({1, 3, 5, 7});
  const Result result = forward(layer, inputs);  // mean 4, var 5
  const double s = std::sqrt(5.0);
  expect_values(result.y[0].v, {-3 / s, -1 / s, 1 / s, 3 / s});
  expect_values(layer.state.running_mean, {0.4});
  expect_values(layer.state.running_var, {0.9 + 0.1 * 5 * 4 / 3});
  EXPECT_EQ(layer.state.num_batches_tracked, 1);
  // dy = (1,0,0,0): dx = (dy - 1/4 - xhat * xhat_0 / 4) / s with xhat_0 = -3/s, over 20: 20 - 5 - 9, -5 - 3, -5 + 3, -5
  // + 9
  const Gradients gradients = backward(layer, inputs, result, {column({1, 0, 0, 0})});
  expect_values(gradients.dx[0].v, {6 / (20 * s), -8 / (20 * s), -2 / (20 * s), 4 / (20 * s)});
  expect_values(gradients.dgamma[0], {-3 / s});
  expect_values(gradients.dbeta[0], {1});
}

TEST(ReferenceByHand, EpsOutsideTheRoot) {
  BatchOptions options;
  options.eps = 0.5;
  options.eps_place = EpsPlace::outside;
  const Layer layer = make_layer(1, options);
  const Inputs inputs = inputs_of({1, 3});  // mean 2, var 1: divided by 1.5
  const Result result = evaluate(layer, inputs);
  expect_values(result.y[0].v, {-1 / 1.5, 1 / 1.5});
  // (x1 - x2)/2 = 1 is the root: y1 = -u/(u + 1/2) with u = (x2 - x1)/2, dy1/du = -1/2 / (u + 1/2)^2 = -2/9
  const Gradients gradients = backward(layer, inputs, result, {column({1, 0})});
  expect_values(gradients.dx[0].v, {1.0 / 9, -1.0 / 9});
  // a constant channel: the root has no derivative, dx = (dy - mean of dy) / eps
  const Inputs constant = inputs_of({3, 3});
  const Gradients flat = backward(layer, constant, evaluate(layer, constant), {column({1, 0})});
  expect_values(flat.dx[0].v, {1, -1});
}

TEST(ReferenceByHand, ActivationsAndResidual) {
  BatchOptions options = exact();
  options.activation.kind = ActivationKind::leaky_relu;
  options.activation.slope = 0.5;
  Layer layer = make_layer(1, options);
  Inputs inputs = inputs_of({1, 3});  // xhat -1, 1
  inputs.residual = {column({-2, -1})};
  const Result leaky = evaluate(layer, inputs);
  expect_values(leaky.pre[0].v, {-3, 0});
  expect_values(leaky.y[0].v, {-1.5, 0});
  const Ranks dy{column({1, 1})};
  expect_values(backward(layer, inputs, leaky, dy).dresidual[0].v, {0.5, 0.5});  // at 0: the slope of the negative side
  layer.options.activation.kind = ActivationKind::relu;
  const Result relu = evaluate(layer, inputs);
  expect_values(relu.y[0].v, {0, 0});
  expect_values(backward(layer, inputs, relu, dy).dresidual[0].v, {0, 0});
}

TEST(ReferenceByHand, BatchRenormalization) {
  BatchOptions options = exact();
  options.renorm = true;
  options.momentum = 0.5;
  options.r_max = 2;
  options.d_max = 1;
  Layer layer = make_layer(1, options);
  layer.state.running_mean = {1.5};
  layer.state.running_std = {2};
  const Inputs inputs = inputs_of({1, 3});  // mean 2, deviation 1
  const Result result = forward(layer, inputs);
  expect_values(result.r, {0.5});
  expect_values(result.d, {0.25});
  expect_values(result.y[0].v, {-0.25, 0.75});
  expect_values(layer.state.running_mean, {1.75});
  expect_values(layer.state.running_std, {1.5});
  expect_values(layer.state.running_var, {1});  // not this variant's
  expect_values(infer(layer, inputs).y[0].v, {-0.5, 1.25 / 1.5});
  expect_values(backward(layer, inputs, result, {column({1, 3})}).dgamma[0], {-0.25 + 3 * 0.75});

  layer.options.variant = RenormVariant::var;
  layer.state.running_mean = {-3};
  layer.state.running_var = {1.0 / 9};
  const Result clipped = forward(layer, inputs);  // deviation over running 3, distance over running 15
  expect_values(clipped.r, {2});
  expect_values(clipped.d, {1});
  expect_values(clipped.y[0].v, {-1, 3});
  expect_values(layer.state.running_var, {(1.0 / 9 + 2) / 2});  // Bessel: 1 * 2/1
}

TEST(ReferenceByHand, WindowWithoutCompensationGrowsToItsLength) {
  BatchOptions options = exact();
  options.window = 2;
  options.compensate = false;
  Layer layer = make_layer(1, options);
  expect_values(forward(layer, inputs_of({1, 3})).a, {1});
  const Result second = forward(layer, inputs_of({5, 7}));  // means 2, 6 and variances 1, 1
  expect_values(second.mean, {4});
  expect_values(second.var, {5});
  expect_values(second.a, {0.5});
  const Result third = forward(layer, inputs_of({5, 9}));  // the first call has left: means 6, 7, variances 1, 4
  expect_values(third.mean, {6.5});
  expect_values(third.var, {2.75});
  expect_values(third.a, {0.5});
  expect_values(layer.state.running_mean, {((0.9 * 0 + 0.2) * 0.9 + 0.6) * 0.9 + 0.7});  // each call's own
}

TEST(ReferenceByHand, GuardsMeetANegativeVarianceInThePast) {
  // Constant input 1, theta 2 -> 5: mean' = 5, second' = 4 + 2*2*3 = 16 < 25.
  for (const Guard guard : {Guard::clamp, Guard::drop}) {
    BatchOptions options = exact();
    options.window = 3;
    options.guard = guard;
    Layer layer = make_layer(1, options);
    forward(layer, linear({1, 1}, 2));
    const Result result = forward(layer, linear({1, 3}, 5));  // x = 5, 15
    const bool clamp = guard == Guard::clamp;
    expect_values(result.mean, {clamp ? 7.5 : 10});
    expect_values(result.var, {clamp ? 12.5 + 6.25 : 25});
    expect_values(result.a, {clamp ? 0.5 : 1});
    expect_values(forward(layer, linear({1, 1}, 5)).a, {clamp ? 1.0 / 3 : 0.5});
    // Both past calls were made with this theta: a constant past is exactly constant, not negative by a rounding.
    expect_values(forward(layer, linear({1, 1}, 5)).a, {1.0 / 3});
  }
}

TEST(ReferenceByHand, MinibatchesUniformAndByCount) {
  for (const Weighting weighting : {Weighting::uniform, Weighting::count}) {
    BatchOptions options = exact();
    options.minibatches = 2;
    options.weighting = weighting;
    Layer layer = make_layer(1, options);
    expect_values(forward(layer, inputs_of({1, 3})).mean, {2});
    expect_values(layer.state.running_mean, {0});
    const Result result = forward(layer, inputs_of({6}));
    const bool uniform = weighting == Weighting::uniform;
    expect_values(result.mean, {uniform ? 4 : 10.0 / 3});
    expect_values(result.var, {uniform ? 4.5 : 38.0 / 9});
    expect_values(result.a, {uniform ? 0.5 : 1.0 / 3});
    expect_values(layer.state.running_mean, {result.mean[0] / 10});
    expect_values(layer.state.running_var, {0.9 + 0.1 * result.var[0] * 3 / 2});
    expect_values(forward(layer, inputs_of({7, 9})).mean, {8});  // the next batch starts afresh
  }
}

TEST(ReferenceByHand, MinibatchesInAWindow) {
  BatchOptions options = exact();
  options.minibatches = 2;
  options.window = 2;
  options.running_source = RunningSource::window;
  Layer layer = make_layer(1, options);
  forward(layer, linear({2}, 1));
  forward(layer, linear({0, 3, 3}, 1));
  // Entry: mean (2+2)/2 = 2, second (4+6)/2 = 5, dmean 2, dsecond 10; alone in the window, so Bessel with 4 values.
  expect_values(layer.state.running_mean, {0.2});
  expect_values(layer.state.running_var, {0.9 + 0.1 * 1 * 4 / 3});
  // At theta 1.5: mean' 3, second' 10, var' 1. This batch: x = 4, 6, then 5.
  const Result first = forward(layer, linear({8.0 / 3, 4}, 1.5));
  expect_values(first.mean, {4});
  expect_values(first.var, {2});
  expect_values(first.a, {0.5});
  const Result second = forward(layer, linear({10.0 / 3}, 1.5));  // batch: mean 5, var 0.5
  expect_values(second.mean, {4});
  expect_values(second.var, {1.75});
  expect_values(second.a, {0.25});
  expect_values(layer.state.running_mean, {0.2 * 0.9 + 0.4});
  expect_values(layer.state.running_var, {0.9 * (0.9 + 0.4 / 3) + 0.1 * 1.75 * 7 / 6});
  EXPECT_EQ(layer.state.window.size(), 1u);
  EXPECT_EQ(layer.state.window[0].count, 3);
}

TEST(ReferenceState, AnEmptyCallChangesNothing) {
  BatchOptions options = exact();
  options.window = 3;
  options.renorm = true;
  options.compensate = false;
  Layer layer = make_layer(1, options);
  forward(layer, inputs_of({1, 3}));
  const BatchState before = layer.state;
  const Result result = forward(layer, inputs_of({}));
  EXPECT_TRUE(result.y[0].v.empty());
  EXPECT_EQ(result.mean, Doubles{0});  // nothing to normalize with, the window included
  EXPECT_EQ(layer.state.running_mean, before.running_mean);
  EXPECT_EQ(layer.state.running_std, before.running_std);
  EXPECT_EQ(layer.state.num_batches_tracked, before.num_batches_tracked);
  EXPECT_EQ(layer.state.window.size(), before.window.size());
  EXPECT_EQ(layer.state.batches, before.batches);
  EXPECT_EQ(layer.state.t, 0);
}

TEST(ReferenceState, AnEmptyMinibatchTakesItsPlaceInTheBatch) {
  BatchOptions options = exact();
  options.minibatches = 2;
  Layer last = make_layer(1, options);
  forward(last, inputs_of({1, 3}));
  const Result empty = forward(last, inputs_of({}));
  expect_values(empty.mean, {2});
  expect_values(empty.a, {0});
  expect_values(last.state.running_mean, {0.2});  // the update of the second mini-batch, from the first one's values
  EXPECT_EQ(last.state.t, 0);

  forward(last, inputs_of({}));  // a batch without any value
  forward(last, inputs_of({}));
  expect_values(last.state.running_mean, {0.2});
  EXPECT_EQ(last.state.num_batches_tracked, 1);
  EXPECT_EQ(last.state.batches, 1);

  options.running = RunningUpdate::every;
  Layer every = make_layer(1, options);
  forward(every, inputs_of({1, 3}));
  forward(every, inputs_of({}));
  expect_values(every.state.running_mean, {0.2});
  EXPECT_EQ(every.state.num_batches_tracked, 1);
}

TEST(ReferenceState, ABatchCutShortUpdatesFromWhatItHas) {
  BatchOptions options = exact();
  options.minibatches = 3;
  options.window = 2;
  options.compensate = false;
  Layer layer = make_layer(1, options);
  begin_batch(layer);  // nothing is under way
  EXPECT_EQ(layer.state.num_batches_tracked, 0);
  forward(layer, inputs_of({1, 3}));
  begin_batch(layer);
  expect_values(layer.state.running_mean, {0.2});
  expect_values(layer.state.running_var, {0.9 + 0.2});
  EXPECT_EQ(layer.state.window.size(), 1u);
  EXPECT_EQ(layer.state.t, 0);
  expect_values(forward(layer, inputs_of({5, 7})).mean, {4});  // a new batch beside one past batch
}

TEST(ReferenceState, BurnInCountsBatchesAndUsesEachCallsOwnStatistics) {
  for (const bool fill : {false, true}) {
    BatchOptions options = exact();
    options.minibatches = 2;
    options.window = 2;
    options.burn_in = 1;
    options.fill_in_burn_in = fill;
    options.compensate = false;
    Layer layer = make_layer(1, options);
    forward(layer, inputs_of({1, 3}));
    const Result own = forward(layer, inputs_of({5, 9}));
    expect_values(own.mean, {7});
    expect_values(own.var, {4});
    expect_values(own.a, {1});
    expect_values(layer.state.running_mean, {0.45});  // the accumulation went on for the running statistics
    const Result after = forward(layer, inputs_of({10, 12}));
    expect_values(after.mean, {fill ? (4.5 + 11) / 2 : 11});
    expect_values(after.a, {fill ? 0.5 : 1});
  }
}

TEST(ReferenceState, BurnInUpdatesRunningStatisticsWithoutTheWindow) {
  BatchOptions options = exact();
  options.window = 2;
  options.burn_in = 2;
  options.fill_in_burn_in = true;
  options.compensate = false;
  options.running_source = RunningSource::window;
  Layer layer = make_layer(1, options);
  forward(layer, inputs_of({1, 3}));
  forward(layer, inputs_of({5, 7}));
  expect_values(layer.state.running_mean, {0.9 * 0.2 + 0.6});
  forward(layer, inputs_of({7, 9}));  // means 6 and 8 in the window
  expect_values(layer.state.running_mean, {0.9 * 0.78 + 0.7});
}

TEST(ReferenceState, CumulativeMomentumIsThePlainAverage) {
  BatchOptions options = exact();
  options.cumulative = true;
  Layer layer = make_layer(1, options);
  for (const double mean : {2.0, 4.0, 9.0}) forward(layer, inputs_of({mean - 1, mean + 1}));
  expect_values(layer.state.running_mean, {5});
  expect_values(layer.state.running_var, {2});
}

TEST(ReferenceState, OneValueHasBesselFactorOne) {
  BatchOptions options;
  options.eps = 0.25;
  Layer layer = make_layer(1, options);
  layer.beta = {3};
  const Inputs inputs = inputs_of({5});
  const Result result = forward(layer, inputs);
  expect_values(result.y[0].v, {3});
  expect_values(layer.state.running_var, {0.9});
  expect_values(backward(layer, inputs, result, {column({1})}).dx[0].v, {0});
}

TEST(ReferenceByHand, ConvolutionPadsStridesAndDilates) {
  const Array line{{1, 1, 3}, {1, 2, 3}}, weight{{1, 1, 2}, {1, 10}};
  expect_values(convolve(line, weight, {{1}, {1}, {1}, 1}).v, {10, 21, 32, 3});
  expect_values(convolve(line, weight, {{2}, {1}, {1}, 1}).v, {10, 32});
  expect_values(convolve(line, weight, {{1}, {0}, {2}, 1}).v, {31});
  const Array plane{{1, 1, 2, 3}, {1, 2, 3, 4, 5, 6}}, corner{{1, 1, 2, 2}, {1, 10, 100, 1000}};
  expect_values(convolve(plane, corner, {}).v, {5421, 6532});
  const Array two{{1, 2, 2}, {1, 2, 3, 4}}, each{{2, 1, 1}, {10, 100}};
  expect_values(convolve(two, each, {{1}, {0}, {1}, 2}).v, {10, 20, 300, 400});
}

TEST(ReferenceByHand, RowNorms) {
  const Array x{{2, 2, 2}, {1, 3, 5, 7, 2, 2, 0, 8}};
  const double s = std::sqrt(5.0);
  const RowsResult layer = rows_forward(x, layer_norm_sets(x.shape, 2), {1, 1, 1, 2}, {0, 0, 10, 0}, 0);
  expect_values(layer.mean, {4, 3});
  expect_values(layer.var, {5, 9});
  expect_values(layer.y.v, {-3 / s, -1 / s, 1 / s + 10, 6 / s, -1.0 / 3, -1.0 / 3, 9, 10.0 / 3});
  const RowsResult group = rows_forward(x, group_norm_sets(x.shape, 1), {1, 2}, {}, 0);
  expect_values(group.y.v, {-3 / s, -1 / s, 2 / s, 6 / s, -1.0 / 3, -1.0 / 3, -2, 10.0 / 3});
  const RowsResult instance = rows_forward(x, instance_norm_sets(x.shape), {}, {1, 0}, 1);
  expect_values(instance.mean, {2, 6, 2, 4});
  expect_values(instance.var, {1, 1, 0, 16});
  EXPECT_NEAR(instance.y.v[0], 1 - 1 / std::sqrt(2.0), kUlps);
  Doubles running_mean{0, 0}, running_var{1, 1};
  update_instance_running(instance, x.shape, 0.1, running_mean, running_var);
  expect_values(running_mean, {0.2, 0.5});
  expect_values(running_var, {0.9 + 0.1 * 1, 0.9 + 0.1 * 17});  // twice the biased variances, averaged over samples
  expect_values(rms_forward({{1, 4}, {1, 5, 5, 7}}, layer_norm_sets({1, 4}, 1), {}, 0).y.v, {0.2, 1, 1, 1.4});
}

TEST(ReferenceConvolution, PatchSumsAreTheDerivativesOfTheMoments) {
  const double rounding = 1e-13;  // of sums of about 100 doubles that were compared in different orders
  struct Case {
    std::vector<std::int64_t> input, weight;
    Conv conv;
  };
  const std::vector<Case> cases_{
      {{5, 4}, {3, 4}, {{1}, {0}, {1}, 1}},
      {{3, 2, 7}, {4, 1, 3}, {{2}, {2}, {2}, 2}},
      {{2, 3, 5, 4}, {3, 3, 2, 3}, {{2, 1}, {0, 1}, {1, 2}, 1}},
      {{2, 4, 3, 4, 3}, {2, 2, 2, 1, 2}, {{1, 2, 1}, {1, 0, 1}, {1, 1, 2}, 2}},
  };
  for (const Case& c : cases_) {
    SCOPED_TRACE(c.input.size());
    cases::Random random(17);
    const Array input = cases::channelwise(random, c.input);
    Array weight = cases::normal(random, c.weight);
    const Array x = convolve(input, weight, c.conv);
    Reals sum_p(weight.v.size()), sum_xp(weight.v.size());
    add_patch_sums(input, x, weight.shape, c.conv, sum_p, sum_xp);
    const auto sum_of = [&](bool squared) {
      return [&, squared](const Doubles& values) {
        Array moved = weight;
        moved.v = values;
        Real sum = 0;
        for (const double v : convolve(input, moved, c.conv).v) sum += squared ? Real(v) * v : Real(v);
        return sum;
      };
    };
    // Polynomials of degree 1 and 2 in the weights: differences are exact for any h, so a large one keeps rounding low.
    EXPECT_LE(cases::relative_error(Doubles(sum_p.begin(), sum_p.end()),
                                    cases::central_difference(sum_of(false), weight.v, 1)),
              rounding);
    for (Real& v : sum_xp) v *= 2;
    EXPECT_LE(cases::relative_error(Doubles(sum_xp.begin(), sum_xp.end()),
                                    cases::central_difference(sum_of(true), weight.v, 1)),
              rounding);
  }
}

}  // namespace
}  // namespace reference
