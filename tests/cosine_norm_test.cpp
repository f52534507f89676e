// Cosine Normalization against plain loops, and at its edges.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "backend.hpp"
#include "harness.hpp"
#include "launch/reference/operations.hpp"
#include "operation_cases.hpp"

namespace cosine_norm_test {
namespace {

using namespace operation_cases;
using harness::error_of;

struct Options {
  bool centred = false;
  double eps = 0;
  std::string mode = "add";
};

Layer layer_of(const Options& o) {
  Layer layer("cosine_norm");
  layer.set("centred", o.centred ? "true" : "false").set("eps_mode", o.mode);
  layer.options.eps = o.eps;
  return layer;
}

Arrays tensors(Random& random, std::int64_t N, std::int64_t K, std::int64_t M, DType dtype, double scale = 1,
               double scale_w = 1) {
  Array x = cases::normal(random, {N, K}, 0.4), w = cases::normal(random, {M, K}, -0.2, 0.6);
  for (double& value : x.v) value *= scale;
  for (double& value : w.v) value *= scale_w;
  // the vectors are rounded to what they are computed in, so that the loops have the same
  return {{"input", rounded(x, dtype)},
          {"weight", rounded(w, dtype == DType::f64 ? dtype : DType::f32)},
          {"grad_output", rounded(cases::normal(random, {N, M}), dtype)}};
}

void expect_loops(const Options& o, const Arrays& given, DType dtype, DType parameters) {
  const Layer layer = layer_of(o);
  const auto want = reference::cosine(layer.options, given.at("input"), given.at("weight"), given.at("grad_output"));
  Subject subject(layer, 1, dtype);
  subject.parameters = parameters;
  Arrays got = subject(given);
  EXPECT_EQ(got["output"].shape, given.at("grad_output").shape);
  const double map = tolerance_of(dtype);
  const double of_weight = tolerance_of(dtype == DType::f64 ? dtype : DType::f32);
  expect_near("output", got["output"].v, want.y.v, map, 1);
  expect_near("grad_input", got["grad_input"].v, want.dx.v, map, want.dx.terms);
  expect_near("grad_weight", got["grad_weight"].v, want.dw.v, of_weight, want.dw.terms);
}

TEST(CosineNorm, EqualsPlainLoops) {
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16})
    for (const Extents& sizes : {Extents{3, 5, 4}, Extents{1, 2, 1}, Extents{2, 64, 65}, Extents{70, 130, 9},
                                 Extents{5, 200, 133}, Extents{0, 3, 2}, Extents{3, 4, 0}})
      for (const bool centred : {false, true})
        for (const DType parameters : {DType::f64, DType::f32}) {
          if (parameters == DType::f32 && dtype == DType::f64) continue;
          SCOPED_TRACE(std::string(to_string(dtype)) + ", K " + std::to_string(sizes[1]) + ", M " +
                       std::to_string(sizes[2]) + (centred ? ", centred" : ""));
          Random random(3);
          expect_loops({centred, 0, "add"}, tensors(random, sizes[0], sizes[1], sizes[2], dtype), dtype, parameters);
        }
}

TEST(CosineNorm, HasAnEpsOfEveryMode) {
  for (const char* mode : {"add", "max", "sq"})
    for (const double eps : {1e-3, 0.7, 3.0})
      for (const bool centred : {false, true})
        for (const DType dtype : {DType::f64, DType::f32}) {
          SCOPED_TRACE(std::string(mode) + ", " + std::to_string(eps));
          Random random(4);
          expect_loops({centred, eps, mode}, tensors(random, 6, 4, 5, dtype), dtype, DType::f64);
        }
}

TEST(CosineNorm, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  for (const char* mode : {"add", "max", "sq"})
    for (const double eps : {0.0, 0.9})
      for (const bool centred : {false, true}) {
        Random random(5);
        operation_cases::expect_gradients(
            [&] {
              return Subject(layer_of({centred, eps, mode}));
            },
            tensors(random, 3, 6, 2, DType::f64));
      }
}

// Products of values would leave f32 in either direction.
TEST(CosineNorm, OfAllScales) {
  for (const double scale : {1e-30, 1e-10, 1e10, 1e30})
    for (const double scale_w : {1e-30, 1.0, 1e30})
      for (const bool centred : {false, true}) {
        SCOPED_TRACE(std::to_string(std::log10(scale)) + ", " + std::to_string(std::log10(scale_w)));
        Random random(6);
        expect_loops({centred, 0, "add"}, tensors(random, 3, 40, 4, DType::f32, scale, scale_w), DType::f32,
                     DType::f32);
      }
  for (const double scale : {1e-150, 1e150}) {
    Random random(6);
    expect_loops({false, 0, "add"}, tensors(random, 3, 40, 4, DType::f64, scale), DType::f64, DType::f64);
  }
}

// As far from 0 as f32 allows: the mean of a row is a hundred times its deviation.
TEST(CosineNorm, IsACorrelationFarFromZero) {
  Random random(6);
  Arrays given = tensors(random, 4, 50, 3, DType::f32);
  for (double& value : given["input"].v) value = static_cast<double>(static_cast<float>(value + 100));
  expect_loops({true, 0, "add"}, given, DType::f32, DType::f64);
}

TEST(CosineNorm, OfZerosIsNaNWithoutEps) {
  for (const bool constant : {false, true})
    for (const DType dtype : {DType::f64, DType::f32}) {
      Random random(3);
      Arrays given = tensors(random, 3, 4, 2, dtype);
      for (std::size_t k = 0; k < 4; ++k) given["input"].v[4 + k] = constant ? 0.75 : 0;
      Arrays got = Subject(layer_of({constant}), 1, dtype)(given);
      for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(std::isnan(got["output"].v[i]), i / 2 == 1) << i;
      for (std::size_t i = 0; i < 12; ++i) EXPECT_EQ(std::isnan(got["grad_input"].v[i]), i / 4 == 1) << i;
      for (const char* mode : {"add", "max", "sq"}) {
        SCOPED_TRACE(mode);
        const Options o{constant, 1e-3, mode};
        expect_loops(o, given, dtype, DType::f64);
        EXPECT_EQ(Subject(layer_of(o), 1, dtype)(given)["output"].v[2], 0);
      }
    }
}

TEST(CosineNorm, ReplaysAndHasNoState) {
  Random random(3);
  Queue queue = backend::queue();
  backend::Array<double> x(6), w(9), y(6), again(6);
  for (auto* values : {&x, &w})
    for (double& value : *values) value = random.normal();
  const auto operation = make_operation(layer_of({}), 1, nullptr, queue);
  const InputSlots inputs{{"input", backend::view(std::as_const(x).data(), {2, 3})},
                          {"weight", backend::view(std::as_const(w).data(), {3, 3})}};
  EXPECT_EQ(output_shape(*operation->layer().row, inputs), (Shape{2, 3}));
  const auto saved = operation->forward(inputs, {{"output", backend::view(y.data(), {2, 3})}}, queue);
  operation->replay(*saved, inputs, {{"output", backend::view(again.data(), {2, 3})}}, queue);
  queue.wait();
  EXPECT_EQ(y, again);
  EXPECT_TRUE(operation->save(queue).entries.empty());
  EXPECT_EQ(error_of([&] {
              operation->infer(inputs, {{"output", backend::view(y.data(), {2, 3})}}, queue);
            }),
            "unsupported: cosine_norm has no running statistics and is the same in inference, must be called with "
            "forward");
}

TEST(CosineNorm, RefusesWhatDoesNotFit) {
  Random random(3);
  const auto told = [](const Arrays& given) { return error_of([&] { Subject{layer_of({})}(given); }); };
  Arrays given = tensors(random, 3, 4, 2, DType::f64);
  EXPECT_EQ(told(given), "");
  const auto with = [&](const char* name, const Extents& shape) {
    Arrays changed = given;
    changed[name] = cases::normal(random, shape);
    return told(changed);
  };
  EXPECT_EQ(with("weight", {2, 5}),
            "invalid input: weight has shape (2,5), must have 2 axes (M,K), the second of 4 as input");
  EXPECT_EQ(with("weight", {2}),
            "invalid input: weight has shape (2,), must have 2 axes (M,K), the second of 4 as input");
  EXPECT_EQ(with("input", {3, 4, 1}),
            "invalid input: input has shape (3,4,1), must have 2 axes (N,K), and at least one value in a row");
  EXPECT_EQ(with("grad_output", {3, 4}),
            "invalid input: grad_output has shape (3,4), must have (3,2): rows of input and of weight");
  given.erase("weight");
  EXPECT_EQ(told(given), "invalid argument: weight is missing, must be given");
  EXPECT_EQ(error_of([] { parse_layer("cosine_norm:eps_mode=outside"); }),
            "invalid argument: attribute eps_mode is 'outside', must be add, max or sq");
}

}  // namespace
}  // namespace cosine_norm_test
