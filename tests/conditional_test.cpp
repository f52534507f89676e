// Conditional normalizations: gamma and beta are rows of tables by label or by weights, and what is added to them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "harness.hpp"
#include "modulated_support.hpp"

namespace conditional_test {
namespace {

using namespace modulated;
using harness::error_of;

constexpr std::int64_t rows = 3;

/// What a call is given besides its input: tables (K, C) or (C), deltas (N, C), labels or styles (N), or weights of
/// styles (N, K).
struct Way {
  const char* name;
  Arrays given;
};

const Array* choice_of(const Arrays& given) {
  for (const char* name : {"labels", "styles"})
    if (const auto found = given.find(name); found != given.end()) return &found->second;
  return nullptr;
}
std::int64_t rows_of(const Arrays& given) { return choice_of(given) != nullptr ? rows : 1; }

// How much of row k of the tables sample n takes.
double share(const Arrays& given, std::int64_t n, std::int64_t k) {
  const Array* choice = choice_of(given);
  if (choice == nullptr) return k == 0 ? 1 : 0;
  if (choice->shape.size() == 1) return choice->v[static_cast<std::size_t>(n)] == static_cast<double>(k) ? 1 : 0;
  return choice->v[static_cast<std::size_t>(n * rows + k)];
}

// Of every value.
Doubles expanded(const Arrays& given, const Extents& shape, const char* table, double otherwise, const char* delta) {
  const Extent3 e(shape);
  Doubles made(e.size());
  for (std::int64_t n = 0; n < e.N; ++n)
    for (std::int64_t c = 0; c < e.C; ++c) {
      double value = given.count(delta) ? given.at(delta).v[static_cast<std::size_t>(n * e.C + c)] : 0;
      for (std::int64_t k = 0; k < rows_of(given); ++k)
        value += share(given, n, k) *
                 (given.count(table) ? given.at(table).v[static_cast<std::size_t>(k * e.C + c)] : otherwise);
      for (std::int64_t s = 0; s < e.S; ++s) made[e.at(n, c, s)] = value;
    }
  return made;
}
Answer solve(const Row& row, const Arrays& t, double eps) {
  const Extents& shape = t.at("input").shape;
  return modulated::solve(shape, row.statistics.has(Axis::sample), eps, t.at("input").v,
                          expanded(t, shape, "weight", 1, "delta_weight"), expanded(t, shape, "bias", 0, "delta_bias"),
                          t.at("grad_output").v);
}

// The gradients of table and delta from those of every value.
Doubles of_delta(const Extents& shape, const Doubles& gradient) {
  const Extent3 e(shape);
  Doubles made(static_cast<std::size_t>(e.N * e.C));
  for (std::size_t i = 0; i < e.size(); ++i) made[i / static_cast<std::size_t>(e.S)] += gradient[i];
  return made;
}
Doubles of_table(const Arrays& given, const Extents& shape, const Doubles& gradient) {
  const Extent3 e(shape);
  Doubles made(static_cast<std::size_t>(rows_of(given) * e.C));
  for (std::int64_t k = 0; k < rows_of(given); ++k)
    for (std::int64_t n = 0; n < e.N; ++n)
      for (std::int64_t c = 0; c < e.C; ++c)
        for (std::int64_t s = 0; s < e.S; ++s)
          made[static_cast<std::size_t>(k * e.C + c)] += share(given, n, k) * gradient[e.at(n, c, s)];
  return made;
}

// Every way in which gamma and beta of a row are given.
std::vector<Way> ways(const Row& row, const Extents& shape, Random& random) {
  const std::int64_t N = shape[0], C = shape[1];
  const auto some = [&](const Extents& of) { return drawn(random, of, DType::f32); };
  const auto table = [&] { return some({rows, C}); };
  Array labels{{N}, {}};
  for (std::int64_t n = 0; n < N; ++n) labels.v.push_back(static_cast<double>(random.integer(0, rows - 1)));
  if (row.tensor("styles") != nullptr) {
    const Array shares = some({N, rows});  // they need not add up to 1, nor be positive
    return {{"styles", {{"weight", table()}, {"bias", table()}, {"styles", labels}}},
            {"styles alone", {{"styles", labels}}},
            {"weights", {{"weight", table()}, {"bias", table()}, {"styles", shares}}},
            {"weights, bias alone", {{"bias", table()}, {"styles", shares}}}};
  }
  const auto deltas = [&](Arrays given) {
    given["delta_weight"] = some({N, C});
    given["delta_bias"] = some({N, C});
    return given;
  };
  const Arrays affine{{"weight", some({C})}, {"bias", some({C})}},
      labelled{{"weight", table()}, {"bias", table()}, {"labels", labels}};
  return {{"nothing", {}},
          {"gamma and beta", affine},
          {"deltas", deltas(affine)},
          {"deltas alone", deltas({})},
          {"labels", labelled},
          {"labels and deltas", deltas(labelled)}};
}

std::vector<const Row*> conditional_rows() {
  std::vector<const Row*> made;
  for (const Row& row : catalogue())
    if (row.operation == OperationKind::conditional) made.push_back(&row);
  return made;
}

void expect_equal(Arrays& got, const Row& row, const Arrays& t, DType dtype, DType parameters) {
  const Extents& shape = t.at("input").shape;
  const double eps = Layer(row).options.eps, map = tolerance_of(dtype),
               sums = statistics_tolerance_of(dtype) + (parameters == DType::f64 ? 0 : unit_of(parameters));
  const Answer want = solve(row, t, eps);
  double largest = 1;  // sets of few values cancel: dx is held to the size of its terms
  for (const double g : expanded(t, shape, "weight", 1, "delta_weight")) largest = std::max(largest, std::abs(g));
  expect_near("output", got["output"].v, want.y, map, largest);
  const bool lone = row.statistics.has(Axis::sample) && Extent3(shape).S == 1;
  expect_near("grad_input", got["grad_input"].v, want.dx, map, largest * (lone ? 1 / std::sqrt(eps) : 20));
  const double terms = std::sqrt(static_cast<double>(want.y.size()));
  for (const auto& [name, of_values] : {std::pair{"weight", &want.dgamma}, {"bias", &want.dbeta}}) {
    const std::string table = name, delta = "delta_" + table;
    if (t.count(table))
      expect_near(("grad_" + table).c_str(), got["grad_" + table].v, of_table(t, shape, *of_values), sums, terms);
    if (t.count(delta))
      expect_near(("grad_" + delta).c_str(), got["grad_" + delta].v, of_delta(shape, *of_values), sums, terms);
  }
}

TEST(ConditionalRows, AreTheirDefinitionForwardAndBackward) {
  ASSERT_FALSE(conditional_rows().empty());
  const std::vector<Extents> shapes = {{5, 4}, {4, 3, 5}, {3, 5, 2, 7}, {2, 4, 3, 2, 3}, {1, 1, 1}, {0, 3, 4}};
  for_each_kind(shapes, [](DType dtype, Order order, const Extents& shape) {
    if (backend::takes_some && shape.size() == 5) return;
    for (const Row* row : conditional_rows()) {
      Random random(11);
      const Array x = drawn(random, shape, dtype, 0.5), dy = drawn(random, shape, dtype);
      for (const Way& way : ways(*row, shape, random)) {
        if (shape[0] == 0 && std::string(way.name).starts_with("weights")) continue;  // without samples there are none
        for (const DType parameters : {DType::f64, DType::f32}) {
          if (backend::takes_some && (parameters == DType::f64) != (dtype == DType::f64)) continue;
          SCOPED_TRACE(std::string(row->name) + ", " + way.name + ", parameters " + std::string(to_string(parameters)));
          Arrays given = way.given;
          given["input"] = x;
          given["grad_output"] = dy;
          Subject subject(Layer(*row), shape[1], dtype, order);
          subject.parameters = parameters;
          Arrays got = subject(given);
          expect_equal(got, *row, given, dtype, parameters);
        }
      }
    }
  });
}

TEST(ConditionalRows, GradientsAreCentralDifferences) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  const Extents shape{3, 2, 2, 3};
  for (const Row* row : conditional_rows()) {
    Random random(3);
    const Array x = cases::normal(random, shape), dy = cases::normal(random, shape);
    for (Way& way : ways(*row, shape, random)) {
      SCOPED_TRACE(std::string(row->name) + ", " + way.name);
      way.given["input"] = x;
      way.given["grad_output"] = dy;
      expect_gradients([&] { return Subject(Layer(*row), 2); }, way.given);
    }
  }
}

// With one class, or without deltas, every option of the base does what it does there.
TEST(ConditionalBatchNorm, IsBatchNormWhereAllSamplesAreAlike) {
  const Extents shape{4, 3, 5};
  for (const char* attributes :
       {":activation=relu", ":renorm=true:momentum=0.3", ":minibatches=2:weighting=count", ":eps_place=outside",
        ":window=3:compensate=false", ":training=false", ":momentum=cumulative:unbiased_running_var=false"}) {
    SCOPED_TRACE(attributes);
    Random random(5);
    Arrays of_base{{"input", cases::normal(random, shape)},
                   {"residual", cases::normal(random, shape)},
                   {"grad_output", cases::normal(random, shape)},
                   {"weight", cases::normal(random, {3})},
                   {"bias", cases::normal(random, {3})}};
    Arrays of_labels = of_base;
    for (const char* name : {"weight", "bias"}) of_labels[name].shape = {1, 3};
    of_labels["labels"] = reference::zeros({4});
    Subject plain(parse_layer("batch_norm" + std::string(attributes)), 3, DType::f32),
        conditional(parse_layer("conditional_batch_norm" + std::string(attributes)), 3, DType::f32);
    for (int step = 0; step < 4; ++step) {
      Arrays want = plain(of_base), got = conditional(of_labels);
      for (const char* name : {"output", "grad_residual", "mean", "var"}) EXPECT_EQ(got[name].v, want[name].v) << name;
      expect_near("grad_input", got["grad_input"].v, want["grad_input"].v, backend::statistics_unit(DType::f32));
      expect_near("grad_weight", got["grad_weight"].v, want["grad_weight"].v,
                  1e-14 + backend::statistics_unit(DType::f32), 10);
      for (const char* name : {"running_mean", "num_batches_tracked"})
        EXPECT_EQ(conditional.state(name), plain.state(name)) << name;
    }
    plain.operation->load(conditional.operation->save(conditional.queue), plain.queue);  // they mean the same
    EXPECT_EQ(plain(of_base)["output"].v, conditional(of_labels)["output"].v);
  }
}

TEST(ConditionalBatchNorm, ReplaysAndInfers) {
  Random random(1);
  const Arrays given{{"input", cases::normal(random, {2, 2, 3})},
                     {"weight", cases::normal(random, {2, 2})},
                     {"labels", {{2}, {1, 0}}}};
  Subject subject(Layer("conditional_batch_norm"), 2);
  const Doubles first = subject(given)["output"].v;
  EXPECT_EQ(subject.replayed(given), first);
  const Doubles inferred = subject.inferred(given);
  EXPECT_NE(inferred, first);
  subject.operation->set_training(false);
  EXPECT_EQ(subject(given)["output"].v, inferred);
}

TEST(ConditionalRows, OverRanksAreOneRankOnAllSamples) {
  const Extents shape{5, 3, 4};
  Random random(9);
  const Row& row = *Layer("conditional_batch_norm").row;
  Arrays whole = ways(row, shape, random).back().given;
  whole["input"] = cases::normal(random, shape, 3);
  whole["grad_output"] = cases::normal(random, shape);
  const Answer want = solve(row, whole, 1e-5);
  std::vector<Doubles> parts(2);
  harness::run(2, [&](const harness::World& world, Queue&) {
    const auto own = [&](const Array& all) {  // three samples, and two
      return world->rank() == 0 ? part_of(all, 0, 0, 3) : part_of(all, 0, 3, 5);
    };
    Arrays given = whole;
    for (const char* name : {"input", "grad_output", "delta_weight", "delta_bias", "labels"})
      given[name] = own(whole.at(name));
    Arrays got =
        Subject(parse_layer("conditional_batch_norm:sync=world"), 3, DType::f64, Order::channels_first, world)(given);
    expect_near("output", got["output"].v, own({shape, want.y}).v, 1e-12, 1);
    expect_near("grad_input", got["grad_input"].v, own({shape, want.dx}).v, 1e-12, 1);
    parts[static_cast<std::size_t>(world->rank())] = got["grad_weight"].v;
  });
  for (std::size_t i = 0; i < parts[0].size(); ++i) parts[0][i] += parts[1][i];
  expect_near("grad_weight", parts[0], of_table(whole, shape, want.dgamma), 1e-12, 1);
}

TEST(ConditionalRows, SayWhatIsWrong) {
  Random random(2);
  const auto told = [&](Arrays more) {
    more["input"] = cases::normal(random, {2, 3, 2});
    return error_of([&] { Subject(Layer("conditional_batch_norm"), 3)(more); });
  };
  const auto labelled = [&](const Doubles& labels, const Extents& table) {
    return told(
        {{"labels", {{static_cast<std::int64_t>(labels.size())}, labels}}, {"weight", cases::normal(random, table)}});
  };
  if (backend::device().kind == DeviceKind::cpu) {
    EXPECT_EQ(labelled({0, 4}, {4, 3}), "invalid input: labels has 4 at 1, must be less than the 4 rows of weight");
    EXPECT_EQ(labelled({-1, 3}, {4, 3}), "invalid input: labels has -1 at 0, must be at least 0");
  }
  EXPECT_EQ(labelled({0, 1, 2}, {4, 3}), "invalid input: labels has shape (3,), must have (2,)");
  EXPECT_EQ(labelled({0, 1}, {4, 2}), "invalid input: weight has shape (4,2), must have (K,3) with labels");
  EXPECT_EQ(labelled({0, 1}, {3}), "invalid input: weight has shape (3,), must have (K,3) with labels");
  EXPECT_EQ(told({{"bias", cases::normal(random, {2, 3})}}), "invalid input: bias has shape (2,3), must have (3,)");
  EXPECT_EQ(told({{"delta_bias", cases::normal(random, {1, 3})}}),
            "invalid input: delta_bias has shape (1,3), must have (2,3)");
}

// What no call by doubles of the row's roles can be given.
TEST(ConditionalRows, SayWhatTypesAreWrong) {
  Queue queue = backend::queue();
  const auto made = [&] { return make_operation(Layer("conditional_batch_norm"), 1, self(), queue); };
  const Shape shape{2, 1};
  const backend::Array<double> x{1, 2}, numbers{0, 1};
  const backend::Array<std::int64_t> integers{1, 2};
  backend::Array<double> y(2), room(1);
  const OutputSlots output{{"output", backend::view(y.data(), shape)}};
  const ConstTensorView input = backend::view(x.data(), shape);
  EXPECT_EQ(error_of([&] {
              made()->forward({{"input", input}, {"labels", backend::view(numbers.data(), Shape{2})}}, output, queue);
            }),
            "invalid argument: labels has dtype f64, must have i64");
  EXPECT_EQ(error_of([&] {
              made()->forward({{"input", backend::view(integers.data(), shape)}}, output, queue);
            }),
            "invalid argument: input has dtype i64, must have f64, f32, f16 or bf16");
  const auto operation = made();
  const auto saved = operation->forward({{"input", input}}, output, queue);
  EXPECT_EQ(error_of([&] {
              operation->backward(*saved, {{"grad_output", input}},
                                  {{"grad_weight", backend::view(room.data(), Shape{1})}}, queue);
            }),
            "invalid argument: grad_weight is asked for, must not be where forward had no weight");
}

// The host does not look at labels in a GPU's memory: samples without a row are NaN, and what is wrong is told after
// the call.
TEST(ConditionalRows, OnAGpuTellOfLabelsAfterTheCall) {
  if (backend::device().kind == DeviceKind::cpu) GTEST_SKIP() << "there they are refused before it";
  Queue queue = backend::queue();
  const Shape shape{4, 3, 2};
  const backend::Array<double> x(24, 1), table(12, 2), dy(24);
  for (const std::int64_t label : {std::int64_t{4}, std::int64_t{-1}, std::int64_t{1} << 60})
    for (const bool again : {false, true}) {
      SCOPED_TRACE(label);
      const auto operation = make_operation(Layer("conditional_instance_norm"), 3, self(), queue);
      const backend::Array<std::int64_t> styles{3, label, 0, label};
      backend::Array<double> y(24);
      const auto saved = operation->forward({{"input", backend::view(x.data(), shape)},
                                             {"weight", backend::view(table.data(), Shape{4, 3})},
                                             {"styles", backend::view(styles.data(), Shape{4})}},
                                            {{"output", backend::view(y.data(), shape)}}, queue);
      queue.wait();
      for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 6 % 2 == 1);
      const std::string told = "invalid input: styles had " + std::to_string(label) +
                               " at 1 in an earlier call, must be " +
                               (label < 0 ? "at least 0" : "less than the 4 rows of its table");
      EXPECT_EQ(error_of([&] {
                  again ? operation->backward(*saved, {{"grad_output", backend::view(dy.data(), shape)}}, {}, queue)
                        : operation->check();
                }),
                told);
      EXPECT_EQ(error_of([&] { operation->check(); }), "");  // it is told once
    }
}

// A rank whose labels are wrong ends the others' call at once.
TEST(ConditionalBatchNorm, TellsTheOtherRanks) {
  if (backend::device().kind != DeviceKind::cpu) GTEST_SKIP() << "the host does not look at labels of a GPU";
  std::vector<std::string> told(2);
  harness::run(2, [&](const harness::World& world, Queue&) {
    Subject subject(parse_layer("conditional_batch_norm:sync=world"), 1, DType::f64, Order::channels_first, world);
    told[static_cast<std::size_t>(world->rank())] = error_of([&] {
      subject({{"input", {{1, 1, 2}, {1, 2}}},
               {"weight", {{2, 1}, {1, 2}}},
               {"labels", {{1}, {world->rank() == 1 ? 2.0 : 0.0}}}});
    });
  });
  EXPECT_EQ(told[1], "invalid input: labels has 2 at 0, must be less than the 2 rows of weight");
  EXPECT_NE(told[0].find("labels has 2 at 0"), std::string::npos) << told[0];
}

}  // namespace
}  // namespace conditional_test
