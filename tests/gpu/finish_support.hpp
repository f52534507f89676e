// A layer's state and the records of a group in memory that host and device share, for tests of the finishing halves,
// and the same halves as plain loops over the steps.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "backend.hpp"
#include "kernels/ops.hpp"

namespace allnorm::finish_test {

inline std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

template <class T>
backend::Array<T> normal(std::int64_t size, unsigned seed, double mean = 0, double deviation = 1) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> draw(mean, deviation);
  backend::Array<T> values(index(size));
  for (auto& v : values) v = static_cast<T>(draw(engine));
  return values;
}

/// The arrays of a LayerState; copies are independent.
struct LayerMemory {
  backend::Array<Counters> counters{};
  backend::Array<double> values{}, ring_count{}, ring_mean{}, ring_var{}, center{}, past{};
  backend::Array<std::uint32_t> turn{};
  backend::Array<Turn> last{};
  std::int64_t channels = 0, fields = 0, slots = 0;

  LayerMemory(const Rules& rules, std::int64_t c) : counters(2), turn(1), last(1) {
    if (!rules.persists) return;
    channels = c;
    slots = rules.window;
    const bool history = rules.window > 1 || rules.minibatches > 1;
    fields = history ? LayerState::fields_with_history : LayerState::fields_without_history;
    values = backend::Array<double>(index(2 * fields * c), 0.0);
    for (std::int64_t i = 0; i < c; ++i) values[index(LayerState::running_spread * c + i)] = 1;
    ring_count = backend::Array<double>(index(slots), 0.0);
    ring_mean = ring_var = backend::Array<double>(index(slots * c), 0.0);
    center = backend::Array<double>(index(c), 0.0);
    past = backend::Array<double>(index(4 * (slots - 1) * c), 0.0);
  }
  LayerState view() {
    LayerState state{.counters = counters.data(),
                     .values = values.data(),
                     .parity = turn.data(),
                     .last = last.data(),
                     .channels = channels,
                     .fields = fields};
    state.ring.count = ring_count.data();
    state.ring.mean = ring_mean.data();
    state.ring.var = ring_var.data();
    state.ring.center = center.data();
    state.ring.past = past.data();
    state.ring.slots = slots;
    return state;
  }
};

struct FrameMemory {
  backend::Array<double> values;
  backend::Array<steps::FrameScalars> scalars;
  std::int64_t groups;

  explicit FrameMemory(std::int64_t g) : values(index(6 * g), -7.0), scalars(1), groups(g) {}
  steps::FrameView view() {
    double* v = values.data();
    return {v, v + groups, v + 2 * groups, v + 3 * groups, v + 4 * groups, v + 5 * groups, scalars.data()};
  }
};

/// What the ranks of a group send, one record after the other.
struct Records {
  int ranks;
  std::int64_t count;  // doubles of each
  std::size_t stride;
  backend::Array<double> memory;

  Records(int r, std::int64_t doubles)
      : ranks(r),
        count(doubles),
        stride(sizeof(RecordHead) + index(doubles + 3) * sizeof(double)),
        memory(index(r) * stride / sizeof(double), 0.0) {}
  std::byte* at(int rank) { return reinterpret_cast<std::byte*>(memory.data()) + index(rank) * stride; }
  RecordHead& head(int rank) { return *reinterpret_cast<RecordHead*>(at(rank)); }
  double* payload(int rank) { return steps::payload_of(at(rank)); }
  Gathered gathered() { return {at(0), stride, ranks, nullptr}; }
};

/// Relative to 1 and more: a few tens of roundings, of values of about 1.
inline void expect_near(double actual, double expected, const char* what, std::int64_t i) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(actual)) << what << " " << i;
    return;
  }
  constexpr double model = 64 * std::numeric_limits<double>::epsilon();
  EXPECT_NEAR(actual, expected, model * (1 + std::abs(expected))) << what << " " << i;
}
inline void expect_near(const backend::Array<double>& actual, const backend::Array<double>& expected,
                        const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i)
    expect_near(actual[i], expected[i], what, static_cast<std::int64_t>(i));
}
inline void expect_same(LayerMemory& actual, LayerMemory& expected) {
  EXPECT_EQ(actual.turn[0], expected.turn[0]);
  const Counters &a = actual.view().now(), &b = expected.view().now();
  EXPECT_EQ(a.calls, b.calls);
  EXPECT_EQ(a.counted, b.counted);
  EXPECT_EQ(a.tracked, b.tracked);
  EXPECT_EQ(a.batches, b.batches);
  EXPECT_EQ(a.done, b.done);
  EXPECT_EQ(a.weight, b.weight);
  EXPECT_EQ(a.count, b.count);
  EXPECT_EQ(a.candidate, b.candidate);
  EXPECT_EQ(a.derivatives, b.derivatives);
  EXPECT_EQ(a.entries, b.entries);
  EXPECT_EQ(a.newest, b.newest);
  expect_near(actual.values, expected.values, "state");
  expect_near(actual.ring_count, expected.ring_count, "counts of the window");
  expect_near(actual.ring_mean, expected.ring_mean, "means of the window");
  expect_near(actual.ring_var, expected.ring_var, "variances of the window");
  expect_near(actual.center, expected.center, "centers");
  expect_near(actual.past, expected.past, "compensated moments");
}

/// forward_finish but for y: the steps for one group after the other.
inline void finish_by_steps(const ForwardArgs& args, const Gathered& gathered) {
  const steps::Layout layout{args.norm.groups()};
  const double count =
      args.record == nullptr ? static_cast<double>(args.norm.group_size()) : steps::summed(gathered, 0);
  const Turn turn = steps::turn_of(args.rules, args.state.now(), count, args.derives);
  for (std::int64_t g = 0; g < layout.groups; ++g) {
    const auto current = args.record == nullptr ? steps::moments_of(count, args.mean[g], args.m2[g])
                                                : steps::moments_of(gathered, layout, g);
    const auto product = [&](std::int64_t entry, bool of_variance) {
      if (!args.rules.compensates()) return 0.0;
      return steps::summed(gathered, of_variance ? layout.dvar(entry, g) : layout.dmean(entry, g));
    };
    args.frame.set(g, steps::frame_of(args.rules, args.state, turn, g, current, product, true));
  }
  *args.frame.scalars = {turn.count, turn.call};
  *args.state.last = turn;
  args.state.next() = steps::advanced(args.rules, args.state.now(), turn);
  ++*args.state.parity;
}

/// y as its definition has it, from a frame, against `y`; and the mask of `y`.
inline void expect_output(const ForwardArgs& args, const float* y, const std::uint8_t* mask) {
  constexpr double unit = std::numeric_limits<float>::epsilon() / 2.0;
  const auto* x = static_cast<const float*>(args.x);
  const auto* residual = static_cast<const float*>(args.residual);
  for (std::int64_t i = 0; i < args.fine.elements(); ++i) {
    const std::int64_t f = args.fine.group_of(i), p = args.to_affine(f);
    const auto frame = args.frame.get(args.to_norm(f));
    const double scale = args.weight[p] * frame.rstd * frame.correction.r;
    const double shift = args.weight[p] * frame.correction.d + args.bias[p];
    const double moved = (static_cast<double>(x[i]) - frame.mean) * scale;
    const double added = residual != nullptr ? static_cast<double>(residual[i]) : 0;
    double expected = moved + shift + added;
    if (args.activation.kind == ActivationKind::relu && expected <= 0) expected = 0;
    // roundings of x - center, scale, shift, their sum, and the sum with the residual
    const double size = 2 * std::abs(moved) + std::abs(frame.mean * scale) * unit + 2 * std::abs(shift) +
                        2 * std::abs(moved + shift + added);
    ASSERT_NEAR(static_cast<double>(y[i]), expected, 2 * unit * size) << i;
    if (mask != nullptr) {
      ASSERT_EQ((mask[i / 8] >> (i % 8)) & 1, y[i] <= 0 ? 0 : 1) << i;
    }
  }
}

}  // namespace allnorm::finish_test
