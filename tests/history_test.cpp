// Cross-Iteration BN and CmBN by themselves: what the Taylor term does, what a saved state holds, who may load it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "cases.hpp"
#include "harness.hpp"
#include "norm_cases.hpp"

namespace history_test {
namespace {

using namespace allnorm;
using cases::Random;
using harness::error_of;
using reference::Array;
using reference::Doubles;

Shape shape_of(const std::vector<std::int64_t>& extents) { return Shape(std::span<const std::int64_t>(extents)); }

// Two calls on the same convolution input with weights w and w + change: how far the first call's compensated mean and
// variance are from what they would be at the new weights.
struct TaylorErrors {
  double mean = 0, var = 0, stale_mean = 0, stale_var = 0;
};
TaylorErrors taylor_errors(double change) {
  Random random(11);
  const reference::Conv conv{{1}, {1}, {1}, 1};
  const Array input = cases::normal(random, {3, 2, 5, 5}, 0.4, 1), direction = cases::normal(random, {4, 2, 3, 3});
  Array weight = cases::normal(random, {4, 2, 3, 3}, 0, 0.5);
  Queue queue = Queue::cpu();
  Norm norm(Layer("cross_iteration_batch_norm").set("conv_padding", "1").set("window", "2"), 4, nullptr, queue);
  Doubles mean, var;
  for (int step = 0; step < 2; ++step) {
    const Array x = reference::convolve(input, weight, conv);
    Doubles y(x.v.size());
    ForwardInputs in;
    in.input = view(x.v.data(), shape_of(x.shape));
    in.conv_input = view(input.v.data(), shape_of(input.shape));
    in.conv_weight = view(weight.v.data(), shape_of(weight.shape));
    norm.forward(in, view(y.data(), shape_of(x.shape)), queue);
    if (step == 1) {
      auto oracle = reference::make_layer(4);
      const auto truth = reference::forward(oracle, {{x}, {}, {}, {}});
      mean = truth.mean;
      var = truth.var;
    }
    for (std::size_t i = 0; i < weight.v.size(); ++i) weight.v[i] += change * direction.v[i];
  }
  TaylorErrors errors;
  const Norm::PastStatistics past = norm.past(queue);
  for (std::size_t c = 0; c < 4; ++c) {
    errors.mean = std::max(errors.mean, std::abs(past.mean[c] - mean[c]));
    errors.var = std::max(errors.var, std::abs(past.var[c] - var[c]));
    errors.stale_mean = std::max(errors.stale_mean, std::abs(past.stale_mean[c] - mean[c]));
    errors.stale_var = std::max(errors.stale_var, std::abs(past.stale_var[c] - var[c]));
  }
  return errors;
}

TEST(Taylor, TheMeanOfALinearLayerIsExact) {
  const TaylorErrors errors = taylor_errors(0.3);
  EXPECT_LE(errors.mean, 1e-14);
  EXPECT_GT(errors.stale_mean, 1e-3);
}

TEST(Taylor, TheVariancesErrorFallsWithTheSquareOfTheChange) {
  const double coarse = taylor_errors(0.1).var, middle = taylor_errors(0.01).var, fine = taylor_errors(0.001).var;
  EXPECT_NEAR(coarse / middle, 100, 1e-6);  // E[(D.p)^2] - E[D.p]^2 is all that is missing: exactly quadratic
  EXPECT_NEAR(middle / fine, 100, 1e-3);
  EXPECT_GT(taylor_errors(0.001).stale_var / fine, 10);  // the uncompensated error falls only linearly
}

// ---- CmBN ----------------------------------------------------------------------------------------------------------

TEST(Cmbn, CountedToTheEndItIsBatchNormOfTheWholeBatch) {
  Random random(13);
  Queue queue = Queue::cpu();
  const Array whole = cases::channelwise(random, {9, 3, 4});
  const auto parts = cases::cut(whole, {2, 3, 4});
  Norm norm(Layer("cross_mini_batch_norm").set("minibatches", "3").set("weighting", "count"), 3, nullptr, queue);
  auto oracle = reference::make_layer(3);
  const auto expected = reference::forward(oracle, {{whole}, {}, {}, {}});
  Doubles y;
  for (const Array& part : parts) {
    y.resize(part.v.size());
    ForwardInputs in;
    in.input = view(part.v.data(), shape_of(part.shape));
    norm.forward(in, view(y.data(), shape_of(part.shape)), queue);
  }
  const Doubles last(expected.y[0].v.end() - static_cast<std::ptrdiff_t>(y.size()), expected.y[0].v.end());
  EXPECT_LE(cases::relative_error(y, last), 1e-14);
  EXPECT_LE(cases::relative_error(norm.running(queue).spread, oracle.state.running_var), 1e-14);
}

// ---- state
// -------------------------------------------------------------------------------------------------------------

// A window in the middle of a batch, on each of `ranks` ranks.
std::vector<State> saved_states(int ranks,
                                std::string_view text = "cross_iteration_batch_norm:minibatches=2:window=3") {
  std::vector<State> states(static_cast<std::size_t>(ranks));
  harness::run(ranks, [&](const harness::World& world, Queue& queue) {
    Random random(14);
    Norm norm(parse_layer(text), 3, world, queue);
    Array weight;
    for (int step = 0; step < 5; ++step) {
      if (step % 2 == 0) weight = cases::normal(random, {3, 2});  // a batch is two calls
      const Array input = cases::normal(random, {2, 2});
      const Array x = reference::convolve(input, weight, {});
      Doubles y(x.v.size());
      ForwardInputs in;
      in.input = view(x.v.data(), shape_of(x.shape));
      in.conv_input = view(input.v.data(), shape_of(input.shape));
      in.conv_weight = view(weight.v.data(), shape_of(weight.shape));
      norm.forward(in, view(y.data(), shape_of(x.shape)), queue);
    }
    states[static_cast<std::size_t>(world->rank())] = norm.save(queue);
  });
  return states;
}

std::string loading(const State& state, std::string_view text = "cross_iteration_batch_norm:minibatches=2:window=3",
                    std::int64_t channels = 3, const LoadOptions& options = {}) {
  Queue queue = Queue::cpu();
  Norm norm(parse_layer(text), channels, self(), queue);
  const std::string error = error_of([&] { norm.load(state, queue, options); });
  if (!error.empty()) {  // nothing changed
    EXPECT_EQ(norm.running(queue).tracked, 0);
    for (const double v : norm.running(queue).mean) EXPECT_EQ(v, 0);
  }
  return error;
}

TEST(State, IsRefusedByAnotherLayer) {
  const State state = saved_states(1)[0];
  EXPECT_EQ(loading(state), "");
  EXPECT_EQ(loading(state, "batch_norm:minibatches=2:window=3"), "");  // the family is one layer
  EXPECT_EQ(loading(state, "cross_iteration_batch_norm:minibatches=2:window=4"),
            "invalid input: state was made with window = 3, must be made with 4: it has entries in a window or an open "
            "batch, which can be dropped");
  EXPECT_EQ(loading(state, "cross_iteration_batch_norm:minibatches=4:window=3"),
            "invalid input: state was made with minibatches = 2, must be made with 4: it has entries in a window or an "
            "open batch, which can be dropped");
  EXPECT_EQ(loading(state, "cross_iteration_batch_norm:minibatches=2:window=3", 4),
            "invalid input: state running_mean has shape (3,), must have (4,)");
  EXPECT_EQ(loading(state, "cross_iteration_batch_norm:minibatches=2:window=3:variant=paper:renorm=true"),
            "invalid input: state running_std is missing");
  EXPECT_NE(
      loading(state, "cross_iteration_batch_norm:minibatches=2:window=3:compensate=false").find("compensate=false"),
      std::string::npos);
  State stranger = state;
  for (StateEntry& entry : stranger.entries)
    if (entry.name.starts_with("allnorm.layer.")) entry.name = "allnorm.layer.layer_norm";
  EXPECT_EQ(loading(stranger),
            "invalid input: state is of layer layer_norm, must be of cross_iteration_batch_norm or "
            "its family");
  Queue queue = Queue::cpu();
  Norm rows(Layer("layer_norm"), 3, nullptr, queue);
  EXPECT_EQ(error_of([&] { rows.load(state, queue); }),
            "invalid input: layer_norm has no state, must be loaded with none");
}

TEST(State, OfAnotherNumberOfRanksLosesItsHistoryOnRequestOnly) {
  constexpr std::string_view refused =
      "invalid input: state was made with ranks = 2, must be made with 1: it has entries in a window or an open batch, "
      "which can be dropped";
  for (const char* layer :
       {"cross_iteration_batch_norm:minibatches=2:window=3", "cross_iteration_batch_norm:compensate=false:window=3",
        "cross_mini_batch_norm:minibatches=3"}) {  // compensated or not, and an open batch alone
    for (const State& state : saved_states(2, layer)) {
      EXPECT_EQ(loading(state, layer), refused) << layer;
      Queue queue = Queue::cpu();
      Norm norm(parse_layer(layer), 3, nullptr, queue);
      norm.load(state, queue, {.drop_window = true});
      const State dropped = norm.save(queue);
      EXPECT_FALSE(dropped.has_history()) << layer;
      EXPECT_EQ(dropped.find("running_mean")->data, state.find("running_mean")->data) << layer;
      EXPECT_EQ(dropped.find("allnorm.batches")->data, state.find("allnorm.batches")->data) << layer;
    }
  }
  const auto states = saved_states(2);  // the other rank's share
  harness::run(2, [&](const harness::World& world, Queue& queue) {
    Norm norm(parse_layer("cross_iteration_batch_norm:minibatches=2:window=3"), 3, world, queue);
    const auto other = static_cast<std::size_t>(1 - world->rank());
    EXPECT_NE(error_of([&] { norm.load(states[other], queue); }).find("state was made with rank = "),
              std::string::npos);
  });
}

// Between layers of the family, numbers of ranks, windows and batches.
TEST(State, OfRunningStatisticsAloneLoadsAnywhere) {
  constexpr const char* layers[] = {"batch_norm", "sync_batch_norm", "batch_renorm:variant=var",
                                    "cross_iteration_batch_norm:burn_in=9", "cross_mini_batch_norm:minibatches=5"};
  for (const char* from : layers) {
    const State state = saved_states(2, from)[1];
    ASSERT_FALSE(state.has_history()) << from;
    for (const char* to : layers) EXPECT_EQ(loading(state, to), "") << from << " " << to;
    EXPECT_EQ(loading(state, "batch_renorm"), "invalid input: state running_std is missing") << from;
  }
  EXPECT_EQ(loading(saved_states(2, "batch_renorm")[0], "batch_norm:renorm=true"), "");
  EXPECT_EQ(loading(saved_states(2, "batch_renorm")[0], "batch_norm"), "invalid input: state running_var is missing");
}

TEST(State, OfARowThatTheCatalogueLacksLoads) {
  Row row = *Layer("batch_norm").row;
  row.name = "a row of a test";
  Queue queue = Queue::cpu();
  Norm norm(Layer(row), 3, nullptr, queue);
  EXPECT_EQ(error_of([&] { norm.load(norm.save(queue), queue); }), "");
}

TEST(State, DamagedIsRefusedWhole) {
  const State state = saved_states(1)[0];
  int needed = 0;
  for (std::size_t i = 0; i < state.entries.size(); ++i) {  // any entry missing
    State damaged = state;
    damaged.entries.erase(damaged.entries.begin() + static_cast<std::ptrdiff_t>(i));
    needed += !loading(damaged).empty();
  }
  EXPECT_GE(needed, static_cast<int>(state.entries.size()) - 8);  // some have a meaning when they are absent
  for (std::size_t i = 0; i < state.entries.size(); ++i) {        // any entry shorter than its shape says
    State damaged = state;
    damaged.entries[i].data.pop_back();
    EXPECT_EQ(loading(damaged).substr(0, 20), "invalid input: state") << state.entries[i].name;
  }
  State negative = state;
  for (StateEntry& entry : negative.entries)
    if (entry.name == "running_var") {
      const double value = -1;
      std::memcpy(entry.data.data(), &value, sizeof value);
    }
  EXPECT_EQ(loading(negative), "invalid input: state running_var has -1.000000 at 0, must be finite and at least 0");
}

// Every number that a state holds, made impossible.
TEST(State, WithImpossibleValuesIsRefused) {
  const State state = saved_states(1)[0];
  const auto with = [&](const std::string& name, auto value) {
    State damaged = state;
    bool found = false;
    for (StateEntry& entry : damaged.entries)
      if (entry.name == name) {
        std::memcpy(entry.data.data(), &value, sizeof value);
        found = true;
      }
    EXPECT_TRUE(found) << name;
    return loading(damaged);
  };
  for (const char* name :
       {"running_mean", "running_var", "allnorm.batch.sums", "allnorm.batch.mean", "allnorm.batch.var",
        "allnorm.batch.center", "allnorm.batch.running.mean", "allnorm.batch.running.var",
        "allnorm.batch.running.biased", "allnorm.window.0.count", "allnorm.window.0.mean", "allnorm.window.0.var"})
    EXPECT_NE(with(name, HUGE_VAL).find(std::string("state ") + name + " has "), std::string::npos) << name;
  // A batch and a window may hold channels that no call may use, marked by NaN.
  for (const char* name : {"running_mean", "running_var", "allnorm.batch.sums"})
    EXPECT_NE(with(name, std::nan("")), "") << name;
  for (const char* name : {"allnorm.batch.mean", "allnorm.batch.var", "allnorm.batch.center",
                           "allnorm.batch.running.mean", "allnorm.window.0.mean", "allnorm.window.0.var"})
    EXPECT_EQ(with(name, std::nan("")), "") << name;
  for (const char* name :
       {"running_var", "allnorm.batch.sums", "allnorm.batch.var", "allnorm.window.0.count", "allnorm.window.0.var"})
    EXPECT_NE(with(name, -4.0).find("must be finite and"), std::string::npos) << name;
  for (const char* name :
       {"num_batches_tracked", "allnorm.calls", "allnorm.batches", "allnorm.batch.done", "allnorm.window.entries",
        "allnorm.weight.fan_in", "allnorm.weight.mean_rows", "allnorm.ranks"}) {
    EXPECT_NE(with(name, std::int64_t{-1}), "") << name;
    EXPECT_NE(with(name, INT64_MAX), "") << name;
  }
  EXPECT_NE(with("allnorm.weight.fan_in", std::int64_t{1} << 40), "");
  State anonymous = state;  // ours, but of no layer: not a framework's either
  anonymous.entries.erase(std::remove_if(anonymous.entries.begin(), anonymous.entries.end(),
                                         [](const StateEntry& e) { return e.name.starts_with("allnorm.layer."); }),
                          anonymous.entries.end());
  EXPECT_EQ(loading(anonymous), "invalid input: state allnorm.layer.cross_iteration_batch_norm is missing");
  State huge = state;
  huge.entries.push_back({"allnorm.r_max_ramp", StateType::f64, Shape{std::int64_t{1} << 60, 2}, {}, false});
  EXPECT_NE(loading(huge).find("state allnorm.r_max_ramp has 0 bytes"), std::string::npos);
}

// States of earlier versions have a mean that messages were about.
TEST(State, WithAPivotLoadsAndIsSavedWithoutIt) {
  const State state = saved_states(1)[0];
  EXPECT_EQ(state.find("allnorm.pivot"), nullptr);
  State older = state;
  const double pivot[] = {1e300, 2, std::nan("")};
  older.add("allnorm.pivot", pivot, Shape{3});
  EXPECT_EQ(loading(older), loading(state));
  EXPECT_EQ(loading(older), "");
}

TEST(State, OfALayerWithoutOneIsEmpty) {
  Queue queue = Queue::cpu();
  Norm rows(Layer("layer_norm"), 3, nullptr, queue);
  rows.load(rows.save(queue), queue);
  EXPECT_TRUE(rows.save(queue).entries.empty());
}

TEST(Cmbn, WeightsMayNotChangeWithinABatch) {
  Random random(15);
  Queue queue = Queue::cpu();
  Norm norm(parse_layer("cross_iteration_batch_norm:minibatches=2"), 3, nullptr, queue);
  const Array input = cases::normal(random, {2, 2});
  Array weight = cases::normal(random, {3, 2});
  Doubles y(6);
  const auto forward = [&] {
    const Array x = reference::convolve(input, weight, {});
    ForwardInputs in;
    in.input = view(x.v.data(), shape_of(x.shape));
    in.conv_input = view(input.v.data(), shape_of(input.shape));
    in.conv_weight = view(weight.v.data(), shape_of(weight.shape));
    return error_of([&] { norm.forward(in, view(y.data(), shape_of(x.shape)), queue); });
  };
  EXPECT_EQ(forward(), "");
  weight.v[1] += 1e-9;
  EXPECT_EQ(forward(),
            "invalid argument: conv_weight has changed within a batch of mini-batches, must be the same until the "
            "batch ends");
  weight.v[1] -= 1e-9;
}

TEST(State, OfAFrameworkGivesTheRunningStatistics) {
  State state;
  const float mean[] = {1, 2, 3}, var[] = {4, 5, 6};
  state.add("running_mean", mean, Shape{3});
  state.add("running_var", var, Shape{3});
  state.add("num_batches_tracked", 17);
  Queue queue = Queue::cpu();
  Norm norm(Layer("batch_norm"), 3, nullptr, queue);
  norm.load(state, queue);
  EXPECT_EQ(norm.running(queue).mean[1], 2);
  EXPECT_EQ(norm.running(queue).spread[2], 6);
  EXPECT_EQ(norm.running(queue).tracked, 17);
}

TEST(State, OfAFrameworkMayBeOfHalfPrecision) {
  const auto state_of = [](StateType type, auto one, auto two) {
    State state;
    for (const char* name : {"running_mean", "running_var"}) {
      StateEntry entry{name, type, Shape{2}, std::vector<std::byte>(2 * sizeof one), false};
      std::memcpy(entry.data.data(), &one, sizeof one);
      std::memcpy(entry.data.data() + sizeof one, &two, sizeof two);
      state.entries.push_back(std::move(entry));
    }
    state.add("num_batches_tracked", 3);
    state.entries.back().shape = Shape{1};  // as some frameworks save a counter
    return state;
  };
  for (const State& state : {state_of(StateType::f16, to_f16(0.5f), to_f16(1536.0f)),
                             state_of(StateType::bf16, to_bf16(0.5f), to_bf16(1536.0f))}) {
    Queue queue = Queue::cpu();
    Norm norm(Layer("batch_norm"), 2, nullptr, queue);
    norm.load(state, queue);
    EXPECT_EQ(norm.running(queue).mean, (Doubles{0.5, 1536}));
    EXPECT_EQ(norm.running(queue).spread, (Doubles{0.5, 1536}));
    EXPECT_EQ(norm.running(queue).tracked, 3);
  }
}

// What could not be saved and loaded again cannot be set.
TEST(State, RunningStatisticsThatAreSetAreChecked) {
  Queue queue = Queue::cpu();
  Norm norm(Layer("batch_norm"), 2, nullptr, queue);
  const auto setting = [&](const RunningStatistics& running) {
    return error_of([&] { norm.set_running(running, queue); });
  };
  EXPECT_EQ(setting({{0, 1}, {0, 1}, 5}), "");
  EXPECT_EQ(setting({{0}, {0, 1}, 5}), "invalid argument: running mean has 1 values, must have 2");
  EXPECT_EQ(setting({{0, INFINITY}, {0, 1}, 5}), "invalid input: running_mean has inf at 1, must be finite");
  EXPECT_EQ(setting({{0, 1}, {0, -1}, 5}),
            "invalid input: running_var has -1.000000 at 1, must be finite and at least 0");
  EXPECT_EQ(setting({{0, 1}, {0, 1}, INT64_MAX}),
            "invalid input: num_batches_tracked is 9223372036854775807, must be from 0 to 2^62");
  EXPECT_EQ(norm.running(queue).mean[1], 1);
}

}  // namespace
}  // namespace history_test
