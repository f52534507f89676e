// Filter Response Normalization and its threshold against the oracle, and at its edges.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <string>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "harness.hpp"
#include "operation_cases.hpp"

namespace filter_response_norm_test {
namespace {

using namespace operation_cases;
using reference::Response;

constexpr const char* tie_words[] = {"first", "second", "half"};

Layer layer_of(Tie tie, const std::string& more = {}) {
  return parse_layer("filter_response_norm:tie=" + std::string(tie_words[static_cast<int>(tie)]) + more);
}

struct Given {
  bool affine, tau, eps;
};

Arrays tensors(Random& random, const Extents& shape, DType dtype, const Given& given) {
  const std::int64_t C = shape[1];
  Arrays made{{"input", drawn(random, shape, dtype, 0.3)}, {"grad_output", drawn(random, shape, dtype)}};
  if (given.affine) {
    made["weight"] = {{C}, cases::gammas(random, C)};
    made["bias"] = {{C}, cases::betas(random, C)};
  }
  if (given.tau) made["tau"] = {{C}, cases::betas(random, C)};
  if (given.eps) {
    made["eps_learned"] = {{C}, cases::betas(random, C)};
    for (std::size_t c = 0; c < static_cast<std::size_t>(C); ++c)
      made["eps_learned"].v[c] *= c % 3 == 0 ? 1 : c % 3 == 1 ? -0.3 : 0;
  }
  return made;
}

Response model(const Arrays& t, Tie tie, double eps = 1e-6) {
  const auto of = [&](const char* name) { return t.count(name) ? t.at(name).v : Doubles{}; };
  return {of("weight"), of("bias"), of("tau"), of("eps_learned"), eps, tie};
}

// Rounding decides on which side of the threshold values near it are: they have no gradient here.
void keep_away(Arrays& t, const Response& of) {
  const Doubles y = reference::response_forward(t.at("input"), of, false).v;
  if (of.tau.empty()) return;
  const auto C = of.tau.size(),
             S = y.size() / C / static_cast<std::size_t>(std::max<std::int64_t>(1, t["input"].shape[0]));
  for (std::size_t i = 0; i < y.size(); ++i)
    if (std::abs(y[i] - of.tau[i / S % C]) < 0.02) t["grad_output"].v[i] = 0;
}

void expect_equal(Arrays& got, const Arrays& t, const Response& of, DType dtype) {
  const Array y = reference::response_forward(t.at("input"), of);
  const auto want = reference::response_backward(t.at("input"), of, t.at("grad_output"));
  const double map = tolerance_of(dtype), sums = statistics_tolerance_of(dtype);
  double rstd = 0;
  for (const double v : reference::rms_forward(t.at("input"), reference::instance_norm_sets(y.shape), {}, of.eps).rstd)
    rstd = std::max(rstd, v);
  expect_near("output", got["output"].v, y.v, map, 1);
  expect_near("grad_input", got["grad_input"].v, want.dx.v, map, 6 * rstd);
  const double terms = std::sqrt(static_cast<double>(y.v.size()));
  if (t.count("weight")) expect_near("grad_weight", got["grad_weight"].v, want.dgamma, sums, terms);
  if (t.count("bias")) expect_near("grad_bias", got["grad_bias"].v, want.dbeta, sums, terms);
  if (t.count("tau")) expect_near("grad_tau", got["grad_tau"].v, want.dtau, sums, terms);
  if (t.count("eps_learned"))
    expect_near("grad_eps_learned", got["grad_eps_learned"].v, want.deps, sums, terms * rstd * rstd);
}

// By planes and by columns, with vectors and without, one value to a set, more than one part, and none.
const std::vector<Extents> shapes = {{3, 4},          {2, 3, 1},  {3, 5, 7},  {2, 4, 8, 8}, {2, 17, 3, 5},
                                     {2, 3, 2, 3, 2}, {1, 2, 70}, {5, 3, 33}, {0, 3, 4},    {2, 3, 0}};

TEST(FilterResponseNorm, EqualsTheOracle) {
  for_each_kind(shapes, [](DType dtype, Order order, const Extents& shape) {
    for (const Given& given : {Given{true, true, true}, Given{false, false, false}, Given{false, true, false},
                               Given{true, false, true}, Given{false, false, true}})
      for (const Tie tie : {Tie::first, Tie::second, Tie::half}) {
        if (!given.tau && tie != Tie::first) continue;
        if (backend::takes_some && (tie == Tie::second || given.affine != given.eps)) continue;
        SCOPED_TRACE(std::string(given.affine ? "affine" : "") + (given.tau ? ", tau" : "") +
                     (given.eps ? ", eps" : ""));
        Random random(3);
        Arrays t = tensors(random, shape, dtype, given);
        const Response of = model(t, tie);
        keep_away(t, of);
        Arrays got = Subject(layer_of(tie), shape[1], dtype, order)(t);
        expect_equal(got, t, of, dtype);
      }
  });
}

// Sums in several parts, in both walks.
TEST(FilterResponseNorm, EqualsTheOracleOnLargeGroups) {
  for (const Order order : orders) {
    Random random(3);
    Arrays t = tensors(random, {1, 2, backend::takes_some ? 9000 : 300000}, DType::f32, {true, true, true});
    const Response of = model(t, Tie::half);
    keep_away(t, of);
    Arrays got = Subject(layer_of(Tie::half), 2, DType::f32, order)(t);
    expect_equal(got, t, of, DType::f32);
  }
}

TEST(FilterResponseNorm, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  for (const Extents& shape : {Extents{2, 3, 2, 3}, Extents{3, 2}})
    for (const bool tau : {true, false}) {
      Random random(5);
      Arrays t = tensors(random, shape, DType::f64, {true, tau, true});
      for (std::size_t c = 0; c < t["eps_learned"].v.size(); ++c)  // one of 0 has a corner there
        t["eps_learned"].v[c] = c % 2 == 0 ? 0.2 : -0.3;
      keep_away(t, model(t, Tie::first));
      expect_gradients([&] { return Subject(layer_of(Tie::first), shape[1]); }, t);
    }
}

// Ranks that hold parts of the space: gradients of parameters are each rank's share.
TEST(FilterResponseNorm, OverRanksIsOneRankOnAllOfTheSpace) {
  const Extents shape{2, 3, 7};
  for (const int ranks : {2, 3}) {
    Random random(3);
    Arrays t = tensors(random, shape, DType::f64, {true, true, true});
    keep_away(t, model(t, Tie::half));
    Arrays want = Subject(layer_of(Tie::half), 3)(t);
    std::map<std::string, Doubles> sums;
    std::mutex mutex;
    harness::run(ranks, [&](const harness::World& world, Queue&) {
      const auto own = [&](const Array& whole) {
        return part_of(whole, 2, 7 * world->rank() / ranks, 7 * (world->rank() + 1) / ranks);
      };
      Arrays part = t;
      for (const char* name : {"input", "grad_output"}) part[name] = own(t.at(name));
      Arrays got = Subject(layer_of(Tie::half), 3, DType::f64, Order::channels_first, world)(part);
      const std::lock_guard lock(mutex);
      for (const char* name : {"output", "grad_input"}) expect_near(name, got[name].v, own(want[name]).v, 1e-13, 1);
      for (const char* name : {"grad_weight", "grad_bias", "grad_tau", "grad_eps_learned"}) {
        sums[name].resize(3);
        for (std::size_t c = 0; c < 3; ++c) sums[name][c] += got[name].v[c];
      }
    });
    for (const auto& [name, sum] : sums) expect_near(name.c_str(), sum, want[name].v, 1e-13, 1);
  }
}

// gamma = 0 makes y = beta, exactly: tau, whoever computes it.
TEST(FilterResponseNorm, TiesGoWhereTheAttributeSays) {
  for_each_kind({{2, 3, 5}}, [](DType dtype, Order order, const Extents& shape) {
    for (const Tie tie : {Tie::first, Tie::second, Tie::half}) {
      Random random(3);
      Arrays t = tensors(random, shape, dtype, {true, true, false});
      t["weight"].v = {0, 0, 0};
      t["bias"].v = {0.5, 0, -0.25};
      t["tau"].v = t["bias"].v;
      Arrays got = Subject(layer_of(tie), 3, dtype, order)(t);
      const double share = tie == Tie::first ? 1 : tie == Tie::second ? 0 : 0.5;
      Doubles sum(3);
      for (std::size_t i = 0; i < 30; ++i) {
        EXPECT_EQ(got["output"].v[i], t["bias"].v[i / 5 % 3]);
        EXPECT_EQ(got["grad_input"].v[i], 0);
        sum[i / 5 % 3] += t["grad_output"].v[i];
      }
      for (std::size_t c = 0; c < 3; ++c) {
        EXPECT_NEAR(got["grad_bias"].v[c], share * sum[c], 1e-6);
        EXPECT_NEAR(got["grad_tau"].v[c], (1 - share) * sum[c], 1e-6);
      }
    }
  });
}

// x = 0: y = beta, and dx is g over the root of eps alone, the learned part included.
TEST(FilterResponseNorm, OfZerosIsBeta) {
  for (const std::int64_t space : {1, 4}) {
    Random random(3);
    Arrays t = tensors(random, {2, 2, space}, DType::f64, {true, false, true});
    t["input"] = cases::constant({2, 2, space}, 0);
    t["eps_learned"].v = {3e-6, -8e-6};
    Arrays got = Subject(layer_of(Tie::first), 2)(t);
    for (std::size_t i = 0; i < got["output"].v.size(); ++i) {
      const std::size_t c = i / static_cast<std::size_t>(space) % 2;
      EXPECT_EQ(got["output"].v[i], t["bias"].v[c]);
      const double want = t["weight"].v[c] * t["grad_output"].v[i] / std::sqrt(c == 0 ? 4e-6 : 9e-6);
      EXPECT_NEAR(got["grad_input"].v[i], want, 1e-12 * std::abs(want));
    }
    EXPECT_EQ(got["grad_eps_learned"].v, (Doubles{0, 0}));
    EXPECT_EQ(got["grad_weight"].v, (Doubles{0, 0}));
  }
}

// One value to a set: y is its sign, whatever its size, until a learned eps is as large.
TEST(FilterResponseNorm, OfOneValueIsItsSign) {
  const Arrays t{
      {"input", {{1, 3}, {2, -3, 1}}}, {"eps_learned", {{3}, {0, 0, 3}}}, {"grad_output", {{1, 3}, {1, 1, 1}}}};
  Arrays got = Subject(layer_of(Tie::first, ":eps=0"), 3)(t);
  EXPECT_EQ(got["output"].v, (Doubles{1, -1, 0.5}));
  EXPECT_NEAR(got["grad_input"].v[0], 0, 1e-15);
  EXPECT_NEAR(got["grad_input"].v[1], 0, 1e-15);
  EXPECT_NEAR(got["grad_input"].v[2], 3.0 / 8, 1e-15);  // d x (x^2 + 3)^(-1/2)
  EXPECT_EQ(got["grad_eps_learned"].v[0], 0);           // the size has a corner
  EXPECT_NEAR(got["grad_eps_learned"].v[2], -1.0 / 16, 1e-15);
}

TEST(FilterResponseNorm, EpsCountsBySize) {
  Random random(3);
  Arrays t = tensors(random, {2, 3, 5}, DType::f64, {true, true, true});
  t["eps_learned"].v = {0.3, 0.2, 0.1};
  keep_away(t, model(t, Tie::first));
  Arrays plus = Subject(layer_of(Tie::first), 3)(t);
  for (double& v : t["eps_learned"].v) v = -v;
  Arrays minus = Subject(layer_of(Tie::first), 3)(t);
  for (const char* same : {"output", "grad_input", "grad_weight", "grad_bias", "grad_tau"})
    EXPECT_EQ(plus[same].v, minus[same].v) << same;
  for (double& v : minus["grad_eps_learned"].v) v = -v;
  EXPECT_EQ(plus["grad_eps_learned"].v, minus["grad_eps_learned"].v);
}

TEST(FilterResponseNorm, OfAllScales) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (const double scale : {1e-30, 1e-19, 1e-10, 1e10, 1e19, 1e30}) {
      SCOPED_TRACE(std::string(to_string(dtype)) + ", scale " + std::to_string(std::log10(scale)));
      Random random(5);
      Arrays t = tensors(random, {2, 3, 8}, dtype, {true, true, true});
      for (double& v : t["input"].v) v *= scale;
      for (double& v : t["eps_learned"].v) v = (v < 0 ? -0.5 : 0.5) * scale * scale;
      t["input"] = rounded(t["input"], dtype);
      const Response of = model(t, Tie::half, 0);
      keep_away(t, of);
      Arrays got = Subject(layer_of(Tie::half, ":eps=0"), 3, dtype)(t);
      expect_equal(got, t, of, dtype);
    }
}

// Parameters and their gradients of any type: what is read is exact, what is written rounded once.
TEST(FilterResponseNorm, ParametersMayBeOfAnyType) {
  for (const DType type : types)
    for (const DType dtype : {DType::f32, type}) {
      Random random(3);
      Arrays t = tensors(random, {2, 3, 8}, dtype, {true, true, true});
      for (const char* name : {"weight", "bias", "tau", "eps_learned"}) t[name] = rounded(t[name], type);
      keep_away(t, model(t, Tie::first));
      Subject wide(layer_of(Tie::first), 3, dtype), narrow(layer_of(Tie::first), 3, dtype);
      narrow.parameters = type;
      Arrays want = wide(t), got = narrow(t);
      for (auto& [name, values] : want) {
        const bool of_parameter = name != "output" && name != "grad_input";
        expect_near(name.c_str(), got[name].v, values.v, of_parameter ? unit_of(type) : 0);
        if (of_parameter) {
          EXPECT_EQ(got[name].v, rounded(values, type).v) << name;
        }
      }
    }
}

TEST(FilterResponseNorm, NaNStaysInItsSet) {
  Random random(3);
  Arrays t = tensors(random, {2, 3, 4}, DType::f32, {true, true, true});
  keep_away(t, model(t, Tie::first));
  Arrays want = Subject(layer_of(Tie::first), 3, DType::f32)(t);
  t["input"].v[1] = std::numeric_limits<double>::quiet_NaN();
  Arrays got = Subject(layer_of(Tie::first), 3, DType::f32)(t);
  for (std::size_t i = 0; i < 24; ++i) {
    EXPECT_EQ(std::isnan(got["output"].v[i]), i < 4) << i;
    EXPECT_EQ(std::isnan(got["grad_input"].v[i]), i < 4) << i;
    if (i >= 4) {
      EXPECT_EQ(got["output"].v[i], want["output"].v[i]);
    }
  }
}

TEST(FilterResponseNorm, RefusesWhatDoesNotFit) {
  Random random(3);
  Arrays t = tensors(random, {2, 3, 4}, DType::f64, {true, true, true});
  const auto told = [&](const Arrays& tensors) {
    return harness::error_of([&] { Subject(layer_of(Tie::first), 3)(tensors); });
  };
  EXPECT_EQ(told(t), "");
  t["tau"] = {{4}, {1, 1, 1, 1}};
  EXPECT_EQ(told(t), "invalid input: tau has shape (4,), must have (3,)");
  t.erase("tau");
  t["residual"] = t["input"];
  EXPECT_EQ(told(t), "invalid argument: residual is given, must not be for filter_response_norm");

  const Layer layer = layer_of(Tie::first);
  Queue queue = backend::queue();
  Norm norm(layer, 1, nullptr, queue);
  backend::Array<double> x(2, 1), y(2), tau(1);
  ForwardInputs in;
  in.input = backend::view(x.data(), Shape{1, 1, 2});
  const Saved saved = norm.forward(in, backend::view(y.data(), Shape{1, 1, 2}), queue);
  BackwardOutputs out;
  out.tau = backend::view(tau.data(), Shape{1});
  EXPECT_EQ(harness::error_of([&] { norm.backward(saved, in.input, out, queue); }),
            "invalid argument: grad_tau is asked for, must not be where forward had no tau");
}

}  // namespace
}  // namespace filter_response_norm_test
