// Conditional normalizations: gamma and beta are rows of tables by label or by weights, and what is added to them.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "modulated_support.hpp"

namespace {

using namespace allnorm;
using namespace modulated;
using harness::error_of;
using Labels = std::vector<std::int64_t>;

/// What a call is given besides its input.
struct Given {
  const char* name;
  Doubles weight{}, bias{};              // (K, C), or (C); empty: not given
  Doubles delta_weight{}, delta_bias{};  // (N, C)
  std::optional<Labels> labels{};        // (N)
  Doubles shares{};                      // (N, K)
};

constexpr std::int64_t rows = 3;

// How much of row k of the tables sample n takes.
double share(const Given& given, std::int64_t n, std::int64_t k) {
  if (given.labels) return (*given.labels)[static_cast<std::size_t>(n)] == k ? 1 : 0;
  if (!given.shares.empty()) return given.shares[static_cast<std::size_t>(n * rows + k)];
  return k == 0 ? 1 : 0;
}
std::int64_t rows_of(const Given& given) { return given.labels || !given.shares.empty() ? rows : 1; }

// Of every value.
Doubles expanded(const Given& given, const Extents& shape, const Doubles& table, double otherwise,
                 const Doubles& delta) {
  const Extent3 e(shape);
  Doubles made(e.size());
  for (std::int64_t n = 0; n < e.N; ++n)
    for (std::int64_t c = 0; c < e.C; ++c) {
      double value = delta.empty() ? 0 : delta[static_cast<std::size_t>(n * e.C + c)];
      for (std::int64_t k = 0; k < rows_of(given); ++k)
        value += share(given, n, k) * (table.empty() ? otherwise : table[static_cast<std::size_t>(k * e.C + c)]);
      for (std::int64_t s = 0; s < e.S; ++s) made[e.at(n, c, s)] = value;
    }
  return made;
}
// The gradients of table and delta from those of every value.
Doubles of_delta(const Extents& shape, const Doubles& gradient) {
  const Extent3 e(shape);
  Doubles made(static_cast<std::size_t>(e.N * e.C));
  for (std::size_t i = 0; i < e.size(); ++i) made[i / static_cast<std::size_t>(e.S)] += gradient[i];
  return made;
}
Doubles of_table(const Given& given, const Extents& shape, const Doubles& gradient) {
  const Extent3 e(shape);
  Doubles made(static_cast<std::size_t>(rows_of(given) * e.C));
  for (std::int64_t k = 0; k < rows_of(given); ++k)
    for (std::int64_t n = 0; n < e.N; ++n)
      for (std::int64_t c = 0; c < e.C; ++c)
        for (std::int64_t s = 0; s < e.S; ++s)
          made[static_cast<std::size_t>(k * e.C + c)] += share(given, n, k) * gradient[e.at(n, c, s)];
  return made;
}

template <class T>
void give(Call<T>& call, const Given& given, const Extents& shape) {
  const std::int64_t N = shape[0], C = shape[1];
  const Extents table = rows_of(given) > 1 ? Extents{rows, C} : Extents{C};
  if (!given.weight.empty()) call.give_parameter("weight", given.weight, table);
  if (!given.bias.empty()) call.give_parameter("bias", given.bias, table);
  if (!given.delta_weight.empty()) call.give_parameter("delta_weight", given.delta_weight, {N, C});
  if (!given.delta_bias.empty()) call.give_parameter("delta_bias", given.delta_bias, {N, C});
  const bool styles = call.operation().layer().row->tensor("styles") != nullptr;
  if (given.labels) call.give_labels(styles ? "styles" : "labels", *given.labels);
  if (!given.shares.empty()) call.give_parameter("styles", given.shares, {N, rows});
}

// Every way in which gamma and beta of a row are given.
std::vector<Given> ways(const Row& row, const Extents& shape, Random& random) {
  const auto N = static_cast<std::size_t>(shape[0]), C = static_cast<std::size_t>(shape[1]);
  const auto some = [&](std::size_t size) { return rounded<float>(normals(random, size)); };
  Labels labels(N);
  for (auto& label : labels) label = random.integer(0, rows - 1);
  if (row.tensor("styles") != nullptr) {
    const Doubles shares = some(N * rows);  // they need not add up to 1, nor be positive
    return {{"styles", some(rows * C), some(rows * C), {}, {}, labels, {}},
            {"styles alone", {}, {}, {}, {}, labels, {}},
            {"weights", some(rows * C), some(rows * C), {}, {}, {}, shares},
            {"weights, bias alone", {}, some(rows * C), {}, {}, {}, shares}};
  }
  return {{"nothing", {}, {}, {}, {}, {}, {}},
          {"gamma and beta", some(C), some(C), {}, {}, {}, {}},
          {"deltas", some(C), some(C), some(N * C), some(N * C), {}, {}},
          {"deltas alone", {}, {}, some(N * C), some(N * C), {}, {}},
          {"labels", some(rows * C), some(rows * C), {}, {}, labels, {}},
          {"labels and deltas", some(rows * C), some(rows * C), some(N * C), some(N * C), labels, {}}};
}

std::vector<const Row*> conditional_rows() {
  std::vector<const Row*> made;
  for (const Row& row : catalogue())
    if (row.operation == OperationKind::conditional) made.push_back(&row);
  return made;
}

template <class T>
class Conditional : public testing::Test {};
using Types = testing::Types<double, float, f16, bf16>;
TYPED_TEST_SUITE(Conditional, Types);

TYPED_TEST(Conditional, IsItsDefinitionForwardAndBackward) {
  using T = TypeParam;
  ASSERT_FALSE(conditional_rows().empty());
  Queue queue = backend::queue();
  for (const Row* row : conditional_rows())
    for (const Extents& shape : {Extents{5, 4}, {4, 3, 5}, {3, 5, 2, 7}, {2, 4, 3, 2, 3}, {1, 1, 1}, {0, 3, 4}})
      for (const Order order : {Order::channels_first, Order::channels_last}) {
        if (backend::takes_some && shape.size() == 5) continue;
        Random random(11);
        const bool by_instance = row->statistics.has(Axis::sample);
        const auto size = Extent3(shape).size();
        const Doubles x = rounded<T>(normals(random, size, 0.5)), dy = rounded<T>(normals(random, size));
        for (const Given& given : ways(*row, shape, random)) {
          if (shape[0] == 0 && std::string(given.name).starts_with("weights"))
            continue;  // without samples there are none
          SCOPED_TRACE(std::string(row->name) + ", " + given.name + ", " + std::to_string(shape.size()) + "-D, " +
                       std::to_string(shape[0]) + " samples" + (order == Order::channels_last ? ", last" : ""));
          const Layer layer(*row);
          const Doubles gamma = expanded(given, shape, given.weight, 1, given.delta_weight),
                        beta = expanded(given, shape, given.bias, 0, given.delta_bias);
          const Answer want = solve(shape, by_instance, layer.options.eps, x, gamma, beta, dy);
          Call<T> call(layer, shape, order, self(), queue);
          call.give("input", x);
          give(call, given, shape);
          double largest = 1;  // sets of few values cancel: dx is held to the size of its terms
          for (const double g : gamma) largest = std::max(largest, std::abs(g));
          expect_near("output", call.forward(), want.y, map_bound<T>, largest);
          call.backward(dy);
          const double terms = by_instance && Extent3(shape).S == 1 ? 1 / std::sqrt(layer.options.eps) : 20;
          expect_near("grad_input", call.gradient("input"), want.dx, map_bound<T>, largest * terms);
          const double sums = std::sqrt(static_cast<double>(size));
          if (!given.weight.empty())
            expect_near("grad_weight", call.gradient("weight"), of_table(given, shape, want.dgamma), sum_bound<T>,
                        sums);
          if (!given.bias.empty())
            expect_near("grad_bias", call.gradient("bias"), of_table(given, shape, want.dbeta), sum_bound<T>, sums);
          if (given.delta_weight.empty()) continue;
          expect_near("grad_delta_weight", call.gradient("delta_weight"), of_delta(shape, want.dgamma), sum_bound<T>,
                      sums);
          expect_near("grad_delta_bias", call.gradient("delta_bias"), of_delta(shape, want.dbeta), sum_bound<T>, sums);
        }
      }
}

TEST(ConditionalRows, HaveTheGradientsThatCentralDifferencesHave) {
  if (backend::takes_some) GTEST_SKIP() << "the formulas are those of the CPU";
  const Extents shape{3, 2, 2, 2};
  Queue queue = backend::queue();
  for (const Row* row : conditional_rows()) {
    Random random(3);
    const Doubles x = normals(random, 24), dy = normals(random, 24);
    for (const Given& given : ways(*row, shape, random)) {
      SCOPED_TRACE(std::string(row->name) + ", " + given.name);
      const auto loss = [&](const Doubles& at, const Given& with) {
        Call<double> call(Layer(*row), shape, Order::channels_first, self(), queue);
        call.give("input", at);
        give(call, with, shape);
        return dot(dy, call.forward());
      };
      Call<double> call(Layer(*row), shape, Order::channels_first, self(), queue);
      call.give("input", x);
      give(call, given, shape);
      call.forward();
      call.backward(dy);
      for (std::size_t i = 0; i < x.size(); ++i)
        EXPECT_NEAR(call.gradient("input")[i], slope(x, i, [&](const Doubles& at) { return loss(at, given); }), 1e-7);
      for (const auto& [slot, member] : {std::pair{"weight", &Given::weight},
                                         {"bias", &Given::bias},
                                         {"delta_weight", &Given::delta_weight},
                                         {"delta_bias", &Given::delta_bias}}) {
        const Doubles& values = given.*member;
        for (std::size_t i = 0; i < values.size(); ++i)
          EXPECT_NEAR(call.gradient(slot)[i],
                      slope(values, i,
                            [&](const Doubles& at) {
                              Given other = given;
                              other.*member = at;
                              return loss(x, other);
                            }),
                      1e-8)
              << slot;
      }
    }
  }
}

// With one class, or without deltas, every option of the base does what it does there.
TEST(ConditionalBatchNorm, IsBatchNormWhereAllSamplesAreAlike) {
  Queue queue = backend::queue();
  const Extents shape{4, 3, 5};
  for (const char* attributes :
       {":activation=relu", ":renorm=true:momentum=0.3", ":minibatches=2:weighting=count", ":eps_place=outside",
        ":window=3:compensate=false", ":training=false", ":momentum=cumulative:unbiased_running_var=false"}) {
    SCOPED_TRACE(attributes);
    Random random(5);
    const Doubles gamma = normals(random, 3), beta = normals(random, 3);
    Call<float> plain(parse_layer("batch_norm" + std::string(attributes)), shape, Order::channels_first, self(), queue);
    Call<float> conditional(parse_layer("conditional_batch_norm" + std::string(attributes)), shape,
                            Order::channels_first, self(), queue);
    const Doubles x = normals(random, 60), residual = normals(random, 60), dy = normals(random, 60);
    plain.give_parameter("weight", gamma, {3});
    plain.give_parameter("bias", beta, {3});
    conditional.give_parameter("weight", gamma, {1, 3});
    conditional.give_parameter("bias", beta, {1, 3});
    conditional.give_labels("labels", {0, 0, 0, 0});
    for (Call<float>* call : {&plain, &conditional}) {
      call->give("input", x);
      call->give("residual", residual);
    }
    for (int step = 0; step < 4; ++step) {
      EXPECT_EQ(conditional.forward(), plain.forward());
      plain.backward(dy);
      conditional.backward(dy);
      expect_near("grad_input", conditional.gradient("input"), plain.gradient("input"), backend::statistics_unit, 0);
      EXPECT_EQ(conditional.gradient("residual"), plain.gradient("residual"));
      expect_near("grad_weight", conditional.gradient("weight"), plain.gradient("weight"),
                  1e-14 + backend::statistics_unit, 10);
      const State state = conditional.operation().save(queue), same = plain.operation().save(queue);
      for (const char* name : {"running_mean", "num_batches_tracked"})
        EXPECT_EQ(state.find(name)->data, same.find(name)->data);
      for (const char* name : {"mean", "var"}) EXPECT_EQ(conditional.statistic(name), plain.statistic(name));
    }
    plain.operation().load(conditional.operation().save(queue), queue);  // they mean the same
    EXPECT_EQ(plain.forward(), conditional.forward());
  }
}

TEST(ConditionalBatchNorm, ReplaysAndInfers) {
  Queue queue = backend::queue();
  Random random(1);
  const Extents shape{2, 2, 3};
  Call<double> call(Layer("conditional_batch_norm"), shape, Order::channels_first, self(), queue);
  call.give("input", normals(random, 12));
  call.give_parameter("weight", normals(random, 4), {2, 2});
  call.give_labels("labels", {1, 0});
  const Doubles first = call.forward();
  call.clear();
  call.operation().replay(call.saved(), call.inputs(), call.output(), queue);
  EXPECT_EQ(call.result(), first);
  call.operation().infer(call.inputs(), call.output(), queue);
  const Doubles inferred = call.result();
  EXPECT_NE(inferred, first);
  call.operation().set_training(false);
  EXPECT_EQ(call.forward(), inferred);
}

TEST(ConditionalRows, OverRanksAreOneRankOnAllSamples) {
  const Extents shape{5, 3, 4};
  Random random(9);
  const Row& row = *Layer("conditional_batch_norm").row;
  const Doubles x = normals(random, 60, 3), dy = normals(random, 60);
  const Given given = ways(row, shape, random).back();
  const Answer want = solve(shape, false, 1e-5, x, expanded(given, shape, given.weight, 1, given.delta_weight),
                            expanded(given, shape, given.bias, 0, given.delta_bias), dy);
  Doubles y(60), dx(60), dweight(static_cast<std::size_t>(rows) * 3);
  std::vector<Doubles> parts(2);
  harness::run(2, [&](const harness::World& world, Queue& queue) {
    const bool second = world->rank() == 1;
    const std::int64_t samples = second ? 2 : 3;
    const auto part = [&](const Doubles& all, std::size_t each) {
      const auto from = all.begin() + static_cast<std::ptrdiff_t>(second ? 3 * each : 0);
      return Doubles(from, from + static_cast<std::ptrdiff_t>(each) * samples);
    };
    Given own = given;
    own.delta_weight = part(given.delta_weight, 3);
    own.delta_bias = part(given.delta_bias, 3);
    own.labels = Labels(given.labels->begin() + (second ? 3 : 0), given.labels->end() - (second ? 0 : 2));
    const Extents own_shape{samples, 3, 4};
    Call<double> call(parse_layer("conditional_batch_norm:sync=world"), own_shape, Order::channels_first, world, queue);
    call.give("input", part(x, 12));
    give(call, own, own_shape);
    expect_near("output", call.forward(), part(want.y, 12), 1e-12, 1);
    call.backward(part(dy, 12));
    expect_near("grad_input", call.gradient("input"), part(want.dx, 12), 1e-12, 1);
    parts[static_cast<std::size_t>(world->rank())] = call.gradient("weight");
  });
  for (std::size_t i = 0; i < parts[0].size(); ++i) parts[0][i] += parts[1][i];
  expect_near("grad_weight", parts[0], of_table(given, shape, want.dgamma), 1e-12, 1);
}

TEST(ConditionalRows, SayWhatIsWrong) {
  Queue queue = backend::queue();
  Random random(2);
  const Doubles x = normals(random, 12);
  const auto told = [&](const char* layer, const auto& more) {
    return error_of([&] {
      Call<double> call(Layer(layer), {2, 3, 2}, Order::channels_first, self(), queue);
      call.give("input", x);
      more(call);
      call.forward();
    });
  };
  const auto labelled = [&](const Labels& labels, const Extents& table) {
    return told("conditional_batch_norm", [&](Call<double>& call) {
      call.give_labels("labels", labels);
      call.give_parameter("weight", normals(random, static_cast<std::size_t>(reference::elements(table))), table);
    });
  };
  if (backend::device().kind == DeviceKind::cpu) {
    EXPECT_EQ(labelled({0, 4}, {4, 3}), "invalid input: labels has 4 at 1, must be less than the 4 rows of weight");
    EXPECT_EQ(labelled({-1, 3}, {4, 3}), "invalid input: labels has -1 at 0, must be at least 0");
  }
  EXPECT_EQ(labelled({0, 1, 2}, {4, 3}), "invalid input: labels has shape (3,), must have (2,)");
  EXPECT_EQ(labelled({0, 1}, {4, 2}), "invalid input: weight has shape (4,2), must have (K,3) with labels");
  EXPECT_EQ(labelled({0, 1}, {3}), "invalid input: weight has shape (3,), must have (K,3) with labels");
  EXPECT_EQ(told("conditional_batch_norm",
                 [&](Call<double>& call) {
                   call.give_parameter("bias", normals(random, 6), {2, 3});
                 }),
            "invalid input: bias has shape (2,3), must have (3,)");
  EXPECT_EQ(told("conditional_batch_norm",
                 [&](Call<double>& call) {
                   call.give_parameter("delta_bias", normals(random, 3), {1, 3});
                 }),
            "invalid input: delta_bias has shape (1,3), must have (2,3)");
  EXPECT_EQ(told("conditional_batch_norm",
                 [&](Call<double>& call) {
                   call.give_parameter("labels", {0, 1}, {2});
                 }),
            "invalid argument: labels has dtype f64, must have i64");
  EXPECT_EQ(error_of([&] {
              const backend::Array<std::int64_t> integers{1, 2};
              backend::Array<double> y(2);
              const auto operation = make_operation(Layer("conditional_batch_norm"), 1, self(), queue);
              operation->forward({{"input", backend::view(integers.data(), Shape{2, 1})}},
                                 {{"output", backend::view(y.data(), Shape{2, 1})}}, queue);
            }),
            "invalid argument: input has dtype i64, must have f64, f32, f16 or bf16");
  EXPECT_EQ(error_of([&] {
              Call<double> call(Layer("conditional_batch_norm"), {2, 3, 2}, Order::channels_first, self(), queue);
              call.give("input", x);
              call.forward();
              backend::Array<double> room(3);
              call.operation().backward(call.saved(), {{"grad_output", call.inputs()["input"]}},
                                        {{"grad_weight", backend::view(room.data(), Shape{3})}}, queue);
            }),
            "invalid argument: grad_weight is asked for, must not be where forward had no weight");
}

// The host does not look at labels in a GPU's memory: samples without a row are NaN, and what is wrong is told after
// the call.
TEST(ConditionalRows, OnAGpuTellOfLabelsAfterTheCall) {
  if (backend::device().kind == DeviceKind::cpu) GTEST_SKIP() << "there they are refused before it";
  Queue queue = backend::queue();
  for (const std::int64_t label : {std::int64_t{4}, std::int64_t{-1}, std::int64_t{1} << 60})
    for (const bool again : {false, true}) {
      SCOPED_TRACE(label);
      Random random(2);
      Call<double> call(Layer("conditional_instance_norm"), {4, 3, 2}, Order::channels_first, self(), queue);
      call.give("input", normals(random, 24));
      call.give_parameter("weight", normals(random, 12), {4, 3});
      call.give_labels("styles", {3, label, 0, label});
      const Doubles y = call.forward();
      for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 6 % 2 == 1);
      const std::string told = "invalid input: styles had " + std::to_string(label) +
                               " at 1 in an earlier call, must be " +
                               (label < 0 ? "at least 0" : "less than the 4 rows of its table");
      EXPECT_EQ(error_of([&] { again ? call.backward(Doubles(24)) : call.operation().check(); }), told);
      EXPECT_EQ(error_of([&] { call.operation().check(); }), "");  // it is told once
    }
}

// A rank whose labels are wrong ends the others' call at once.
TEST(ConditionalBatchNorm, TellsTheOtherRanks) {
  if (backend::device().kind != DeviceKind::cpu) GTEST_SKIP() << "the host does not look at labels of a GPU";
  std::vector<std::string> told(2);
  harness::run(2, [&](const harness::World& world, Queue& queue) {
    Call<double> call(parse_layer("conditional_batch_norm:sync=world"), {1, 1, 2}, Order::channels_first, world, queue);
    call.give("input", {1, 2});
    call.give_parameter("weight", {1, 2}, {2, 1});
    call.give_labels("labels", {world->rank() == 1 ? 2 : 0});
    told[static_cast<std::size_t>(world->rank())] = error_of([&] { call.forward(); });
  });
  EXPECT_EQ(told[1], "invalid input: labels has 2 at 0, must be less than the 2 rows of weight");
  EXPECT_NE(told[0].find("labels has 2 at 0"), std::string::npos) << told[0];
}

}  // namespace
