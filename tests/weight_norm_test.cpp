// Weight Normalization against plain loops, and at its edges.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "harness.hpp"
#include "launch/reference/operations.hpp"
#include "operation_cases.hpp"

namespace weight_norm_test {
namespace {

using namespace operation_cases;

reference::WeightNorm loops(const Arrays& t, int dim) {
  return reference::weight_norm(dim, t.at("input"), t.count("g") ? t.at("g").v : Doubles{}, t.at("grad_output"));
}

Layer layer_of(int dim) { return parse_layer("weight_norm:dim=" + std::to_string(dim)); }

Arrays tensors(Random& random, const Extents& shape, int dim, DType dtype, bool g = true) {
  Arrays made{{"input", drawn(random, shape, dtype, 0.3, 0.7)}, {"grad_output", drawn(random, shape, dtype)}};
  const std::int64_t rows = shape[static_cast<std::size_t>(dim)];
  if (g) made["g"] = {{rows}, cases::gammas(random, rows)};
  return made;
}

TEST(WeightNorm, EqualsPlainLoops) {
  for (const DType dtype : types)
    for (const Extents& shape :
         {Extents{5, 7}, Extents{3, 2, 3}, Extents{17, 3, 3, 3}, Extents{2, 3, 2, 3, 2}, Extents{4}, Extents{0, 4}})
      for (int dim = 0; dim < static_cast<int>(shape.size()); ++dim)
        for (const bool from_end : {false, true})
          for (const bool g : {true, false}) {
            if (shape[0] == 0 && dim != 0) continue;  // rows of no values
            if (backend::takes_some && (from_end || shape.size() == 5)) continue;
            SCOPED_TRACE(std::string(to_string(dtype)) + ", " + std::to_string(shape.size()) + "-D, dim " +
                         std::to_string(dim) + (g ? "" : ", without g"));
            Random random(3);
            const Arrays given = tensors(random, shape, dim, dtype, g);
            const auto want = loops(given, dim);
            Arrays got = Subject(layer_of(from_end ? dim - static_cast<int>(shape.size()) : dim), 1, dtype)(given);
            const double map = tolerance_of(dtype);
            expect_near("output", got["output"].v, want.w.v, map, 1);
            expect_near("grad_input", got["grad_input"].v, want.dv.v, map, want.dv.terms);
            if (g) expect_near("grad_g", got["grad_g"].v, want.dg.v, dtype == DType::f64 ? 1e-12 : 1e-5, 4);
            EXPECT_EQ(got.count("grad_g"), g ? 1u : 0u);
            if (!g) expect_near("output", got["output"].v, given.at("input").v, map, 1);
          }
}

TEST(WeightNorm, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  for (int dim = 0; dim < 3; ++dim) {
    Random random(5);
    expect_gradients([&] { return Subject(layer_of(dim)); }, tensors(random, {3, 2, 3}, dim, DType::f64));
  }
}

TEST(WeightNorm, OfAllScales) {
  for (const double scale : {1e-30, 1e-10, 1e10, 1e30}) {
    Random random(5);
    Arrays given = tensors(random, {3, 8}, 0, DType::f32);
    for (double& v : given["input"].v) v = static_cast<double>(static_cast<float>(v * scale));
    const auto want = loops(given, 0);
    Arrays got = Subject(layer_of(0), 1, DType::f32)(given);
    expect_near("output", got["output"].v, want.w.v, tolerance_of(DType::f32), 1);
    expect_near("grad_input", got["grad_input"].v, want.dv.v, tolerance_of(DType::f32), want.dv.terms);
  }
}

TEST(WeightNorm, OfARowOfZerosIsNaN) {
  for (const bool g : {true, false}) {
    Random random(3);
    Arrays given = tensors(random, {2, 3}, 0, DType::f64, g);
    for (std::size_t i = 0; i < 3; ++i) given["input"].v[i] = 0;
    Arrays got = Subject(layer_of(0))(given);
    for (std::size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(std::isnan(got["output"].v[i]), i < 3);
      EXPECT_EQ(std::isnan(got["grad_input"].v[i]), i < 3);
    }
    if (g) {
      EXPECT_TRUE(std::isnan(got["grad_g"].v[0]) && std::isfinite(got["grad_g"].v[1]));
    }
  }
}

TEST(WeightNorm, ReplaysWithTheLengthsOfTheCall) {
  Random random(3);
  backend::Array<double> v(6), w(6), again(6);
  for (double& value : v) value = random.normal();
  Queue queue = backend::queue();
  const Shape shape{2, 3};
  const auto operation = make_operation(layer_of(1), 0, nullptr, queue);
  const InputSlots inputs{{"input", backend::view(std::as_const(v).data(), shape)}};
  const auto saved = operation->forward(inputs, {{"output", backend::view(w.data(), shape)}}, queue);
  operation->replay(*saved, inputs, {{"output", backend::view(again.data(), shape)}}, queue);
  queue.wait();
  EXPECT_EQ(w, again);
  EXPECT_EQ(harness::error_of([&] {
              operation->infer(inputs, {{"output", backend::view(w.data(), shape)}}, queue);
            }),
            "unsupported: weight_norm has no running statistics and is the same in inference, must be called with "
            "forward");
  const Shape other{3, 2};
  EXPECT_EQ(harness::error_of([&] {
              operation->replay(*saved, {{"input", backend::view(std::as_const(v).data(), other)}},
                                {{"output", backend::view(w.data(), other)}}, queue);
            }),
            "invalid argument: the replayed input has shape (3,2), must have (2,3) as in the earlier call");
}

TEST(WeightNorm, RefusesWhatDoesNotFit) {
  Random random(3);
  const auto told = [&](const Arrays& tensors, int dim) {
    return harness::error_of([&] { Subject{layer_of(dim)}(tensors); });
  };
  Arrays given = tensors(random, {3, 4}, 0, DType::f64);
  EXPECT_EQ(told(given, 2), "invalid argument: attribute dim is 2, must be from -2 to 1: input has shape (3,4)");
  EXPECT_EQ(told(given, -3), "invalid argument: attribute dim is -3, must be from -2 to 1: input has shape (3,4)");
  EXPECT_EQ(told(given, 1), "invalid input: g has shape (3,), must have (4,)");
  given["g"] = {{3, 1}, {1, 2, 3}};  // with the axes that PyTorch keeps
  EXPECT_EQ(told(given, 0), "");
  EXPECT_EQ(told(given, 1), "invalid input: g has shape (3,1), must have (4,)");
  EXPECT_EQ(harness::error_of([] { parse_layer("weight_norm:dim=first"); }),
            "invalid argument: attribute dim is 'first', must be an integer");
  EXPECT_EQ(told({{"input", {{}, {1}}}}, 0), "invalid input: input has shape (), must have at least 1 axis");
}

}  // namespace
}  // namespace weight_norm_test
