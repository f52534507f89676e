// Mean-only Batch Normalization against plain loops.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "harness.hpp"
#include "operation_cases.hpp"

namespace mean_only_batch_norm_test {
namespace {

using namespace operation_cases;

struct Expected {
  Doubles output, dx, dbeta, mean, running_mean;
};

// With momentum 0.3. `training`: otherwise from the running mean that is given.
Expected loops(const Arrays& t, const Doubles& running_mean, bool training) {
  const Array& x = t.at("input");
  const Doubles &dy = t.at("grad_output").v, &beta = t.at("bias").v;
  const auto N = static_cast<std::size_t>(x.shape[0]), C = static_cast<std::size_t>(x.shape[1]);
  const std::size_t S = N * C == 0 ? 0 : x.v.size() / (N * C);
  Expected e{Doubles(x.v.size()), Doubles(x.v.size()), Doubles(C), Doubles(C), running_mean};
  const auto M = static_cast<double>(N * S);
  for (std::size_t c = 0; c < C; ++c) {
    double& mean = e.mean[c];
    double g = 0;
    const auto each = [&](const auto& what) {
      for (std::size_t n = 0; n < N; ++n)
        for (std::size_t s = 0; s < S; ++s) what((n * C + c) * S + s);
    };
    each([&](std::size_t i) { mean += x.v[i] / M; });
    if (training && M > 0) e.running_mean[c] += 0.3 * (mean - running_mean[c]);
    if (!training) mean = running_mean[c];
    each([&](std::size_t i) { g += dy[i]; });
    e.dbeta[c] = g;
    each([&](std::size_t i) {
      e.output[i] = x.v[i] - mean + beta[c];
      e.dx[i] = training ? dy[i] - g / M : dy[i];
    });
  }
  return e;
}

Arrays tensors(Random& random, const Extents& shape, DType dtype) {
  return {{"input", rounded(cases::channelwise(random, shape, 0.5, 1), dtype)},
          {"grad_output", drawn(random, shape, dtype)},
          {"bias", {{shape[1]}, cases::betas(random, shape[1])}}};
}

void expect_equal(Arrays& got, const Expected& want, DType dtype) {
  const double map = tolerance_of(dtype);
  expect_near("output", got["output"].v, want.output, map, 1);
  expect_near("grad_input", got["grad_input"].v, want.dx, map, 4);
  expect_near("grad_bias", got["grad_bias"].v, want.dbeta, dtype == DType::f64 ? 1e-12 : 1e-5,
              std::sqrt(static_cast<double>(want.dx.size())));
  expect_near("mean", got["mean"].v, want.mean, 1e-12, 1);
}

TEST(MeanOnlyBatchNorm, EqualsPlainLoops) {
  const std::vector<Extents> shapes = {{5, 4}, {1, 3}, {3, 5, 7}, {2, 3, 4, 5}, {2, 17, 3, 2, 3}, {0, 3, 4}};
  for_each_kind(shapes, [](DType dtype, Order order, const Extents& shape) {
    Random random(3);
    Subject subject(parse_layer("mean_only_batch_norm:momentum=0.3"), shape[1], dtype, order);
    Doubles mean(static_cast<std::size_t>(shape[1]), 0);
    for (int step = 0; step < 2; ++step) {
      const Arrays given = tensors(random, shape, dtype);
      const Expected want = loops(given, mean, true);
      Arrays got = subject(given);
      expect_equal(got, want, dtype);
      mean = want.running_mean;
      expect_near("running_mean", subject.state("running_mean"), mean, 1e-12, 1);
    }
    subject.operation->set_training(false);
    const Arrays given = tensors(random, shape, dtype);
    Arrays got = subject(given);
    expect_equal(got, loops(given, mean, false), dtype);
  });
}

TEST(MeanOnlyBatchNorm, GradientsAreCentralDifferences) {
  Random random(5);
  expect_gradients([] { return Subject(parse_layer("mean_only_batch_norm"), 3); },
                   tensors(random, {2, 3, 2, 2}, DType::f64));
}

TEST(MeanOnlyBatchNorm, KeepsAMeanAlone) {
  Random random(9);
  Subject first(parse_layer("mean_only_batch_norm"), 3);
  first(tensors(random, {4, 3, 5}, DType::f64));
  const State state = first.operation->state(first.queue), saved = first.operation->save(first.queue);
  ASSERT_EQ(state.entries.size(), 1u);
  EXPECT_EQ(state.entries[0].name, "running_mean");
  EXPECT_EQ(saved.find("running_var"), nullptr);
  Subject second(parse_layer("mean_only_batch_norm"), 3);
  second.operation->load(saved, second.queue);
  const Arrays given = tensors(random, {4, 3, 5}, DType::f64);
  first(given), second(given);
  EXPECT_EQ(first.state("running_mean"), second.state("running_mean"));
}

// Squares that overflow are not in its way, and what is not finite stays in its call and channel.
TEST(MeanOnlyBatchNorm, OfValuesFarFromOne) {
  Random random(9);
  Arrays given = tensors(random, {4, 3, 5}, DType::f64);
  for (double& v : given["input"].v) v *= 1e200;
  Subject subject(parse_layer("mean_only_batch_norm:momentum=0.3"), 3);
  Arrays got = subject(given);
  const Expected want = loops(given, {0, 0, 0}, true);
  expect_near("output", got["output"].v, want.output, 1e-12);
  expect_near("grad_input", got["grad_input"].v, want.dx, 1e-12, 1);
  expect_near("running_mean", subject.state("running_mean"), want.running_mean, 1e-12);
  const Doubles before = subject.state("running_mean");
  given = tensors(random, {4, 3, 5}, DType::f64);
  given["input"].v[5] = std::numeric_limits<double>::quiet_NaN();  // channel 1
  subject(given);
  const Doubles after = subject.state("running_mean");
  EXPECT_NE(after[0], before[0]);
  EXPECT_EQ(after[1], before[1]);
  EXPECT_NE(after[2], before[2]);
}

// Ranks with uneven parts of a batch give what one rank gives on all of it.
TEST(MeanOnlyBatchNorm, OfRanksIsThatOfTheWholeBatch) {
  Random random(9);
  const Arrays whole = tensors(random, {5, 3, 4}, DType::f64);
  const Expected want = loops(whole, {0, 0, 0}, true);
  harness::run(3, [&](const harness::World& world, Queue&) {
    const std::size_t parts[] = {0, 3 * 12, 3 * 12, 5 * 12};  // the second rank has none
    const auto rank = static_cast<std::size_t>(world->rank());
    const auto part = [&](const Doubles& all) {
      return Doubles(all.begin() + static_cast<std::ptrdiff_t>(parts[rank]),
                     all.begin() + static_cast<std::ptrdiff_t>(parts[rank + 1]));
    };
    Arrays own = whole;
    for (const char* name : {"input", "grad_output"})
      own[name] = {{static_cast<std::int64_t>(parts[rank + 1] - parts[rank]) / 12, 3, 4}, part(whole.at(name).v)};
    Subject subject(parse_layer("mean_only_batch_norm:momentum=0.3:sync=world"), 3, DType::f64, Order::channels_first,
                    world);
    Arrays got = subject(own);
    expect_near("output", got["output"].v, part(want.output), 1e-12, 1);
    expect_near("grad_input", got["grad_input"].v, part(want.dx), 1e-12, 1);
    expect_near("mean", got["mean"].v, want.mean, 1e-12, 1);
    expect_near("running_mean", subject.state("running_mean"), want.running_mean, 1e-12, 1);
  });
}

}  // namespace
}  // namespace mean_only_batch_norm_test
