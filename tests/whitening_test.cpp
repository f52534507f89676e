// Layers that whiten against the oracle: alone, over ranks, far from 0, at any scale, and their state.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "backend.hpp"
#include "harness.hpp"
#include "launch/reference/whitening.hpp"
#include "operation_cases.hpp"

namespace whitening_test {
namespace {

using namespace operation_cases;
using harness::error_of;
using reference::Ranks;
using reference::Whitening;
using reference::WhiteningOptions;

constexpr std::int64_t newton_steps = 5;

Layer layer_of(const WhiteningOptions& o, const std::string& more = "") {
  Layer layer = parse_layer(o.iterations == 0 ? "decorrelated_batch_norm" + more : "iterative_norm" + more);
  layer.options.group_size = o.group_size;
  if (o.iterations > 0) layer.options.iterations = o.iterations;
  layer.options.eps = o.eps;
  layer.options.momentum = o.momentum;
  layer.options.training = o.training;
  return layer;
}

// Channels that are correlated: each takes a part of the one before it.
Array correlated(Random& random, const Extents& shape, DType dtype = DType::f64, double mean = 0.5, double scale = 1) {
  Array x = cases::channelwise(random, shape, 0, 1);
  const auto C = static_cast<std::size_t>(shape[1]);
  const auto S = static_cast<std::size_t>(reference::elements({shape.begin() + 2, shape.end()}));
  for (std::size_t i = 0; i < x.v.size(); ++i)
    if (S > 0 && i / S % C > 0) x.v[i] += 0.4 * x.v[i - S];
  for (double& v : x.v) v = scale * (v + mean);
  return rounded(x, dtype);
}

struct State2 {
  Doubles mean, whitening;
};
State2 fresh(std::int64_t channels, const WhiteningOptions& o) {
  return {Doubles(static_cast<std::size_t>(channels)), reference::identities(channels, o.group_size)};
}

// Relative, of a covariance: roundings of as many terms as a group has channels, and of sums.
double unit_of_covariances(DType dtype, const Whitening& of) {
  const double width = static_cast<double>(of.whitening.size()) / static_cast<double>(of.mean.size());
  return (2 + width) * 0x1p-52 + backend::statistics_unit(dtype);
}

// What one call of a rank made. `far`: relative to what statistics are right to.
void expect_equal(Arrays& got, const Whitening& want, std::size_t rank, DType dtype, double far = 0) {
  const double statistics = (unit_of_covariances(dtype, want) + far) * want.condition,
               map = tolerance_of(dtype) + statistics;
  expect_near("output", got["output"].v, want.y[rank].v, map, want.y_terms);
  expect_near("grad_input", got["grad_input"].v, want.dx[rank].v, map, want.dx_terms);
}
void expect_running(Subject& subject, const Whitening& want, double far = 0, double scale = 1) {
  const double unit = unit_of_covariances(subject.dtype, want) + far, bound = 1e-13 + unit * want.condition;
  double largest = 0;
  for (const double w : want.whitening) largest = std::max(largest, std::abs(w));
  expect_near("running_mean", subject.state("running_mean"), want.running_mean, 1e-13 + unit, scale);
  expect_near("running_whitening", subject.state("running_whitening"), want.running_whitening, bound, largest);
}

void expect_calls(const WhiteningOptions& given, const Extents& shape, DType dtype, Order order) {
  Random random(3);
  WhiteningOptions o = given;
  State2 state = fresh(shape[1], o);
  Subject subject(layer_of(o), shape[1], dtype, order);
  double condition = 1;
  for (int step = 0; step < 4; ++step) {
    o.training = step < 3;
    subject.operation->set_training(o.training);
    const Array x = correlated(random, shape, dtype), dy = rounded(cases::normal(random, shape), dtype);
    Whitening want = reference::whiten({x}, {dy}, o, state.mean, state.whitening);
    want.condition = condition = std::max(condition, want.condition);  // the running ones are of all calls
    Arrays got = subject({{"input", x}, {"grad_output", dy}});
    expect_equal(got, want, 0, dtype);
    expect_running(subject, want);
    state = {want.running_mean, want.running_whitening};
  }
}

TEST(Whitening, EqualsTheLoops) {
  struct Size {
    Extents shape;
    std::int64_t group_size;
  };
  const Size sizes[] = {{{9, 4}, 2},    {{5, 6, 7}, 3},   {{3, 5, 4, 3}, 5}, {{2, 8, 17, 19}, 4}, {{2, 4, 3, 2, 3}, 1},
                        {{1, 2, 1}, 2}, {{2, 16, 5}, 16}, {{0, 4, 3}, 2},    {{2, 4, 0}, 2}};
  for (const std::int64_t iterations : {std::int64_t{0}, newton_steps})
    for (const DType dtype : types)
      for (const Order order : {Order::channels_first, Order::channels_last})
        for (const auto& [shape, group_size] : sizes) {
          if (group_size == 16 && (iterations > 0 || dtype != DType::f32)) continue;  // the oracle's g^6
          if (backend::takes_some && (dtype == DType::f16 || reference::elements(shape) > 150)) continue;
          SCOPED_TRACE(std::to_string(iterations) + " iterations, " + std::string(to_string(dtype)) + ", " +
                       std::to_string(shape.size()) + "-D, groups of " + std::to_string(group_size) +
                       (order == Order::channels_first ? "" : ", channels last"));
          expect_calls({.group_size = group_size, .iterations = iterations}, shape, dtype, order);
        }
}

TEST(Whitening, GradientsAreCentralDifferences) {
  for (const std::int64_t iterations : {std::int64_t{0}, std::int64_t{1}, newton_steps})
    for (const bool training : {true, false}) {
      Random random(5);
      const WhiteningOptions o{.group_size = 3, .iterations = iterations, .eps = 1e-2, .training = training};
      const Arrays given{{"input", correlated(random, {5, 6, 2})}, {"grad_output", cases::normal(random, {5, 6, 2})}};
      State state;
      const Doubles mean = cases::normal(random, {6}).v, whitening = cases::normal(random, {18}).v;  // no symmetry
      state.add("running_mean", mean.data(), Shape{6});
      state.add("running_whitening", whitening.data(), Shape{2, 3, 3});
      operation_cases::expect_gradients(
          [&] {
            Subject subject(layer_of(o), 6);
            subject.operation->set_state(state, subject.queue);
            return subject;
          },
          given, 1e-8);
    }
}

// Equal eigenvalues, where a derivative by way of eigenvectors has no value.
TEST(Whitening, HasAGradientWhereEigenvaluesAreEqual) {
  Array x{{4, 2, 1}, {1, 1, 1, -1, -1, 1, -1, -1}};
  Random random(5);
  const Arrays given{{"input", x}, {"grad_output", cases::normal(random, {4, 2, 1})}};
  operation_cases::expect_gradients([] { return Subject(layer_of({.group_size = 2}), 2); }, given, 1e-8);
}

TEST(Whitening, LeavesNoCorrelation) {
  Random random(7);
  const Extents shape{40, 6, 9};
  const WhiteningOptions o{.group_size = 3, .eps = 1e-10};
  for (const std::int64_t iterations : {std::int64_t{0}, std::int64_t{12}}) {
    WhiteningOptions own = o;
    own.iterations = iterations;
    Subject subject(layer_of(own), shape[1]);
    const Doubles y = subject({{"input", correlated(random, shape)}})["output"].v;
    for (std::size_t i = 0; i < 6; ++i)
      for (std::size_t j = i / 3 * 3; j < i / 3 * 3 + 3; ++j) {
        double sum = 0, mean = 0;
        for (std::size_t n = 0; n < 40; ++n)
          for (std::size_t s = 0; s < 9; ++s) {
            sum += y[(n * 6 + i) * 9 + s] * y[(n * 6 + j) * 9 + s];
            mean += y[(n * 6 + i) * 9 + s];
          }
        EXPECT_NEAR(sum / 360, i == j ? 1 : 0, 1e-8) << i << " " << j;
        EXPECT_NEAR(mean / 360, 0, 1e-13);
      }
  }
}

// Fewer values than channels in a group: eps stands for what they do not say.
TEST(Whitening, OfFewerValuesThanChannels) {
  for (const std::int64_t iterations : {std::int64_t{0}, newton_steps})
    for (const Extents& shape : {Extents{2, 4}, Extents{1, 4, 3}, Extents{1, 4}})
      expect_calls({.group_size = 4, .iterations = iterations, .eps = 1e-2}, shape, DType::f64, Order::channels_first);
  Random random(3);
  Subject alone(layer_of({.group_size = 4}), 4);
  Arrays got = alone({{"input", cases::normal(random, {1, 4})}, {"grad_output", cases::normal(random, {1, 4})}});
  EXPECT_EQ(got["output"].v, Doubles(4));
  EXPECT_EQ(got["grad_input"].v, Doubles(4));
}

struct Place {
  double ratio = 0, scale = 1;  // |mean| / std, and the size of both
};
void expect_ranks(const WhiteningOptions& o, const std::vector<Extents>& shapes, DType dtype, int gather_limit = 32,
                  Place place = {}) {
  Random random(11);
  Ranks x, dy;
  for (const Extents& shape : shapes) {
    x.push_back(correlated(random, shape, dtype, place.ratio + 0.5, place.scale));
    dy.push_back(rounded(cases::normal(random, shape), dtype));
  }
  const std::int64_t C = shapes[0][1];
  const State2 before = fresh(C, o);
  const Whitening want = reference::whiten(x, dy, o, before.mean, before.whitening);
  // What a mean in one double allows, and the merge of as many.
  const double far = (4 + static_cast<double>(shapes.size())) * 0x1p-53 * (1 + place.ratio);
  Patience patience;
  patience.gather_limit = gather_limit;
  std::mutex mutex;
  harness::run(
      static_cast<int>(shapes.size()),
      [&](const harness::World& world, Queue&) {
        const auto rank = static_cast<std::size_t>(world->rank());
        Subject subject(layer_of(o), C, dtype, rank % 2 == 0 ? Order::channels_first : Order::channels_last, world);
        Arrays got = subject({{"input", x[rank]}, {"grad_output", dy[rank]}});
        const std::lock_guard lock(mutex);
        expect_equal(got, want, rank, dtype, far);
        expect_running(subject, want, far, place.scale * (1 + place.ratio));
        EXPECT_EQ(world->traffic().exchanges, o.training && shapes.size() > 1 ? 2u : 0u);
      },
      patience);
}

TEST(Whitening, OverRanksIsOneRank) {
  const std::vector<std::vector<Extents>> all = {
      {{3, 4, 5}, {2, 4, 5}},
      {{2, 4, 4}, {1, 4, 7}},
      {{0, 4, 4}, {2, 4, 5, 2}, {1, 4, 1}},
      {{1, 4, 6}, {2, 4, 0}, {3, 4, 2}, {1, 4, 1, 2}},
      {{0, 4, 4}, {2, 4, 0}},
  };
  for (const std::int64_t iterations : {std::int64_t{0}, newton_steps})
    for (const DType dtype : types)
      for (const bool training : {true, false})
        for (const int gather_limit : {32, 1})
          for (const auto& shapes : all) {
            if (backend::takes_some && (gather_limit == 1 || (dtype != DType::f64 && shapes.size() != 3))) continue;
            SCOPED_TRACE(std::to_string(iterations) + " iterations, " + std::string(to_string(dtype)) + ", " +
                         std::to_string(shapes.size()) + " ranks" + (training ? "" : ", inference") +
                         (gather_limit > 1 ? "" : ", in a tree"));
            expect_ranks({.group_size = 2, .iterations = iterations, .training = training}, shapes, dtype,
                         gather_limit);
          }
}

TEST(Whitening, MayBeFarFromZeroAndOfAnyScale) {
  const std::vector<Extents> alone{{6, 4, 5}}, three{{0, 4, 5}, {4, 4, 5}, {2, 4, 5}};
  for (const std::int64_t iterations : {std::int64_t{0}, newton_steps}) {
    for (const auto& shapes : {alone, three}) {
      SCOPED_TRACE(std::to_string(iterations) + " iterations, " + std::to_string(shapes.size()) + " ranks");
      const WhiteningOptions o{.group_size = 2, .iterations = iterations, .eps = 0};
      for (const double ratio : {1e4, 1e8}) expect_ranks(o, shapes, DType::f64, 32, {ratio});
      expect_ranks(o, shapes, DType::f32, 32, {1e4});
      for (const double scale : {1e-140, 1e140}) expect_ranks(o, shapes, DType::f64, 32, {0, scale});
      for (const DType dtype : {DType::f32, DType::bf16})
        for (const double scale : {1e-30, 1e30}) expect_ranks(o, shapes, dtype, 32, {0, scale});
    }
  }
}

TEST(Whitening, ReplaysAndInfers) {
  for (const std::int64_t iterations : {std::int64_t{0}, newton_steps}) {
    Random random(9);
    const Doubles values = correlated(random, {4, 4, 5}).v;
    const backend::Array<double> x(values.begin(), values.end());
    backend::Array<double> y(x.size()), again(x.size());
    Queue queue = backend::queue();
    const auto operation = make_operation(layer_of({.group_size = 2, .iterations = iterations}), 4, nullptr, queue);
    const Shape shape{4, 4, 5};
    const InputSlots in{{"input", backend::view(x.data(), shape)}};
    const auto saved = operation->forward(in, {{"output", backend::view(y.data(), shape)}}, queue);
    const State before = operation->state(queue);
    operation->replay(*saved, in, {{"output", backend::view(again.data(), shape)}}, queue);
    queue.wait();
    EXPECT_EQ(again, y);
    operation->infer(in, {{"output", backend::view(again.data(), shape)}}, queue);
    queue.wait();
    EXPECT_NE(again, y);
    const backend::Array<double> inferred = again;
    operation->set_training(false);
    EXPECT_FALSE(operation->forward(in, {{"output", backend::view(again.data(), shape)}}, queue)->training());
    queue.wait();
    EXPECT_EQ(again, inferred);
    for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(operation->state(queue).entries[i].data, before.entries[i].data);
    const Shape other{2, 4, 10};
    EXPECT_EQ(error_of([&] {
                operation->replay(*saved, {{"input", backend::view(x.data(), other)}},
                                  {{"output", backend::view(again.data(), other)}}, queue);
              }),
              "invalid argument: the replayed input has shape (2,4,10), must have (4,4,5) as in the earlier call");
  }
}

TEST(Whitening, RunningStatisticsMayBePlainAverages) {
  Random random(9);
  const WhiteningOptions o{.group_size = 2, .momentum = 1};
  Subject subject(layer_of(o, ":momentum=cumulative"), 4);
  State2 sum = fresh(4, o);
  std::fill(sum.whitening.begin(), sum.whitening.end(), 0);
  for (int step = 0; step < 3; ++step) {
    const Array x = correlated(random, {4, 4, 5});
    const Whitening of = reference::whiten({x}, {x}, o, Doubles(4), Doubles(8));
    for (std::size_t i = 0; i < 4; ++i) sum.mean[i] += of.mean[i] / 3;
    for (std::size_t i = 0; i < 8; ++i) sum.whitening[i] += of.whitening[i] / 3;
    subject({{"input", x}});
  }
  expect_near("running_mean", subject.state("running_mean"), sum.mean, 1e-13, 1);
  expect_near("running_whitening", subject.state("running_whitening"), sum.whitening, 1e-13, 1);
}

TEST(Whitening, GoesOnFromItsSavedState) {
  Random random(9);
  for (const char* more : {"", ":momentum=cumulative"}) {
    const WhiteningOptions o{.group_size = 2};
    const auto given = [&] { return Arrays{{"input", correlated(random, {4, 4, 5})}}; };
    Subject first(layer_of(o, more), 4), second(layer_of(o, more), 4);
    first(given());
    const State saved = first.operation->save(first.queue);
    EXPECT_EQ(saved.find("running_whitening")->shape, (Shape{2, 2, 2}));
    second.operation->load(saved, second.queue);
    const Arrays next = given();
    EXPECT_EQ(first(next)["output"].v, second(next)["output"].v);
    for (const char* name : {"running_mean", "running_whitening"})
      EXPECT_EQ(first.state(name), second.state(name)) << name;
  }
}

TEST(Whitening, RefusesAStateThatIsNotItsOwn) {
  Subject subject(layer_of({.group_size = 2}), 4);
  const auto loads = [&](const State& state) {
    return error_of([&] { subject.operation->load(state, subject.queue); });
  };
  const auto of = [](const Layer& layer) {
    Subject other(layer, 4);
    return other.operation->save(other.queue);
  };
  EXPECT_EQ(loads(of(parse_layer("batch_norm"))),
            "invalid input: state is of layer batch_norm, must be of decorrelated_batch_norm or its family");
  EXPECT_EQ(loads(of(layer_of({.group_size = 2, .iterations = 5}))),
            "invalid input: state is of layer iterative_norm, must be of decorrelated_batch_norm or its family");
  EXPECT_EQ(loads(of(layer_of({.group_size = 4}))),
            "invalid input: state running_whitening has shape (1,4,4), must have (2,2,2)");
  State state;
  const Doubles mean{0, 0, 0, NAN};
  state.add("running_mean", mean.data(), Shape{4});
  EXPECT_EQ(error_of([&] { subject.operation->set_state(state, subject.queue); }),
            "invalid input: state running_mean has nan at 3, must be finite");
  State foreign;
  foreign.add("running_var", mean.data(), Shape{4});
  EXPECT_EQ(error_of([&] { subject.operation->set_state(foreign, subject.queue); }),
            "invalid argument: running_var is given, must not be for decorrelated_batch_norm");
  EXPECT_EQ(subject.state("running_mean"), Doubles(4));
}

TEST(Whitening, ValuesThatAreNotFiniteStayInTheirCallAndGroup) {
  for (const std::int64_t iterations : {std::int64_t{0}, newton_steps})
    for (const double value : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
      Random random(9);
      const WhiteningOptions o{.group_size = 2, .iterations = iterations};
      Array x = correlated(random, {4, 4, 5});
      Subject clean(layer_of(o), 4), hit(layer_of(o), 4);
      const Doubles want = clean({{"input", x}})["output"].v;
      x.v[(1 * 4 + 1) * 5 + 2] = value;  // sample 1, channel 1
      const Doubles got = hit({{"input", x}})["output"].v;
      for (std::size_t i = 0; i < got.size(); ++i) {
        if (i / 5 % 4 < 2)
          EXPECT_TRUE(std::isnan(got[i])) << i;
        else
          EXPECT_EQ(got[i], want[i]) << i;
      }
      const Doubles mean = hit.state("running_mean"), of_clean = clean.state("running_mean");
      EXPECT_EQ(mean, (Doubles{0, 0, of_clean[2], of_clean[3]}));
      Doubles whitening = clean.state("running_whitening");
      std::copy_n(Doubles{1, 0, 0, 1}.begin(), 4, whitening.begin());
      EXPECT_EQ(hit.state("running_whitening"), whitening);
    }
}

TEST(Whitening, SaysWhatIsWrongAndTellsTheOtherRanks) {
  const auto told = [](const std::string& first, const std::string& second, const Shape& of_second) {
    std::vector<std::string> all(2);
    harness::run(2, [&](const harness::World& world, Queue& queue) {
      const bool is_first = world->rank() == 0;
      const Shape shape = is_first ? Shape{2, 4, 3} : of_second;
      const backend::Array<double> x(64, 1.0);
      backend::Array<double> y(64);
      const auto operation = make_operation(parse_layer(is_first ? first : second), 4, world, queue);
      all[static_cast<std::size_t>(world->rank())] = error_of([&] {
        operation->forward({{"input", backend::view(x.data(), shape)}}, {{"output", backend::view(y.data(), shape)}},
                           queue);
      });
    });
    return all;
  };
  const std::string zca = "decorrelated_batch_norm:group_size=2", newton = "iterative_norm:group_size=2";
  const std::string at = "mismatch: rank 1: decorrelated_batch_norm, call 0, forward: ";
  EXPECT_EQ(told(zca, zca, {3, 4, 5})[0], "");
  EXPECT_EQ(told(zca, "decorrelated_batch_norm:group_size=4", {2, 4, 3})[0],
            at + "group_size is 4, must be 2 as on rank 0");
  EXPECT_EQ(told(zca, zca + ":eps=1", {2, 4, 3})[1], at + "eps is 1, must be 1e-05 as on rank 0");
  EXPECT_EQ(told(newton, newton + ":iterations=3", {2, 4, 3})[0],
            "mismatch: rank 1: iterative_norm, call 0, forward: iterations is 3, must be 5 as on rank 0");
  const auto channels = told(zca, zca, {2, 6, 3});
  EXPECT_EQ(channels[1], "invalid input: input has 6 channels, must have 4");
  EXPECT_NE(channels[0].find("input has 6 channels"), std::string::npos) << channels[0];
  Queue queue = backend::queue();
  EXPECT_EQ(error_of([&] { make_operation(parse_layer("iterative_norm"), 24, nullptr, queue); }),
            "invalid argument: attribute group_size is 16, must divide the number of channels, 24");
  EXPECT_EQ(error_of([&] { make_operation(parse_layer("iterative_norm:iterations=1001"), 16, nullptr, queue); }),
            "invalid argument: attribute iterations is 1001, must be at most 1000");
}

TEST(Whitening, RanksWithAnotherRunningStateAreTold) {
  std::vector<std::string> all(2);
  harness::run(2, [&](const harness::World& world, Queue& queue) {
    const auto operation = make_operation(parse_layer("iterative_norm:group_size=2"), 2, world, queue);
    const Doubles mean(2, world->rank());
    const backend::Array<double> x(4);
    State state;
    state.add("running_mean", mean.data(), Shape{2});
    operation->set_state(state, queue);
    backend::Array<double> y(4);
    all[static_cast<std::size_t>(world->rank())] = error_of([&] {
      operation->forward({{"input", backend::view(x.data(), {2, 2})}}, {{"output", backend::view(y.data(), {2, 2})}},
                         queue);
    });
  });
  for (const std::string& text : all)
    EXPECT_EQ(text,
              "mismatch: rank 1: iterative_norm, call 0, forward: the running state differs, must be the same as on "
              "rank 0");
}

}  // namespace
}  // namespace whitening_test
