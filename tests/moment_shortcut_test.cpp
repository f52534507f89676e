// The Moment Shortcut: gamma and beta of each sample and position, and nothing else.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "backend.hpp"
#include "harness.hpp"
#include "operation_cases.hpp"

namespace moment_shortcut_test {
namespace {

using namespace operation_cases;

Arrays tensors(Random& random, const Extents& shape, DType dtype, bool gamma, bool beta) {
  Extents positions = shape;
  positions[1] = 1;
  Arrays made{{"input", drawn(random, shape, dtype, 0.5)}, {"grad_output", drawn(random, shape, dtype)}};
  if (gamma) made["gamma"] = drawn(random, positions, dtype);
  if (beta) made["beta"] = drawn(random, positions, dtype);
  return made;
}

TEST(MomentShortcut, IsItsDefinition) {
  const std::vector<Extents> shapes = {{3, 4},          {2, 3, 1}, {3, 5, 7}, {2, 8, 8, 8},
                                       {2, 3, 2, 3, 2}, {0, 3, 4}, {2, 3, 0}, {1, 1, 3}};
  for_each_kind(shapes, [](DType dtype, Order order, const Extents& shape) {
    for (const DType parameters : {dtype, DType::f64})
      for (const bool gamma : {true, false})
        for (const bool beta : {true, false}) {
          SCOPED_TRACE(std::string(gamma ? "gamma" : "") + (beta ? ", beta" : ""));
          Random random(3);
          const Arrays t = tensors(random, shape, dtype, gamma, beta);
          Subject subject(Layer("moment_shortcut"), shape[1], dtype, order);
          subject.parameters = parameters;
          Arrays got = subject(t);
          const Doubles &x = t.at("input").v, &dy = t.at("grad_output").v;
          const auto sets = reference::positional_norm_sets(shape);
          Doubles y(x.size()), dx(y), dgamma(static_cast<std::size_t>(sets.sets)), dbeta(dgamma);
          for (std::size_t i = 0; i < x.size(); ++i) {
            const auto s = static_cast<std::size_t>(sets.set[i]);
            y[i] = (gamma ? t.at("gamma").v[s] : 1) * x[i] + (beta ? t.at("beta").v[s] : 0);
            dx[i] = (gamma ? t.at("gamma").v[s] : 1) * dy[i];
            dgamma[s] += dy[i] * x[i];
            dbeta[s] += dy[i];
          }
          const double map = tolerance_of(dtype);
          const double sums = statistics_tolerance_of(dtype) + unit_of(parameters);
          expect_near("output", got["output"].v, y, map, 1);
          expect_near("grad_input", got["grad_input"].v, dx, map, 1);
          if (!gamma && !beta) {
            EXPECT_EQ(got["output"].v, x);
          }
          if (gamma) expect_near("grad_gamma", got["grad_gamma"].v, dgamma, sums, 4);
          if (beta) expect_near("grad_beta", got["grad_beta"].v, dbeta, sums, 4);
        }
  });
}

TEST(MomentShortcut, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  Random random(5);
  expect_gradients([] { return Subject(Layer("moment_shortcut"), 2); },
                   tensors(random, {2, 2, 3}, DType::f64, true, true));
}

// Nothing is summed over x: a value of any size is a matter of its own.
TEST(MomentShortcut, TakesNoStatistics) {
  Random random(5);
  Arrays t = tensors(random, {1, 3, 2}, DType::f64, true, true);
  t["input"].v = {1e300, -1e300, 1e300, 1, 1e-300, 2};
  t["gamma"].v = {1, 2};
  t["beta"].v = {0, 1};
  Arrays got = Subject(Layer("moment_shortcut"), 3)(t);
  EXPECT_EQ(got["output"].v, (Doubles{1e300, -2e300, 1e300, 3, 1e-300, 5}));
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(got["grad_input"].v[i], t["gamma"].v[i % 2] * t["grad_output"].v[i]);
}

// Ranks exchange nothing: each may be in a mode of its own.
TEST(MomentShortcut, ExchangesNothing) {
  harness::run(2, [](const harness::World& world, Queue&) {
    if (world->rank() == 1) return;
    Random random(5);
    Arrays got = Subject(Layer("moment_shortcut"), 2, DType::f64, Order::channels_first,
                         world)(tensors(random, {2, 2, 3}, DType::f64, true, true));
    EXPECT_EQ(got["output"].v.size(), 12u);
  });
}

TEST(MomentShortcut, RefusesWhatDoesNotFit) {
  Random random(3);
  Arrays t = tensors(random, {2, 3, 4}, DType::f64, true, true);
  const auto told = [&](const Arrays& tensors) {
    return harness::error_of([&] { Subject(Layer("moment_shortcut"), 3)(tensors); });
  };
  t["gamma"] = cases::normal(random, {2, 3, 4});
  EXPECT_EQ(told(t), "invalid input: gamma has shape (2,3,4), must have (2,1,4)");
  t.erase("gamma");
  t["weight"] = {{3}, {1, 1, 1}};
  EXPECT_EQ(told(t), "invalid argument: weight is given, must not be for moment_shortcut");
}

}  // namespace
}  // namespace moment_shortcut_test
