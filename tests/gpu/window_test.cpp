// The window of Cross-Iteration BN on a GPU: the same call on two equal states, one of the CPU, must leave equal ones.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "../backend.hpp"
#include "kernels/ops.hpp"

namespace allnorm::window_test {
namespace {

using Doubles = backend::Array<double>;

/// What a window's layer looks like in one call.
struct Situation {
  const char* edge;
  std::int64_t channels, mean_rows, fan_in, slots;
  Counters counters;
  Turn turn{};
  bool wide = false;
};

constexpr double eps64 = 0x1p-52;

/// A layer's state with a window, filled with numbers that depend on the situation alone.
struct WindowState {
  std::int64_t C, rows, fan_in, slots;
  bool wide;
  backend::Array<Counters> counters{2};
  backend::Array<std::uint32_t> turn;
  backend::Array<Turn> last{1};
  Doubles values, count, mean, var, center, past, dmean, dvar, weight, theta, patch_sum, product;
  backend::Array<float> narrow_dmean, narrow_dvar, narrow_weight;
  LayerState state{};

  explicit WindowState(const Situation& s)
      : C(s.channels), rows(s.mean_rows), fan_in(s.fan_in), slots(s.slots), wide(s.wide), turn(1, 1u) {
    std::mt19937_64 engine(5);
    const auto draw = [&](std::int64_t size) {
      std::normal_distribution<double> normal(0.5, 1.0);
      Doubles made(static_cast<std::size_t>(size));
      for (double& v : made) v = normal(engine);
      return made;
    };
    values = draw(2 * LayerState::fields_with_history * C);
    count = draw(slots), mean = draw(slots * C), var = draw(slots * C), center = draw(C), past = draw(4 * slots * C);
    dmean = draw(slots * rows * fan_in), dvar = draw(slots * C * fan_in), weight = draw(slots * C * fan_in);
    theta = draw(C * fan_in);
    patch_sum = draw(rows * fan_in), product = draw(C * fan_in);
    const auto narrow = [](const Doubles& v) { return backend::Array<float>(v.begin(), v.end()); };
    narrow_dmean = narrow(dmean), narrow_dvar = narrow(dvar), narrow_weight = narrow(weight);
    counters[1] = s.counters;
    last[0] = s.turn;
    state.counters = counters.data();
    state.values = values.data();
    state.parity = turn.data();
    state.last = last.data();
    state.channels = C;
    state.fields = LayerState::fields_with_history;
    state.ring = {count.data(),
                  mean.data(),
                  var.data(),
                  center.data(),
                  wide ? static_cast<void*>(dmean.data()) : narrow_dmean.data(),
                  wide ? static_cast<void*>(dvar.data()) : narrow_dvar.data(),
                  wide ? static_cast<void*>(weight.data()) : narrow_weight.data(),
                  past.data(),
                  wide,
                  slots,
                  rows,
                  fan_in};
  }
  /// The open slot holds these weights.
  void keep_theta() {
    const auto open = static_cast<std::size_t>((state.now().newest + 1) % slots * C * fan_in);
    for (std::size_t i = 0; i < theta.size(); ++i) {
      weight[open + i] = theta[i];
      narrow_weight[open + i] = static_cast<float>(theta[i]);
    }
  }
};

template <class Values>
void expect_near(const Values& a, const Values& b, double tolerance, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto left = static_cast<double>(a[i]), right = static_cast<double>(b[i]);
    ASSERT_NEAR(left, right, tolerance * (1 + std::abs(right))) << what << ", " << i;
  }
}

/// A kernel may fuse what the CPU rounds twice: a few units in the last place of what is kept.
void expect_equal(const WindowState& a, const WindowState& b) {
  expect_near(a.values, b.values, 4 * eps64, "values");
  expect_near(a.mean, b.mean, 0, "mean");
  expect_near(a.var, b.var, 0, "var");
  expect_near(a.count, b.count, 0, "count");
  expect_near(a.center, b.center, 0, "center");
  expect_near(a.dmean, b.dmean, 64 * eps64, "dmean");  // sums of 60 products
  expect_near(a.dvar, b.dvar, 64 * eps64, "dvar");
  expect_near(a.weight, b.weight, 0, "weight");
  expect_near(a.narrow_dmean, b.narrow_dmean, 0x1p-22, "dmean in f32");
  expect_near(a.narrow_dvar, b.narrow_dvar, 0x1p-22, "dvar in f32");
  expect_near(a.narrow_weight, b.narrow_weight, 0, "weight in f32");
  EXPECT_EQ(a.turn[0], b.turn[0]);
  const Counters &left = a.state.now(), &right = b.state.now();
  EXPECT_EQ(left.calls, right.calls);
  EXPECT_EQ(left.tracked, right.tracked);
  EXPECT_EQ(left.batches, right.batches);
  EXPECT_EQ(left.done, right.done);
  EXPECT_EQ(left.weight, right.weight);
  EXPECT_EQ(left.count, right.count);
  EXPECT_EQ(left.candidate, right.candidate);
  EXPECT_EQ(left.derivatives, right.derivatives);
  EXPECT_EQ(left.entries, right.entries);
  EXPECT_EQ(left.newest, right.newest);
  EXPECT_EQ(a.last[0].enters, b.last[0].enters);
  EXPECT_EQ(a.last[0].slot, b.last[0].slot);
}

Counters counters(std::int64_t batches, std::int64_t entries, std::int64_t newest, std::int64_t derivatives) {
  Counters c;
  c.calls = 9, c.batches = batches, c.entries = entries, c.newest = newest, c.derivatives = derivatives;
  c.done = derivatives, c.weight = 3, c.count = 40, c.candidate = 1;
  return c;
}

Rules rules(std::int64_t window) {
  Rules r;
  r.minibatches = 3, r.window = window, r.burn_in = 2;
  r.persists = true;
  return r;
}

struct WindowKernels : testing::Test {
  Queue gpu = backend::queue(), cpu = Queue::cpu(1);
};

TEST_F(WindowKernels, ProductsAreTheCpus) {
  for (const Situation& s :
       {Situation{"all entries", 5, 1, 300, 4, counters(7, 3, 2, 0)},
        Situation{"fewer entries than the message has room for, groups", 6, 3, 7, 4, counters(7, 1, 0, 1)},
        Situation{"burn-in", 3, 1, 9, 3, counters(1, 2, 1, 0)},
        Situation{"f64, one weight", 4, 4, 1, 3, counters(5, 2, 0, 1), {}, true}})
    for (const bool kept : {false, true}) {
      SCOPED_TRACE(s.edge);
      WindowState state(s);
      if (kept) state.keep_theta();
      const std::int64_t entries = s.slots - 1;
      const auto size = static_cast<std::size_t>(steps::Layout{s.channels}.size(entries));
      Doubles of_gpu(size, 7.0), of_cpu(size, 7.0);
      backend::Array<std::uint64_t> weights(2, 77), want(2, 77);
      ProductsArgs args{.rules = rules(s.slots),
                        .state = state.state,
                        .theta = {state.theta.data(), DType::f64, 0},
                        .entries = entries,
                        .payload = of_gpu.data(),
                        .weights = weights.data()};
      gpu.ops().products(args, gpu);
      gpu.wait();
      args.payload = of_cpu.data();
      args.weights = want.data();
      cpu.ops().products(args, cpu);
      EXPECT_EQ(weights, want);
      EXPECT_EQ(weights[1], s.counters.derivatives != 0 && !kept ? 1u : 0u);
      expect_near(of_gpu, of_cpu, 4 * eps64 * static_cast<double>(s.fan_in), "payload");
    }
}

Turn turn(bool derives, bool starts, bool enters, std::int64_t slot) {
  Turn t;
  t.call = 9, t.count = 30, t.f = 0.375, t.slot = slot;
  t.counts = t.advances = true;
  t.derives = derives, t.starts = starts, t.enters = t.closes = t.completes = enters;
  return t;
}

TEST_F(WindowKernels, DerivativesAreTheCpus) {
  for (const bool wide : {false, true})
    for (const Situation& s :
         {Situation{"the batch's first", 6, 1, 18, 4, counters(7, 3, 2, 0), turn(true, true, false, 3)},
          Situation{"another", 6, 1, 18, 4, counters(7, 3, 2, 1), turn(true, false, false, 1)},
          Situation{"the last", 6, 1, 18, 4, counters(7, 3, 2, 1), turn(true, false, true, 0)},
          Situation{"none", 6, 1, 18, 4, counters(7, 3, 2, 1), turn(false, false, false, 2)},
          Situation{"the end alone", 6, 1, 18, 4, counters(7, 3, 2, 1), turn(false, false, true, 2)}})
      for (const std::int64_t groups : {1, 2}) {
        SCOPED_TRACE(std::string(s.edge) + (wide ? ", f64" : ""));
        Situation here = s;
        here.wide = wide;
        here.mean_rows = groups;
        here.fan_in = 4 / groups * 9;  // a 3 x 3 convolution of 4 channels
        WindowState of_gpu(here), of_cpu(here);
        std::mt19937_64 engine(8);
        std::normal_distribution<double> draw;
        const auto drawn = [&](std::size_t size) {
          Doubles made(size);
          for (double& v : made) v = draw(engine);
          return made;
        };
        const Doubles input = drawn(2 * 4 * 5 * 6), x = drawn(2 * 6 * 5 * 6);
        const auto call = [&](WindowState& state, Queue& queue) {
          DerivativesArgs args{.rules = rules(s.slots), .state = state.state, .given = true};
          args.theta = {state.theta.data(), DType::f64, 0};
          args.patch_sum = state.patch_sum.data();
          args.product = state.product.data();
          args.patch.conv_input = input.data(), args.patch.x = x.data(), args.patch.dtype = DType::f64;
          args.patch.samples = 2, args.patch.in_channels = 4, args.patch.channels = 6, args.patch.groups = groups;
          args.patch.in[1] = args.patch.out[1] = 5, args.patch.in[2] = args.patch.out[2] = 6;
          args.patch.kernel[1] = args.patch.kernel[2] = 3, args.patch.padding[1] = args.patch.padding[2] = 1;
          queue.ops().derivatives(args, queue);
          queue.wait();
        };
        call(of_gpu, gpu);
        steps::advance(rules(s.slots), of_gpu.state, *of_gpu.state.last, true);  // as the second half has, before it
        call(of_cpu, cpu);                                                       // whose call ends here
        expect_equal(of_gpu, of_cpu);
      }
}

TEST_F(WindowKernels, ACutBatchIsTheCpus) {
  for (const Situation& s : {Situation{"with derivatives", 6, 2, 18, 4, counters(7, 3, 2, 1)},
                             Situation{"nothing to cut", 6, 1, 18, 4, counters(7, 2, 3, 0)},
                             Situation{"many channels", 700, 1, 3, 3, counters(7, 2, 1, 1)},
                             Situation{"in burn-in", 6, 1, 18, 4, counters(1, 0, 0, 1)}}) {
    SCOPED_TRACE(s.edge);
    WindowState of_gpu(s), of_cpu(s);
    for (int call = 0; call < 2; ++call) {
      gpu.ops().begin_batch(rules(s.slots), of_gpu.state, gpu);
      gpu.wait();
      cpu.ops().begin_batch(rules(s.slots), of_cpu.state, cpu);
      expect_equal(of_gpu, of_cpu);
    }
  }
}

}  // namespace
}  // namespace allnorm::window_test
