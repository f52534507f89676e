// Local Response Normalization against plain loops, and at its edges.
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "harness.hpp"
#include "launch/reference/operations.hpp"
#include "operation_cases.hpp"

namespace local_response_norm_test {
namespace {

using namespace operation_cases;
using harness::error_of;

struct Options {
  std::int64_t n = 5;
  std::string convention = "pytorch";
  double alpha = 0.3, beta = 0.75, k = 1;
};

Layer layer_of(const Options& o) {
  Layer layer("local_response_norm");
  layer.set("size", std::to_string(o.n)).set("convention", o.convention);
  layer.options.alpha = o.alpha;
  layer.options.beta = o.beta;
  layer.options.k = o.k;
  return layer;
}

reference::Neighbours loops(const Options& o, const Array& x, const Array& dy) {
  return reference::neighbours(layer_of(o).options, x, dy);
}

Arrays tensors(Random& random, const Extents& shape, DType dtype, double scale = 1) {
  Array x = cases::normal(random, shape, 0.3, 1.5);
  for (double& value : x.v) value *= scale;
  return {{"input", rounded(x, dtype)}, {"grad_output", rounded(cases::normal(random, shape), dtype)}};
}

void expect_loops(const Options& o, const Extents& shape, DType dtype, Order order) {
  SCOPED_TRACE(o.convention + ", n " + std::to_string(o.n) + ", " + std::string(to_string(dtype)) + ", " +
               std::to_string(shape.size()) + "-D, " + std::to_string(shape[1]) + " channels" +
               (order == Order::channels_last ? ", last" : ""));
  Random random(3);
  const Arrays given = tensors(random, shape, dtype);
  const auto want = loops(o, given.at("input"), given.at("grad_output"));
  Arrays got = Subject(layer_of(o), shape[1], dtype, order)(given);
  expect_near("output", got["output"].v, want.y.v, tolerance_of(dtype));
  expect_near("grad_input", got["grad_input"].v, want.dx.v, tolerance_of(dtype));
}

TEST(LocalResponseNorm, EqualsPlainLoops) {
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16})
    for (const Extents& shape :
         {Extents{2, 7}, Extents{3, 5, 3}, Extents{2, 4, 3, 5}, Extents{2, 3, 2, 3, 2}, Extents{1, 1, 4},
          Extents{2, 37, 5, 7}, Extents{1, 3, 700}, Extents{0, 4, 3}, Extents{2, 3, 0}})
      for (const Order order : {Order::channels_first, Order::channels_last}) expect_loops({}, shape, dtype, order);
}

TEST(LocalResponseNorm, HasTheWindowOfEveryConvention) {
  for (const char* convention : {"pytorch", "onnx", "caffe", "alexnet"})
    for (const std::int64_t n : {1, 2, 3, 4, 8, 13, 14, 50}) {
      if (convention == std::string("caffe") && n % 2 == 0) continue;
      for (const DType dtype : {DType::f64, DType::f32})
        for (const Order order : {Order::channels_first, Order::channels_last})
          expect_loops({n, convention}, {2, 6, 5}, dtype, order);
    }
}

TEST(LocalResponseNorm, HasItsPowers) {
  for (const double beta : {0.0, 0.5, 0.75, 1.0, 2.3})
    for (const double k : {1.0, 2.0})
      for (const DType dtype : {DType::f64, DType::f32})
        expect_loops({5, "alexnet", 0.1, beta, k}, {2, 9, 21}, dtype, {});
  for (const double alpha : {0.0, 1e-4, 50.0}) expect_loops({5, "pytorch", alpha}, {2, 9, 21}, DType::f32, {});
}

TEST(LocalResponseNorm, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  for (const char* convention : {"pytorch", "onnx", "alexnet"})
    for (const std::int64_t n : {3, 4}) {
      Random random(5);
      operation_cases::expect_gradients(
          [&] {
            return Subject(layer_of({n, convention}));
          },
          tensors(random, {2, 5, 2}, DType::f64));
    }
}

// Squares that leave the type, all over and beside others that do not: f32's cannot hold those of 1e30.
TEST(LocalResponseNorm, OfAllScales) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const double scale : {1e-150, 1e-30, 1e-10, 1e5, 1e10, 1e18, 1e30, 1e150}) {
      if (dtype != DType::f64 && (scale < 1e-30 || scale > 1e30)) continue;
      for (const Order order : {Order::channels_first, Order::channels_last}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + ", " + std::to_string(std::log10(scale)));
        Random random(7);
        Arrays given = tensors(random, {2, 9, 40}, dtype, scale);
        // what comes back is about P^-0.75 of this: a normal number of the type
        const double upstream = scale > 1e20 ? scale : 1;
        for (double& value : given["grad_output"].v) value *= upstream;
        given["grad_output"] = rounded(given["grad_output"], dtype);
        const auto want = loops({}, given["input"], given["grad_output"]);
        Arrays got = Subject(layer_of({}), 9, dtype, order)(given);
        expect_near("output", got["output"].v, want.y.v, tolerance_of(dtype));
        expect_near("grad_input", got["grad_input"].v, want.dx.v, tolerance_of(dtype));
      }
    }
}

TEST(LocalResponseNorm, LargeValuesReachNoFurtherThanTheirWindow) {
  const Extents shape{1, 12, 20};
  for (const Order order : {Order::channels_first, Order::channels_last}) {
    Random random(7);
    Arrays given = tensors(random, shape, DType::f32);
    for (std::size_t s = 0; s < 20; s += 3) given["input"].v[5 * 20 + s] = 1e30f;
    const auto want = loops({}, given["input"], given["grad_output"]);
    Arrays got = Subject(layer_of({}), 12, DType::f32, order)(given);
    for (std::size_t i = 0; i < want.y.v.size(); ++i) {
      const double most = 8 * 0x1p-24, least = 1e-37;  // below, f32 has fewer digits
      EXPECT_NEAR(got["output"].v[i], want.y.v[i], most * std::abs(want.y.v[i]) + least) << i;
      const std::size_t c = i / 20;
      if (c < 1 || c > 9) {
        EXPECT_NEAR(got["grad_input"].v[i], want.dx.v[i], most * 4) << i;
      }
    }
  }
}

TEST(LocalResponseNorm, WhatIsNotANumberReachesNoFurtherThanItsWindow) {
  for (const DType dtype : {DType::f64, DType::f32})
    for (const double value : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
      for (const auto& [order, beta] : {std::pair{Order::channels_first, 0.75}, std::pair{Order::channels_last, 0.75},
                                        std::pair{Order::channels_first, 1.3}}) {
        const Options o{5, "pytorch", 0.3, beta};
        Random random(7);
        Arrays given = tensors(random, {1, 12, 20}, dtype);
        Arrays clean = Subject(layer_of(o), 12, dtype, order)(given);
        given["input"].v[5 * 20 + 4] = value;
        Arrays got = Subject(layer_of(o), 12, dtype, order)(given);
        for (std::size_t i = 0; i < got["output"].v.size(); ++i) {
          const std::size_t c = i / 20, away = c < 5 ? 5 - c : c - 5;
          const bool same_place = i % 20 == 4;
          if (i % 20 == 4 && c == 5) {
            EXPECT_TRUE(std::isnan(got["output"].v[i]));
            EXPECT_TRUE(std::isnan(got["grad_input"].v[i]));
          }
          if (!same_place || away > 2) {
            EXPECT_NEAR(got["output"].v[i], clean["output"].v[i], 1e-6) << i;
          }
          if (!same_place || away > 4) {
            EXPECT_NEAR(got["grad_input"].v[i], clean["grad_input"].v[i], 1e-6) << i;
          }
        }
      }
}

TEST(LocalResponseNorm, BitsAreThoseOfAnyNumberOfThreads) {
  Random random(2);
  const Shape shape{5, 24, 61, 9};
  backend::Array<float> x(static_cast<std::size_t>(shape.elements()));
  for (float& value : x) value = static_cast<float>(random.normal());
  x[1000] = 1e25f;  // a tile in double
  if (backend::takes_some) GTEST_SKIP() << "threads are of the CPU";
  std::deque<backend::Array<float>> results;  // they stay where they are
  for (const int threads : {1, 3}) {
    Queue queue = backend::queue(threads);
    const auto operation = make_operation(layer_of({}), 24, nullptr, queue);
    auto& y = results.emplace_back(x.size());
    auto& dx = results.emplace_back(x.size());
    const auto given = backend::view(std::as_const(x).data(), shape);
    const auto saved = operation->forward({{"input", given}}, {{"output", backend::view(y.data(), shape)}}, queue);
    operation->backward(*saved, {{"grad_output", given}}, {{"grad_input", backend::view(dx.data(), shape)}}, queue);
    queue.wait();
  }
  EXPECT_EQ(results[0], results[2]);
  EXPECT_EQ(results[1], results[3]);
}

TEST(LocalResponseNorm, ReplaysAndHasNoState) {
  Random random(3);
  Queue queue = backend::queue();
  const Shape shape{2, 3};
  backend::Array<double> x(6), y(6), again(6);
  for (double& value : x) value = random.normal();
  const auto operation = make_operation(layer_of({}), 3, nullptr, queue);
  const InputSlots inputs{{"input", backend::view(std::as_const(x).data(), shape)}};
  const auto saved = operation->forward(inputs, {{"output", backend::view(y.data(), shape)}}, queue);
  operation->replay(*saved, inputs, {{"output", backend::view(again.data(), shape)}}, queue);
  queue.wait();
  EXPECT_EQ(y, again);
  EXPECT_TRUE(operation->save(queue).entries.empty());
  EXPECT_EQ(error_of([&] {
              operation->infer(inputs, {{"output", backend::view(y.data(), shape)}}, queue);
            }),
            "unsupported: local_response_norm has no running statistics and is the same in inference, must be called "
            "with forward");
  EXPECT_EQ(error_of([&] {
              operation->forward(inputs, {{"output", backend::view(x.data(), shape)}}, queue);
            }),
            "invalid argument: output is in the memory of input, must be in its own: windows read what is written "
            "before");
}

TEST(LocalResponseNorm, RefusesWhatDoesNotFit) {
  const auto told = [](const char* text) { return error_of([&] { parse_layer(text).check(); }); };
  EXPECT_EQ(told("local_response_norm:convention=caffe:size=4"),
            "invalid argument: attribute size is 4, must be odd where convention is caffe");
  EXPECT_EQ(told("local_response_norm:size=0"),
            "invalid argument: attribute size is '0', must be an integer of at least 1");
  EXPECT_EQ(told("local_response_norm:k=-0.5"),
            "invalid argument: attribute k is '-0.5', must be a number of at least 0");
  EXPECT_EQ(told("local_response_norm:alpha=-1"),
            "invalid argument: attribute alpha is '-1', must be a number of at least 0");
  EXPECT_EQ(told("local_response_norm:convention=tf"),
            "invalid argument: attribute convention is 'tf', must be pytorch, onnx, caffe or alexnet");
  EXPECT_EQ(error_of([] {
              Subject{layer_of({})}({{"input", {{4}, {1, 2, 3, 4}}}});
            }),
            "invalid input: input has shape (4,), must have at least 2 axes (N,C,space...)");
}

}  // namespace
}  // namespace local_response_norm_test
