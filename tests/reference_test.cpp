// The oracle over whole compositions: gradients against differences, ranks against their concatenation, identities.
#include "launch/reference/reference.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cases.hpp"
#include "differences.hpp"

namespace reference {
namespace {

constexpr std::int64_t kChannels = 3;
constexpr int kRanks = 3;
constexpr int kSteps = 9;
constexpr int kEmptyStep = 5;  // the second mini-batch of the third batch where T = 2, a plain empty call otherwise

/// Rounding of results that are sums of about 100 doubles and were compared in different orders or forms; the sums
/// themselves carry 11 more bits.
constexpr double kRounding = 1e-13;

/// Fourth-order differences with h = 1e-3 of functions of (x - mean)/deviation. The deviations here are at least 0.6,
/// so the fifth derivative is about 5!/0.6^5 at most and the truncation h^4/30 f^(5) is 5e-11; rounding y to double
/// adds 1e-16 sqrt(n)/h = 1e-12.
constexpr double kDifference = 1e-10;

struct Composition {
  std::string name;
  BatchOptions options;
};

Composition make(std::string name, const std::function<void(BatchOptions&)>& change) {
  BatchOptions options;
  options.convolution = {{2}, {1, 1}, {1}, 1};
  change(options);
  return {std::move(name), options};
}

void window(BatchOptions& o) { o.window = 3; }
void minibatches(BatchOptions& o) { o.minibatches = 2; }
void renorm(BatchOptions& o) {
  o.renorm = true;
  o.momentum = 0.3;
  o.r_max = 1.3;
  o.d_max = 0.4;
}

/// Every option of section 8 at least once, alone and with what it meets.
std::vector<Composition> compositions() {
  using O = BatchOptions;
  return {
      make("bn", [](O&) {}),
      make("bn_relu", [](O& o) { o.activation.kind = ActivationKind::relu; }),
      make("bn_leaky_cumulative", [](O& o) { o.activation.kind = ActivationKind::leaky_relu, o.cumulative = true; }),
      make("bn_biased", [](O& o) { o.unbiased_running_var = false; }),
      make("bn_eps_outside", [](O& o) { o.eps = 0.1, o.eps_place = EpsPlace::outside; }),
      make("eval", [](O& o) { o.training = false; }),
      make("eval_paper", [](O& o) { renorm(o), o.training = false; }),
      make("brn_paper", [](O& o) { renorm(o); }),
      make("brn_var", [](O& o) { renorm(o), o.variant = RenormVariant::var; }),
      make("brn_paper_eps_outside", [](O& o) { renorm(o), o.eps = 0.1, o.eps_place = EpsPlace::outside; }),
      make("cbn_clamp", [](O& o) { window(o); }),
      make("cbn_drop", [](O& o) { window(o), o.guard = Guard::drop; }),
      make("cbn_stale", [](O& o) { window(o), o.compensate = false; }),
      make("cbn_grouped_conv", [](O& o) { window(o), o.convolution.groups = 3; }),
      make("cbn_burn_in", [](O& o) { window(o), o.burn_in = 2; }),
      make("cbn_burn_in_fill", [](O& o) { window(o), o.burn_in = 2, o.fill_in_burn_in = true; }),
      make("cbn_running_window", [](O& o) { window(o), o.running_source = RunningSource::window; }),
      make("cmbn_uniform_last", [](O& o) { minibatches(o); }),
      make("cmbn_count_last", [](O& o) { minibatches(o), o.weighting = Weighting::count; }),
      make("cmbn_every", [](O& o) { minibatches(o), o.running = RunningUpdate::every; }),
      make("cmbn_burn_in", [](O& o) { minibatches(o), o.burn_in = 2; }),
      make("cmbn_cbn", [](O& o) { minibatches(o), window(o); }),
      make("cmbn_count_cbn_every_window",
           [](O& o) {
             minibatches(o), window(o), o.weighting = Weighting::count, o.running = RunningUpdate::every;
             o.running_source = RunningSource::window;
           }),
      make("cbn_brn_paper", [](O& o) { window(o), renorm(o), o.running_source = RunningSource::window; }),
      make("all_relu",
           [](O& o) {
             minibatches(o), window(o), renorm(o), o.variant = RenormVariant::var, o.weighting = Weighting::count;
             o.guard = Guard::drop, o.running_source = RunningSource::window, o.activation.kind = ActivationKind::relu;
             o.burn_in = 1, o.fill_in_burn_in = true;
           }),
  };
}

/// Calls of a layer whose input is a convolution with weights that move between batches; the layer, its inputs and a
/// dy per step, the same for the same seed.
struct Steps {
  Layer layer;
  std::vector<Inputs> inputs;
  std::vector<Ranks> dy;
};

Steps make_steps(const BatchOptions& options, std::uint64_t seed) {
  cases::Random random(seed);
  Steps steps;
  steps.layer = make_layer(kChannels, options);
  steps.layer.gamma = cases::gammas(random, kChannels);
  steps.layer.beta = cases::betas(random, kChannels);
  steps.layer.state.running_mean = cases::betas(random, kChannels);
  steps.layer.state.running_var = {1.7, 0.9, 2.5};
  steps.layer.state.running_std = {1.4, 0.8, 1.9};

  Array weight = cases::normal(random, {kChannels, 3 / options.convolution.groups, 2, 2}, 0, 0.6);
  for (int step = 0; step < kSteps; ++step) {
    if (step % options.minibatches == 0)
      for (double& w : weight.v) w += 0.3 * random.normal();  // far enough that the guards fire
    const std::int64_t n = step == kEmptyStep ? 0 : random.integer(4, 7);
    Inputs inputs;
    inputs.conv_weight = weight;
    inputs.conv_input = cases::scatter(random, cases::channelwise(random, {n, 3, 3, 3}), kRanks);
    for (const Array& part : inputs.conv_input) {
      inputs.x.push_back(convolve(part, weight, options.convolution));
      inputs.residual.push_back(cases::normal(random, inputs.x.back().shape));
    }
    Ranks dy;
    for (const Array& x : inputs.x) dy.push_back(cases::normal(random, x.shape));
    steps.inputs.push_back(std::move(inputs));
    steps.dy.push_back(std::move(dy));
  }
  return steps;
}

/// Moves the residual so that no element comes near the activation's kink, where differences mean nothing.
void avoid_kink(const Layer& layer, Inputs& inputs) {
  const Ranks pre = evaluate(layer, inputs).pre;
  for (std::size_t k = 0; k < pre.size(); ++k)
    for (std::size_t i = 0; i < pre[k].v.size(); ++i)
      if (std::abs(pre[k].v[i]) < 0.1) inputs.residual[k].v[i] += pre[k].v[i] < 0 ? -0.1 : 0.1;
}

/// Replaces one rank's array and gives the frozen loss over `dy`.
Real loss_with(const Layer& layer, Inputs inputs, const Result& at, const Ranks& dy, Ranks Inputs::*which,
               std::size_t rank, const Doubles& values) {
  (inputs.*which)[rank].v = values;
  return cases::inner_product(dy, evaluate(layer, inputs, &at).y);
}

class ReferenceComposition : public testing::TestWithParam<Composition> {};

TEST_P(ReferenceComposition, BackwardIsTheDerivativeOfTheFrozenForward) {
  Steps steps = make_steps(GetParam().options, 11);
  for (int step = 0; step < kSteps; ++step) {
    SCOPED_TRACE(step);
    Inputs& inputs = steps.inputs[static_cast<std::size_t>(step)];
    const Ranks& dy = steps.dy[static_cast<std::size_t>(step)];
    const Layer before = steps.layer;
    avoid_kink(before, inputs);
    const Result result = forward(steps.layer, inputs);
    const Gradients gradients = backward(before, inputs, result, dy);
    Ranks dx = gradients.dx, dresidual = gradients.dresidual;  // for their shapes; filled below
    for (std::size_t k = 0; k < dy.size(); ++k) {
      dx[k].v = cases::central_difference(
          [&](const Doubles& v) { return loss_with(before, inputs, result, dy, &Inputs::x, k, v); }, inputs.x[k].v);
      dresidual[k].v = cases::central_difference(
          [&](const Doubles& v) { return loss_with(before, inputs, result, dy, &Inputs::residual, k, v); },
          inputs.residual[k].v);
      // gamma and beta are this rank's: only its own dy counts.
      Ranks own_dy = dy;
      for (std::size_t other = 0; other < dy.size(); ++other)
        if (other != k) own_dy[other] = zeros(dy[other].shape);
      const auto loss = [&](Doubles Layer::*which) {
        return [&before, &inputs, &result, own_dy, which](const Doubles& v) {
          Layer layer = before;
          layer.*which = v;
          return cases::inner_product(own_dy, evaluate(layer, inputs, &result).y);
        };
      };
      EXPECT_LE(
          cases::relative_error(gradients.dgamma[k], cases::central_difference(loss(&Layer::gamma), before.gamma)),
          kDifference);
      EXPECT_LE(cases::relative_error(gradients.dbeta[k], cases::central_difference(loss(&Layer::beta), before.beta)),
                kDifference);
    }
    EXPECT_LE(cases::relative_error(gradients.dx, dx), kDifference);
    EXPECT_LE(cases::relative_error(gradients.dresidual, dresidual), kDifference);
  }
}

TEST_P(ReferenceComposition, RanksAreTheConcatenationOfTheirData) {
  const Steps steps = make_steps(GetParam().options, 12);
  Layer split = steps.layer, whole = steps.layer;
  for (std::size_t step = 0; step < kSteps; ++step) {
    SCOPED_TRACE(step);
    const Inputs& inputs = steps.inputs[step];
    const Inputs joined{
        {concatenate(inputs.x)}, {concatenate(inputs.residual)}, {concatenate(inputs.conv_input)}, inputs.conv_weight};
    const Result a = forward(split, inputs), b = forward(whole, joined);
    EXPECT_LE(cases::relative_error({concatenate(a.y)}, b.y), kRounding);
    EXPECT_LE(cases::relative_error(a.state.running_mean, b.state.running_mean), kRounding);
    EXPECT_LE(cases::relative_error(a.state.running_var, b.state.running_var), kRounding);
    EXPECT_LE(cases::relative_error(a.state.running_std, b.state.running_std), kRounding);
    EXPECT_EQ(a.state.num_batches_tracked, b.state.num_batches_tracked);
    EXPECT_EQ(a.state.window.size(), b.state.window.size());

    const Gradients ga = backward(split, inputs, a, steps.dy[step]);
    const Gradients gb = backward(whole, joined, b, {concatenate(steps.dy[step])});
    EXPECT_LE(cases::relative_error({concatenate(ga.dx)}, gb.dx), kRounding);
    Doubles dgamma(kChannels), dbeta(kChannels);
    for (std::size_t k = 0; k < kRanks; ++k)
      for (std::size_t c = 0; c < kChannels; ++c) {
        dgamma[c] += ga.dgamma[k][c];
        dbeta[c] += ga.dbeta[k][c];
      }
    EXPECT_LE(cases::relative_error(dgamma, gb.dgamma[0]), kRounding);
    EXPECT_LE(cases::relative_error(dbeta, gb.dbeta[0]), kRounding);
  }
}

TEST_P(ReferenceComposition, UnclippedRenormNormalizesWithTheRunningStatistics) {
  for (const RenormVariant variant : {RenormVariant::paper, RenormVariant::var}) {
    BatchOptions options = GetParam().options;
    if (!options.training) continue;
    options.renorm = true;
    options.variant = variant;
    options.r_max = options.d_max = 1e6;
    const Steps steps = make_steps(options, 13);
    Layer layer = steps.layer;
    for (const Inputs& inputs : steps.inputs) {
      const Ranks inferred = infer(layer, inputs).y;
      EXPECT_LE(cases::relative_error(forward(layer, inputs).y, inferred), kRounding);
    }
  }
}

TEST_P(ReferenceComposition, RenormWithTightBoundsChangesNothing) {
  BatchOptions options = GetParam().options;
  options.renorm = false;
  const Steps steps = make_steps(options, 14);
  Layer plain = steps.layer, bound = steps.layer;
  bound.options.renorm = true;
  bound.options.variant = RenormVariant::var;
  bound.options.r_max = 1;
  bound.options.d_max = 0;
  for (std::size_t step = 0; step < kSteps; ++step) {
    const Inputs& inputs = steps.inputs[step];
    const Result a = forward(plain, inputs), b = forward(bound, inputs);
    EXPECT_EQ(cases::relative_error(a.y, b.y), 0);
    EXPECT_EQ(cases::relative_error(backward(plain, inputs, a, steps.dy[step]).dx,
                                    backward(bound, inputs, b, steps.dy[step]).dx),
              0);
    EXPECT_EQ(a.state.running_var, b.state.running_var);
  }
}

INSTANTIATE_TEST_SUITE_P(Section8, ReferenceComposition, testing::ValuesIn(compositions()),
                         [](const auto& composition) { return composition.param.name; });

TEST(ReferenceBatchNorm, OutputsAreStandardizedForEverySize) {
  for (const cases::Size& size : cases::sizes()) {
    SCOPED_TRACE(size.edge);
    cases::Random random(19);
    const std::int64_t channels = size.shape[1];
    const Layer layer = make_layer(channels);
    const Inputs inputs{cases::scatter(random, cases::channelwise(random, size.shape, 0, 3), kRanks), {}, {}, {}};
    const Result result = evaluate(layer, inputs);
    ASSERT_EQ(result.count, elements(size.shape) / channels);
    const Result again = evaluate(layer, {result.y, {}, {}, {}});
    for (std::size_t c = 0; c < result.mean.size(); ++c) {
      EXPECT_NEAR(again.mean[c], 0, kRounding);
      EXPECT_NEAR(again.var[c], result.var[c] / (result.var[c] + layer.options.eps), kRounding);
    }
  }
}

TEST(ReferenceWindow, TheCasesAboveReachTheGuard) {
  BatchOptions options;
  options.window = 3;
  options.guard = Guard::drop;
  options.convolution = {{2}, {1, 1}, {1}, 1};
  const Steps steps = make_steps(options, 11);  // cbn_drop of the first test
  Layer layer = steps.layer;
  int dropped = 0, kept = 0;
  for (std::size_t step = 0; step < kSteps; ++step) {
    const std::size_t past = layer.state.window.size();
    for (const double a : forward(layer, steps.inputs[step]).a)
      if (a > 0) (a > 1.0 / static_cast<double>(past + 1) + kRounding ? dropped : kept) += 1;
  }
  EXPECT_GT(dropped, 0);
  EXPECT_GT(kept, 0);
}

TEST(ReferenceWindow, CompensatedMeanIsExactAndTheSecondMomentMissesTheSquareOfTheChange) {
  BatchOptions options;
  options.window = 2;
  options.convolution = {{2}, {1}, {1}, 1};
  const Steps steps = make_steps(options, 15);
  const Inputs& first = steps.inputs[0];
  Inputs second = steps.inputs[1];  // with weights so near the first ones that no guard fires
  for (std::size_t i = 0; i < second.conv_weight.v.size(); ++i)
    second.conv_weight.v[i] = 0.1 * second.conv_weight.v[i] + 0.9 * first.conv_weight.v[i];
  for (std::size_t k = 0; k < second.x.size(); ++k)
    second.x[k] = convolve(second.conv_input[k], second.conv_weight, options.convolution);
  Layer layer = steps.layer;
  forward(layer, first);
  const Result result = forward(layer, second);

  const auto mean_of = [](const Ranks& parts, std::size_t c, bool squared) {
    Real sum = 0, count = 0;
    for (const Array& x : parts)
      for (std::size_t i = 0; i < x.v.size(); ++i)
        if (i / 4 % kChannels == c) {  // 2 x 2 positions
          sum += squared ? Real(x.v[i]) * x.v[i] : Real(x.v[i]);
          count += 1;
        }
    return sum / count;
  };
  Array change = second.conv_weight;
  for (std::size_t i = 0; i < change.v.size(); ++i) change.v[i] -= first.conv_weight.v[i];
  Ranks present, difference;  // the first call's inputs through the present weights, and through their change
  for (const Array& input : first.conv_input) {
    present.push_back(convolve(input, second.conv_weight, options.convolution));
    difference.push_back(convolve(input, change, options.convolution));
  }
  for (std::size_t c = 0; c < kChannels; ++c) {
    ASSERT_EQ(result.a[c], 0.5);
    const Real mean = 2 * Real(result.mean[c]) - mean_of(second.x, c, false);
    EXPECT_NEAR(static_cast<double>(mean), static_cast<double>(mean_of(present, c, false)), kRounding);
    const Real second_moment = 2 * (Real(result.var[c]) + Real(result.mean[c]) * result.mean[c]);
    const Real missing = mean_of(present, c, true) - (second_moment - mean_of(second.x, c, true));
    EXPECT_GT(missing, 0);
    EXPECT_NEAR(static_cast<double>(missing), static_cast<double>(mean_of(difference, c, true)), 10 * kRounding);
  }
}

TEST(ReferenceMinibatches, CountWeightsEndAsBatchNormOfTheWholeBatch) {
  BatchOptions options;
  options.minibatches = 3;
  options.weighting = Weighting::count;
  options.convolution = {{2}, {1}, {1}, 1};
  const Steps steps = make_steps(options, 16);
  Layer pooled = steps.layer, plain = steps.layer;
  plain.options.minibatches = 1;
  Inputs all;
  Result last;
  for (std::size_t step = 0; step < 3; ++step) {
    all.x.insert(all.x.end(), steps.inputs[step].x.begin(), steps.inputs[step].x.end());
    last = forward(pooled, {steps.inputs[step].x, {}, {}, {}});
  }
  const Result whole = forward(plain, all);
  EXPECT_LE(cases::relative_error(last.mean, whole.mean), kRounding);
  EXPECT_LE(cases::relative_error(last.var, whole.var), kRounding);
  EXPECT_LE(cases::relative_error(pooled.state.running_mean, plain.state.running_mean), kRounding);
  EXPECT_LE(cases::relative_error(pooled.state.running_var, plain.state.running_var), kRounding);
  EXPECT_EQ(pooled.state.num_batches_tracked, 1);
}

TEST(ReferenceRows, BackwardIsTheDerivative) {
  for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{3, 4}, {2, 6, 3}, {2, 4, 2, 3}}) {
    cases::Random random(18);
    const Array x = cases::normal(random, shape, 0.5, 1.5), dy = cases::normal(random, shape);
    const double eps = 0.4;  // two or three values may lie close together: eps keeps the deviation over 0.6
    std::vector<Sets> all{layer_norm_sets(shape, 1), layer_norm_sets(shape, static_cast<int>(shape.size()) - 1),
                          group_norm_sets(shape, 2)};
    if (shape.size() > 2) all.push_back(instance_norm_sets(shape));
    for (const Sets& sets : all)
      for (const bool centred : {true, false}) {
        const Doubles gamma = cases::gammas(random, sets.affines), beta = cases::betas(random, sets.affines);
        const auto loss = [&](const Array& at, const Doubles& g, const Doubles& b) {
          return cases::inner_product(
              {dy}, {(centred ? rows_forward(at, sets, g, b, eps) : rms_forward(at, sets, g, eps)).y});
        };
        const RowsGradients gradients =
            centred ? rows_backward(x, sets, gamma, dy, eps) : rms_backward(x, sets, gamma, dy, eps);
        const Doubles dx = cases::central_difference(
            [&](const Doubles& v) {
              return loss({shape, v}, gamma, beta);
            },
            x.v);
        EXPECT_LE(cases::relative_error(gradients.dx.v, dx), kDifference);
        const Doubles dgamma = cases::central_difference([&](const Doubles& v) { return loss(x, v, beta); }, gamma);
        EXPECT_LE(cases::relative_error(gradients.dgamma, dgamma), kDifference);
        if (!centred) continue;
        const Doubles dbeta = cases::central_difference([&](const Doubles& v) { return loss(x, gamma, v); }, beta);
        EXPECT_LE(cases::relative_error(gradients.dbeta, dbeta), kDifference);
      }
  }
}

}  // namespace
}  // namespace reference
