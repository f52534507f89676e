// Positional Normalization against the oracle: gradients that flow into mean and deviation, Bessel's factor, and ranks
// that hold parts of the channels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "harness.hpp"
#include "operation_cases.hpp"

namespace positional_norm_test {
namespace {

using namespace operation_cases;

Layer layer_of(bool unbiased, const char* eps = "1e-3") {
  return parse_layer("positional_norm:eps=" + std::string(eps) + ":unbiased=" + (unbiased ? "true" : "false"));
}

Extents of_places(const Extents& shape) {
  Extents made = shape;
  made[0] = made[1] = 1;
  return made;
}
Extents of_positions(const Extents& shape) {
  Extents made = shape;
  made[1] = 1;
  return made;
}

struct Given {
  bool affine, output, mean, std;
};

Arrays tensors(Random& random, const Extents& shape, DType dtype, const Given& given) {
  Arrays made{{"input", drawn(random, shape, dtype, 0.5)}};
  const Extents places = of_places(shape), positions = of_positions(shape);
  if (given.affine) {
    made["weight"] = {places, cases::gammas(random, reference::elements(places))};
    made["bias"] = {places, cases::betas(random, reference::elements(places))};
  }
  if (given.output) made["grad_output"] = drawn(random, shape, dtype);
  if (given.mean) made["grad_mean"] = cases::normal(random, positions);
  if (given.std) made["grad_std"] = cases::normal(random, positions);
  return made;
}

void expect_equal(Arrays& got, const Arrays& t, double eps, bool unbiased, DType dtype) {
  const auto of = [&](const char* name) { return t.count(name) ? t.at(name).v : Doubles{}; };
  const Array &x = t.at("input"), dy = t.count("grad_output") ? t.at("grad_output") : reference::zeros(x.shape);
  const auto sets = reference::positional_norm_sets(x.shape);
  const auto want = reference::positional_forward(x, sets, of("weight"), of("bias"), eps, unbiased);
  const auto gradients =
      reference::positional_backward(x, sets, of("weight"), dy, of("grad_mean"), of("grad_std"), eps, unbiased);
  const double map = tolerance_of(dtype), sums = statistics_tolerance_of(dtype);
  double rstd = 0;
  Doubles deviation;
  for (const double r : want.rstd) rstd = std::max(rstd, r), deviation.push_back(1 / r);
  expect_near("output", got["output"].v, want.y.v, map, 1);
  expect_near("mean", got["mean"].v, want.mean, sums, 1);
  expect_near("std", got["std"].v, deviation, sums);
  expect_near("grad_input", got["grad_input"].v, gradients.dx.v, map, 6 * std::max(rstd, 1.0));
  const double terms = std::sqrt(static_cast<double>(x.v.size()));
  if (t.count("weight")) expect_near("grad_weight", got["grad_weight"].v, gradients.dgamma, sums, terms);
  if (t.count("bias")) expect_near("grad_bias", got["grad_bias"].v, gradients.dbeta, sums, terms);
}

const std::vector<Extents> shapes = {{3, 4},     {2, 3, 1},  {3, 5, 7},   {2, 8, 8, 8}, {2, 17, 3, 5}, {2, 3, 2, 3, 2},
                                     {1, 70, 2}, {1, 6, 33}, {2, 600, 3}, {0, 3, 4},    {2, 3, 0}};

TEST(PositionalNorm, EqualsTheOracle) {
  for_each_kind(shapes, [](DType dtype, Order order, const Extents& shape) {
    for (const bool unbiased : {false, true})
      for (const Given& given :
           {Given{true, true, true, true}, Given{false, true, false, false}, Given{true, false, true, false},
            Given{false, false, false, true}, Given{false, true, true, false}, Given{true, false, true, true}}) {
        if (backend::takes_some && given.output == given.mean && !given.affine) continue;
        SCOPED_TRACE(std::string(unbiased ? "unbiased" : "") + (given.affine ? ", affine" : "") +
                     (given.output ? ", output" : "") + (given.mean ? ", mean" : "") + (given.std ? ", std" : ""));
        Random random(3);
        const Arrays t = tensors(random, shape, dtype, given);
        Arrays got = Subject(layer_of(unbiased), shape[1], dtype, order)(t);
        expect_equal(got, t, 1e-3, unbiased, dtype);
      }
  });
}

TEST(PositionalNorm, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  for (const bool unbiased : {false, true})
    for (const bool output : {false, true}) {
      Random random(5);
      expect_gradients([&] { return Subject(layer_of(unbiased, "0.1"), 4); },
                       tensors(random, {2, 4, 3}, DType::f64, {true, output, true, true}));
    }
}

// One channel: the deviation is the root of eps, y = beta and the mean is x; with Bessel's factor there is no value.
TEST(PositionalNorm, OfOneChannel) {
  Random random(3);
  const Extents shape{2, 1, 3};
  const Arrays t = tensors(random, shape, DType::f64, {true, true, false, false});
  Arrays got = Subject(layer_of(false))(t);
  EXPECT_EQ(got["mean"].v, t.at("input").v);
  for (const double v : got["std"].v) EXPECT_NEAR(v, std::sqrt(1e-3), 1e-16);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(got["output"].v[i], t.at("bias").v[i % 3]);
  EXPECT_EQ(got["grad_input"].v, Doubles(6, 0.0));
  EXPECT_EQ(got["grad_weight"].v, Doubles(3, 0.0));

  const Arrays direct = tensors(random, shape, DType::f64, {false, false, true, true});
  Arrays through = Subject(layer_of(false))(direct);
  expect_near("grad_input", through["grad_input"].v, direct.at("grad_mean").v, 1e-15);

  Arrays unbiased = Subject(layer_of(true))(t);
  EXPECT_EQ(unbiased["mean"].v, t.at("input").v);
  for (const char* name : {"output", "std", "grad_input", "grad_weight"})
    for (const double v : unbiased[name].v) EXPECT_TRUE(std::isnan(v)) << name;
}

// A constant position: y = beta, and dx has the gradient through the mean alone.
TEST(PositionalNorm, OfConstantPositions) {
  for (const bool unbiased : {false, true}) {
    Random random(3);
    Arrays t = tensors(random, {2, 4, 3}, DType::f64, {true, true, true, true});
    t["input"] = cases::constant({2, 4, 3}, 0.5);
    Arrays got = Subject(layer_of(unbiased), 4)(t);
    for (std::size_t i = 0; i < 24; ++i) EXPECT_EQ(got["output"].v[i], t["bias"].v[i % 3]);
    expect_equal(got, t, 1e-3, unbiased, DType::f64);
  }
}

TEST(PositionalNorm, OfAllScales) {
  for (const auto& [dtype, scales] :
       {std::pair{DType::f64, Doubles{1e-140, 1e-40, 1e40, 1e140}}, {DType::f32, Doubles{1e-30, 1e-10, 1e10, 1e30}}})
    for (const double scale : scales)
      for (const bool unbiased : {false, true}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + ", scale " + std::to_string(std::log10(scale)));
        Random random(5);
        Arrays t = tensors(random, {2, 8, 3}, dtype, {true, true, true, true});
        for (double& v : t["input"].v) v *= scale;
        t["input"] = rounded(t["input"], dtype);
        for (const char* name : {"grad_mean", "grad_std"})  // so that neither way drowns the other
          for (double& v : t[name].v) v /= scale;
        Arrays got = Subject(layer_of(unbiased, "0"), 8, dtype)(t);
        const auto sets = reference::positional_norm_sets({2, 8, 3});
        const auto want = reference::positional_backward(t["input"], sets, t["weight"].v, t["grad_output"],
                                                         t["grad_mean"].v, t["grad_std"].v, 0, unbiased);
        const auto y = reference::positional_forward(t["input"], sets, t["weight"].v, t["bias"].v, 0, unbiased);
        expect_near("output", got["output"].v, y.y.v, tolerance_of(dtype), 1);
        expect_near("grad_input", got["grad_input"].v, want.dx.v, tolerance_of(dtype), 6 / scale);
      }
}

// Ranks that hold parts of the channels: the gradients of mean and deviation count once, wherever they are given.
TEST(PositionalNorm, OverRanksIsOneRankOnAllChannels) {
  const Extents shape{2, 7, 3};
  for (const int ranks : {2, 3})
    for (const bool unbiased : {false, true})
      for (const bool output : {false, true}) {
        Random random(3);
        const Arrays t = tensors(random, shape, DType::f64, {true, output, true, true});
        Arrays want = Subject(layer_of(unbiased), shape[1])(t);
        std::vector<Arrays> got(static_cast<std::size_t>(ranks));
        const auto own = [&](const Array& whole, int rank) {
          return part_of(whole, 1, shape[1] * rank / ranks, shape[1] * (rank + 1) / ranks);
        };
        harness::run(ranks, [&](const harness::World& world, Queue&) {
          Arrays part = t;
          for (const char* name : {"input", "grad_output"})
            if (t.count(name)) part[name] = own(t.at(name), world->rank());
          if (world->rank() != 0) part.erase("grad_mean"), part.erase("grad_std");
          // a rank without a gradient at all has its share of the others' all the same
          if (!part.count("grad_output") && world->rank() != 0)
            part["grad_output"] = reference::zeros(part["input"].shape);
          got[static_cast<std::size_t>(world->rank())] =
              Subject(layer_of(unbiased), part["input"].shape[1], DType::f64, Order::channels_first, world)(part);
        });
        Doubles dgamma(3);
        for (int rank = 0; rank < ranks; ++rank) {
          Arrays& part = got[static_cast<std::size_t>(rank)];
          expect_near("mean", part["mean"].v, want["mean"].v, 1e-12, 1);
          expect_near("std", part["std"].v, want["std"].v, 1e-12);
          for (const char* name : {"output", "grad_input"})
            expect_near(name, part[name].v, own(want[name], rank).v, 1e-12, 1);
          for (std::size_t s = 0; s < 3; ++s) dgamma[s] += part["grad_weight"].v[s];
        }
        expect_near("grad_weight", dgamma, want["grad_weight"].v, 1e-12, 1);
      }
}

TEST(PositionalNorm, RefusesWhatDoesNotFit) {
  Random random(3);
  Arrays t = tensors(random, {2, 3, 4}, DType::f64, {true, true, true, true});
  const auto told = [&](const Arrays& tensors) {
    return harness::error_of([&] { Subject(layer_of(false), 3)(tensors); });
  };
  EXPECT_EQ(told(t), "");
  t["grad_std"] = cases::normal(random, {2, 4});
  EXPECT_EQ(told(t), "invalid input: grad_std has shape (2,4), must have (2,1,4)");

  Queue queue = backend::queue();
  backend::Array<double> x(2, 1), y(2), direct(2);
  const Shape shape{1, 1, 2};
  const auto positional = make_operation(Layer("positional_norm"), 1, nullptr, queue);
  const auto in = backend::view(std::as_const(x).data(), shape),
             gradient = backend::view(std::as_const(direct).data(), shape);
  EXPECT_EQ(harness::error_of([&] {
              positional->forward({{"input", in}, {"grad_mean", gradient}},
                                  {{"output", backend::view(y.data(), shape)}}, queue);
            }),
            "invalid argument: grad_mean is given, must not be for positional_norm");
  Norm other(Layer("instance_norm"), 1, nullptr, queue);
  ForwardInputs of_other;
  of_other.input = in;
  const Saved saved = other.forward(of_other, backend::view(y.data(), shape), queue);
  EXPECT_EQ(harness::error_of([&] { other.backward(saved, {.output = in, .mean = gradient}, {}, queue); }),
            "invalid argument: grad_mean is given, must not be for instance_norm");
  EXPECT_NE(
      harness::error_of([&] { other.backward(saved, ConstTensorView{}, {}, queue); }).find("grad_output has shape"),
      std::string::npos);
}

}  // namespace
}  // namespace positional_norm_test
