// Instance Normalization with running statistics against plain loops: the averages over the samples, and inference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "backend.hpp"
#include "harness.hpp"
#include "operation_cases.hpp"

namespace instance_norm_test {
namespace {

using namespace operation_cases;

struct Expected {
  Doubles output, dx, dgamma, dbeta, mean, rstd, running_mean, running_var;
};

// A call with momentum 0.3 and eps 1e-3 as loops. `training`: otherwise from the running statistics that are given.
Expected loops(const Arrays& t, Doubles running_mean, Doubles running_var, bool training) {
  const Array& x = t.at("input");
  const Doubles &dy = t.at("grad_output").v, &gamma = t.at("weight").v, &beta = t.at("bias").v;
  const auto N = static_cast<std::size_t>(x.shape[0]), C = static_cast<std::size_t>(x.shape[1]);
  const std::size_t S = N * C == 0 ? 0 : x.v.size() / (N * C);
  Expected e{Doubles(x.v.size()), Doubles(x.v.size()), Doubles(C), Doubles(C), {}, {}, running_mean, running_var};
  Doubles means(C), vars(C);
  const auto m = static_cast<double>(S);
  for (std::size_t n = 0; n < N; ++n)
    for (std::size_t c = 0; c < C; ++c) {
      const std::size_t at = (n * C + c) * S;
      double mean = 0, var = 0;
      for (std::size_t s = 0; s < S; ++s) mean += x.v[at + s] / m;
      for (std::size_t s = 0; s < S; ++s) var += (x.v[at + s] - mean) * (x.v[at + s] - mean) / m;
      means[c] += mean / static_cast<double>(N);
      vars[c] += var * (S > 1 ? m / (m - 1) : 1) / static_cast<double>(N);
      if (!training) mean = running_mean[c], var = running_var[c];
      const double rstd = 1 / std::sqrt(var + 1e-3);
      e.mean.push_back(mean);
      e.rstd.push_back(rstd);
      double g = 0, gx = 0;
      for (std::size_t s = 0; s < S; ++s) {
        const double hat = (x.v[at + s] - mean) * rstd;
        e.output[at + s] = gamma[c] * hat + beta[c];
        e.dgamma[c] += dy[at + s] * hat;
        e.dbeta[c] += dy[at + s];
        g += gamma[c] * dy[at + s] / m;
        gx += gamma[c] * dy[at + s] * hat / m;
      }
      for (std::size_t s = 0; s < S; ++s) {
        const double hat = (x.v[at + s] - mean) * rstd;
        e.dx[at + s] = rstd * (training ? gamma[c] * dy[at + s] - g - hat * gx : gamma[c] * dy[at + s]);
      }
    }
  if (training && N * S > 0)
    for (std::size_t c = 0; c < C; ++c) {
      e.running_mean[c] += 0.3 * (means[c] - running_mean[c]);
      e.running_var[c] += 0.3 * (vars[c] - running_var[c]);
    }
  return e;
}

Layer tracking() { return parse_layer("instance_norm:track=true:momentum=0.3:eps=1e-3"); }

Arrays tensors(Random& random, const Extents& shape, DType dtype) {
  return {{"input", rounded(cases::channelwise(random, shape, 0.5, 1), dtype)},
          {"grad_output", drawn(random, shape, dtype)},
          {"weight", {{shape[1]}, cases::gammas(random, shape[1])}},
          {"bias", {{shape[1]}, cases::betas(random, shape[1])}}};
}

void expect_equal(Arrays& got, const Expected& want, DType dtype) {
  const double map = tolerance_of(dtype);
  double rstd = 0;
  for (const double r : want.rstd) rstd = std::max(rstd, r);
  expect_near("output", got["output"].v, want.output, map, 1);
  expect_near("grad_input", got["grad_input"].v, want.dx, map, 6 * rstd);
  const double terms = std::sqrt(static_cast<double>(want.dx.size()));
  const double sums = dtype == DType::f64 ? 1e-12 : 1e-5;
  expect_near("grad_weight", got["grad_weight"].v, want.dgamma, sums, terms);
  expect_near("grad_bias", got["grad_bias"].v, want.dbeta, sums, terms);
  const double statistics = statistics_tolerance_of(dtype);
  expect_near("mean", got["mean"].v, want.mean, statistics, 1);
  expect_near("rstd", got["rstd"].v, want.rstd, statistics);
}

TEST(InstanceNorm, RunningStatisticsAreAveragesOverTheSamples) {
  const std::vector<Extents> shapes = {{3, 4},           {1, 3, 1}, {3, 5, 7}, {2, 3, 4, 5},
                                       {2, 17, 3, 2, 3}, {0, 3, 4}, {2, 3, 0}};
  for_each_kind(shapes, [](DType dtype, Order order, const Extents& shape) {
    if (backend::takes_some && shape.size() == 5) return;
    Random random(3);
    const auto C = static_cast<std::size_t>(shape[1]);
    Subject subject(tracking(), shape[1], dtype, order);
    Doubles mean(C, 0), var(C, 1);
    const double statistics = statistics_tolerance_of(dtype);
    for (int step = 0; step < 3; ++step) {
      const Arrays given = tensors(random, shape, dtype);
      const Expected want = loops(given, mean, var, true);
      Arrays got = subject(given);
      expect_equal(got, want, dtype);
      mean = want.running_mean, var = want.running_var;
      expect_near("running_mean", subject.state("running_mean"), mean, statistics, 1);
      expect_near("running_var", subject.state("running_var"), var, statistics, 1);
    }
    const bool empty = shape[0] == 0 || shape.back() == 0;  // nothing changes
    EXPECT_EQ(subject.state("num_batches_tracked"), Doubles{empty ? 0.0 : 3.0});
    subject.operation->set_training(false);
    subject.layer.options.training = false;
    const Arrays given = tensors(random, shape, dtype);
    Arrays got = subject(given);
    expect_equal(got, loops(given, mean, var, false), dtype);
    expect_near("running_mean", subject.state("running_mean"), mean, statistics, 1);
  });
}

TEST(InstanceNorm, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  Random random(5);
  for (const bool training : {true, false}) {
    Layer layer = tracking();
    layer.options.training = training;
    expect_gradients([&] { return Subject(layer, 3); }, tensors(random, {2, 3, 2, 2}, DType::f64));
  }
}

// The state alone makes the numbers that follow.
TEST(InstanceNorm, GoesOnFromItsSavedState) {
  Random random(9);
  Subject first(tracking(), 3);
  first(tensors(random, {4, 3, 5}, DType::f64));
  Subject second(tracking(), 3);
  second.operation->load(first.operation->save(first.queue), second.queue);
  const Arrays given = tensors(random, {4, 3, 5}, DType::f64);
  for (Subject* subject : {&first, &second}) (*subject)(given);
  for (const char* name : {"running_mean", "running_var", "num_batches_tracked"})
    EXPECT_EQ(first.state(name), second.state(name)) << name;
  EXPECT_EQ(second.state("num_batches_tracked"), Doubles{2});
}

TEST(InstanceNorm, ValuesThatAreNotFiniteStayInTheirCall) {
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
    Random random(9);
    Arrays given = tensors(random, {4, 3, 5}, DType::f64);
    Subject clean(tracking(), 3), hit(tracking(), 3);
    clean(given);
    given["input"].v[5 * 3 + 7] = value;  // sample 1, channel 1
    hit(given);
    for (const char* name : {"running_mean", "running_var"}) {
      const Doubles a = hit.state(name), b = clean.state(name);
      EXPECT_EQ(a[0], b[0]) << name;
      EXPECT_EQ(a[1], name == std::string("running_var") ? 1 : 0) << name;
      EXPECT_EQ(a[2], b[2]) << name;
    }
    EXPECT_EQ(hit.state("num_batches_tracked"), Doubles{1});
  }
}

// Groups of ranks that hold parts of the space have the same running statistics, those of the whole.
TEST(InstanceNorm, OfRanksThatShareItsSets) {
  Random random(9);
  const Arrays whole = tensors(random, {2, 3, 8}, DType::f64);
  const Expected want = loops(whole, {0, 0, 0}, {1, 1, 1}, true);
  harness::run(2, [&](const harness::World& world, Queue&) {
    Arrays own = whole;
    for (const char* name : {"input", "grad_output"})
      own[name] = part_of(whole.at(name), 2, 4 * world->rank(), 4 * world->rank() + 4);
    Subject subject(tracking(), 3, DType::f64, Order::channels_first, world);
    Arrays got = subject(own);
    expect_near("mean", got["mean"].v, want.mean, 1e-12, 1);
    expect_near("running_mean", subject.state("running_mean"), want.running_mean, 1e-12, 1);
    expect_near("running_var", subject.state("running_var"), want.running_var, 1e-12, 1);
  });
}

TEST(InstanceNorm, RefusesWhatRunsWithoutRunningStatistics) {
  const auto told = [](const char* text) { return harness::error_of([&] { parse_layer(text).check(); }); };
  EXPECT_EQ(told("instance_norm:training=false"),
            "invalid argument: attribute training of instance_norm is false, must be true where no running statistics "
            "are kept");
  EXPECT_EQ(told("instance_norm:training=false:track=true"), "");
  EXPECT_EQ(told("instance_norm:track=1"), "invalid argument: attribute track is '1', must be true or false");
  Random random(9);
  Subject without(parse_layer("instance_norm"), 3);
  without(tensors(random, {4, 3, 5}, DType::f64));
  EXPECT_TRUE(without.operation->state(without.queue).entries.empty());
  EXPECT_TRUE(without.operation->save(without.queue).entries.empty());
  State state;
  state.add("running_mean", Doubles{1, 2, 3}.data(), Shape{3});
  EXPECT_EQ(harness::error_of([&] { without.operation->set_state(state, without.queue); }),
            "invalid argument: running_mean is given, must not be for instance_norm");
}

}  // namespace
}  // namespace instance_norm_test
