// Weight Standardization against plain loops, and at its edges.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "harness.hpp"
#include "launch/reference/operations.hpp"
#include "operation_cases.hpp"

namespace weight_standardization_test {
namespace {

using namespace operation_cases;

Layer layer_of(bool unbiased, bool outside) {
  return parse_layer("weight_standardization:eps=1e-3:unbiased=" + std::string(unbiased ? "true" : "false") +
                     ":eps_place=" + (outside ? "outside" : "inside"));
}

reference::Standardized loops(const Layer& layer, const Arrays& t) {
  return reference::standardize(layer.options, t.at("input"), t.count("gain") ? t.at("gain").v : Doubles{},
                                t.at("grad_output"));
}

Arrays tensors(Random& random, const Extents& shape, DType dtype, bool gain = true) {
  Arrays made{{"input", drawn(random, shape, dtype, 0.3, 0.7)}, {"grad_output", drawn(random, shape, dtype)}};
  if (gain) made["gain"] = {{shape[0]}, cases::gammas(random, shape[0])};
  return made;
}

TEST(WeightStandardization, EqualsPlainLoops) {
  for (const DType dtype : types)
    for (const bool unbiased : {false, true})
      for (const bool outside : {false, true})
        for (const Extents& shape : {Extents{5, 7}, Extents{3, 2, 3}, Extents{17, 3, 3, 3}, Extents{2, 3, 2, 3, 2},
                                     Extents{0, 4}, Extents{1, 2}})
          for (const bool gain : {true, false}) {
            SCOPED_TRACE(std::string(to_string(dtype)) + (unbiased ? ", unbiased" : "") + (outside ? ", outside" : "") +
                         ", " + std::to_string(shape[0]) + " rows");
            Random random(3);
            const Arrays given = tensors(random, shape, dtype, gain);
            const auto want = loops(layer_of(unbiased, outside), given);
            Arrays got = Subject(layer_of(unbiased, outside), 1, dtype)(given);
            const double map = tolerance_of(dtype);
            expect_near("output", got["output"].v, want.y.v, map, 1);
            expect_near("grad_input", got["grad_input"].v, want.dw.v, map, want.dw.terms);
            if (gain) expect_near("grad_gain", got["grad_gain"].v, want.dgain.v, dtype == DType::f64 ? 1e-12 : 1e-5, 4);
            EXPECT_EQ(got.count("grad_gain"), gain ? 1u : 0u);
          }
}

TEST(WeightStandardization, GradientsAreCentralDifferences) {
  for (const bool unbiased : {false, true})
    for (const bool outside : {false, true}) {
      Random random(5);
      expect_gradients([&] { return Subject(layer_of(unbiased, outside)); }, tensors(random, {3, 2, 3}, DType::f64));
    }
}

// Data of all scales that f32 holds: sigma^-3 leaves its range long before the gradient does.
TEST(WeightStandardization, OfAllScales) {
  for (const double scale : {1e-30, 1e-10, 1e10, 1e30})
    for (const bool unbiased : {false, true}) {
      Random random(5);
      Arrays given = tensors(random, {3, 8}, DType::f32);
      for (double& v : given["input"].v) v = static_cast<double>(static_cast<float>(v * scale));
      Layer layer = layer_of(unbiased, false);
      layer.set("eps", "0");
      const auto want = loops(layer, given);
      Arrays got = Subject(layer, 1, DType::f32)(given);
      expect_near("output", got["output"].v, want.y.v, tolerance_of(DType::f32), 1);
      expect_near("grad_input", got["grad_input"].v, want.dw.v, tolerance_of(DType::f32), want.dw.terms);
    }
}

TEST(WeightStandardization, OfConstantRows) {
  for (const bool unbiased : {false, true})
    for (const bool outside : {false, true}) {
      Random random(3);
      Arrays given = tensors(random, {2, 6}, DType::f64);
      given["input"] = cases::constant({2, 6}, 0.1);
      const auto want = loops(layer_of(unbiased, outside), given);
      Arrays got = Subject(layer_of(unbiased, outside))(given);
      EXPECT_EQ(got["output"].v, Doubles(12, 0.0));
      EXPECT_EQ(got["grad_gain"].v, Doubles(2, 0.0));
      expect_near("grad_input", got["grad_input"].v, want.dw.v, 1e-12);
    }
}

TEST(WeightStandardization, OfRowsOfOneValue) {
  for (const Extents& shape : {Extents{4, 1}, Extents{4}}) {
    Random random(3);
    const Arrays given = tensors(random, shape, DType::f64);
    Arrays biased = Subject(layer_of(false, false))(given);
    EXPECT_EQ(biased["output"].v, Doubles(4, 0.0));
    EXPECT_EQ(biased["grad_input"].v, Doubles(4, 0.0));
    Arrays unbiased = Subject(layer_of(true, false))(given);
    for (const char* name : {"output", "grad_input", "grad_gain"})
      for (const double value : unbiased[name].v) EXPECT_TRUE(std::isnan(value)) << name;
  }
}

TEST(WeightStandardization, RefusesWhatDoesNotFit) {
  Random random(3);
  Arrays given = tensors(random, {3, 4}, DType::f64);
  const auto told = [&](const Arrays& tensors) {
    return harness::error_of([&] { Subject{layer_of(false, false)}(tensors); });
  };
  given["gain"] = {{4}, {1, 1, 1, 1}};
  EXPECT_EQ(told(given), "invalid input: gain has shape (4,), must have (3,)");
  given["gain"] = {{3, 1}, {1, 1, 1}};  // with the axes that frameworks keep
  EXPECT_EQ(told(given), "");
  given.erase("gain");
  given["weight"] = {{3}, {1, 1, 1}};
  EXPECT_EQ(told(given), "invalid argument: weight is given, must not be for weight_standardization");
  EXPECT_EQ(told({{"input", {{}, {1}}}}), "invalid input: input has shape (), must have at least 1 axis");
}

}  // namespace
}  // namespace weight_standardization_test
