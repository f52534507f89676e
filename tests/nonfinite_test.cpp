// Values that are not finite in one call: which later numbers they reach, on every device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "allnorm/operation.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "harness.hpp"

namespace nonfinite_test {
namespace {

using namespace allnorm;

constexpr std::int64_t C = 3, N = 4, S = 5;
constexpr int steps = 9, hit_step = 3;

enum class Hit { nothing, input, conv_input };

// The numbers after one call: y of channel c, and the running statistics.
struct Trace {
  std::vector<double> y[C], mean, running_mean, running_spread;
  std::int64_t tracked = 0;
};

/// `steps` calls; in one of them the last rank has `value` in channel 0. Before `resume` the layer is replaced by one
/// that loads its saved state.
std::vector<Trace> run(const Layer& layer, const harness::World& world, Queue& queue, Hit hit, double value,
                       int resume = -1) {
  cases::Random random(20 + static_cast<std::uint64_t>(world->rank()));
  cases::Random alike(19);
  std::vector<Trace> traces;
  Norm norm(layer, C, world, queue);
  backend::Array<double> x(N * C * S), y(x.size()), a(N * 2 * S), w(C * 2);
  for (int step = 0; step < steps; ++step) {
    for (double& v : x) v = random.normal();
    for (double& v : a) v = random.normal();
    if (step % layer.options.minibatches == 0)
      for (double& v : w) v = alike.normal();
    if (step == hit_step && world->rank() + 1 == world->size()) {
      if (hit == Hit::input) x[2 * C * S + 1] = value;
      if (hit == Hit::conv_input) a[1] = value;
    }
    if (step == resume) {
      Norm resumed(layer, C, world, queue);
      resumed.load(norm.save(queue), queue);
      norm = std::move(resumed);
    }
    ForwardInputs in;
    in.input = backend::view(x.data(), Shape{N, C, S});
    in.conv_input = backend::view(a.data(), Shape{N, 2, S});
    in.conv_weight = backend::view(w.data(), Shape{C, 2, 1});
    const Saved saved = norm.forward(in, backend::view(y.data(), Shape{N, C, S}), queue);
    Trace trace;
    trace.mean = to_host(saved.frame().mean, queue);
    for (std::int64_t n = 0; n < N; ++n)
      for (std::int64_t c = 0; c < C; ++c)
        trace.y[c].insert(trace.y[c].end(), y.begin() + (n * C + c) * S, y.begin() + (n * C + c + 1) * S);
    const RunningStatistics running = norm.running(queue);
    trace.running_mean = running.mean;
    trace.running_spread = running.spread;
    trace.tracked = running.tracked;
    traces.push_back(std::move(trace));
  }
  return traces;
}

bool finite(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

// Equal bits, a NaN to any other.
bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](double p, double q) { return p == q || (std::isnan(p) && std::isnan(q)); });
}

class Nonfinite : public testing::TestWithParam<const char*> {};

TEST_P(Nonfinite, ValuesReachTheirBatchAndChannelOnly) {
  const Layer layer = parse_layer(GetParam());
  const int last_spoiled =  // the batch of the call ends
      static_cast<int>((hit_step / layer.options.minibatches + 1) * layer.options.minibatches) - 1;
  for (const int ranks : {1, 2})
    for (const double value : {std::nan(""), -HUGE_VAL, 1e200})  // 1e200: the variance is over the range of f64
      harness::run(ranks, [&](const harness::World& world, Queue& queue) {
        const auto clean = run(layer, world, queue, Hit::nothing, 0), hit = run(layer, world, queue, Hit::input, value);
        for (std::size_t step = 0; step < steps; ++step) {
          for (const std::size_t c : {1u, 2u}) {
            EXPECT_EQ(hit[step].y[c], clean[step].y[c]) << step;
            EXPECT_EQ(hit[step].running_mean[c], clean[step].running_mean[c]) << step;
            EXPECT_EQ(hit[step].running_spread[c], clean[step].running_spread[c]) << step;
          }
          EXPECT_EQ(hit[step].tracked, clean[step].tracked) << step;
          const auto s = static_cast<int>(step);
          const bool spoiled = s >= hit_step && s <= last_spoiled;
          if (!spoiled) {
            EXPECT_TRUE(finite(hit[step].y[0])) << step;
          }
          if (s < hit_step) continue;
          // the running statistics stay where they were before the batch's values came, and then go on
          const Trace& before = hit[step - 1];
          if (spoiled) {
            EXPECT_EQ(hit[step].running_mean[0], before.running_mean[0]) << step;
            EXPECT_EQ(hit[step].running_spread[0], before.running_spread[0]) << step;
          } else if (hit[step].tracked != before.tracked) {
            EXPECT_NE(hit[step].running_mean[0], before.running_mean[0]) << step;
          }
        }
      });
}

// What is saved while such values are in a batch or a window loads, and goes on to the same bits.
TEST_P(Nonfinite, StatesLoadAndGoOn) {
  const Layer layer = parse_layer(GetParam());
  harness::run(2, [&](const harness::World& world, Queue& queue) {
    const auto whole = run(layer, world, queue, Hit::input, HUGE_VAL);
    for (int resume = hit_step; resume < steps; ++resume) {
      const auto resumed = run(layer, world, queue, Hit::input, HUGE_VAL, resume);
      for (std::size_t step = 0; step < steps; ++step) {
        for (std::size_t c = 0; c < C; ++c) EXPECT_TRUE(same(resumed[step].y[c], whole[step].y[c])) << step;
        EXPECT_EQ(resumed[step].running_mean, whole[step].running_mean) << step;
        EXPECT_EQ(resumed[step].running_spread, whole[step].running_spread) << step;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Family, Nonfinite,
    testing::Values("sync_batch_norm", "batch_norm:momentum=cumulative", "batch_renorm",
                    "cross_mini_batch_norm:minibatches=2:running=every", "cross_mini_batch_norm:minibatches=3",
                    "cross_iteration_batch_norm:window=3:compensate=false:guard=drop:running_source=window",
                    "cross_iteration_batch_norm:window=3",
                    "cross_iteration_batch_norm:window=3:minibatches=2:renorm=true:burn_in=1"),
    [](const auto& layer) { return "Layer" + std::to_string(layer.index); });

// A call that must not change the state does not, on any device; on a GPU it is the next one that throws.
TEST(NonfiniteRule, HoldsOnEveryDevice) {
  const bool on_cpu = backend::device().kind == DeviceKind::cpu;
  for (const std::string rule : {"propagate", "skip_update", "fail"})
    for (const char* layer : {"sync_batch_norm", "cross_iteration_batch_norm:sync=world:window=3:minibatches=2",
                              "instance_norm:track=true:sync=world"})
      for (const int ranks : {1, 2})
        harness::run(ranks, [&](const harness::World& world, Queue& queue) {
          SCOPED_TRACE(rule + " " + layer + " " + std::to_string(ranks));
          Norm norm(parse_layer(std::string(layer) + ":nonfinite=" + rule), C, world, queue);
          cases::Random random(30 + static_cast<std::uint64_t>(world->rank()));
          backend::Array<double> x(N * C * S), y(x.size()), a(N * 2 * S), w(C * 2, 0.5);
          ForwardInputs in;
          in.input = backend::view(x.data(), Shape{N, C, S});
          if (norm.layer().options.compensates()) {
            in.conv_input = backend::view(a.data(), Shape{N, 2, S});
            in.conv_weight = backend::view(w.data(), Shape{C, 2, 1});
          }
          const auto call = [&](bool hit) {
            for (double& v : x) v = random.normal();
            for (double& v : a) v = random.normal();
            if (hit && world->rank() + 1 == world->size()) x[S] = std::nan("");
            const std::string error = harness::error_of([&] {
              norm.forward(in, backend::view(y.data(), Shape{N, C, S}), queue);
            });
            queue.wait();
            return error;
          };
          const auto bytes = [&] {
            std::vector<std::byte> all;
            for (const StateEntry& entry : norm.save(queue).entries)
              all.insert(all.end(), entry.data.begin(), entry.data.end());
            return all;
          };
          for (int i = 0; i < 3; ++i) EXPECT_EQ(call(false), "");
          const auto before = bytes();
          std::string error = call(true);
          const bool of_channels = norm.layer().statistics() == Axes{Axis::channel};
          const std::string told = "rank " + std::to_string(ranks - 1) + ": " + std::string(norm.layer().row->name) +
                                   ", call 3, forward: input is not finite in " + (of_channels ? "channel" : "group") +
                                   " 1";
          EXPECT_EQ(norm.nonfinite().calls, 1);
          EXPECT_EQ(norm.nonfinite().last, told);
          if (rule == "propagate")
            EXPECT_NE(bytes(), before);
          else
            EXPECT_EQ(bytes(), before);
          if (rule == "fail" && !on_cpu) {
            EXPECT_EQ(error, "");
            error = call(false);
          }
          EXPECT_EQ(error, rule == "fail" ? "non-finite: " + told + ", must be finite everywhere" : "");
          EXPECT_EQ(call(false), "");  // it is told once, and the layer goes on
          EXPECT_NE(bytes(), before);
        });
}

// The same of the operation that keeps its state with a norm, whose samples are whole or in parts.
TEST(NonfiniteRule, HoldsForSwitchableNormOnEveryDevice) {
  const bool on_cpu = backend::device().kind == DeviceKind::cpu;
  for (const std::string rule : {"propagate", "skip_update", "fail"})
    for (const std::string shard : {"batch", "space"})
      for (const int ranks : {1, 2})
        harness::run(ranks, [&](const harness::World& world, Queue& queue) {
          SCOPED_TRACE(rule + " " + shard + " " + std::to_string(ranks));
          const auto operation = make_operation(
              parse_layer("switchable_norm:sync=world:shard=" + shard + ":nonfinite=" + rule), C, world, queue);
          cases::Random random(30 + static_cast<std::uint64_t>(world->rank()));
          backend::Array<double> x(N * C * S), y(x.size());
          const auto call = [&](bool hit) {
            for (double& v : x) v = random.normal();
            for (double& v : y) v = 7;
            if (hit && world->rank() + 1 == world->size()) x[S] = std::nan("");
            const std::string error = harness::error_of([&] {
              operation->forward({{"input", backend::view(x.data(), Shape{N, C, S})}},
                                 {{"output", backend::view(y.data(), Shape{N, C, S})}}, queue);
            });
            queue.wait();
            return error;
          };
          const auto bytes = [&] {
            std::vector<std::byte> all;
            for (const StateEntry& entry : operation->save(queue).entries)
              all.insert(all.end(), entry.data.begin(), entry.data.end());
            return all;
          };
          EXPECT_EQ(call(false), "");
          const auto before = bytes();
          std::string error = call(true);
          const std::string told = "rank " + std::to_string(ranks - 1) +
                                   ": switchable_norm, call 1, forward: input is not finite in channel 1";
          EXPECT_EQ(operation->nonfinite().calls, 1);
          EXPECT_EQ(operation->nonfinite().last, told);
          EXPECT_EQ(bytes() == before, rule != "propagate");
          for (const StateEntry& entry : operation->state(queue).entries)
            for (std::size_t c = 0; c < C; ++c)
              EXPECT_TRUE(std::isfinite(reinterpret_cast<const double*>(entry.data.data())[c])) << entry.name;
          EXPECT_EQ(y[2 * S] == 7, rule == "fail" && on_cpu);  // of a channel that was not hit
          if (rule == "fail" && !on_cpu) {
            EXPECT_EQ(error, "");
            error = harness::error_of([&] { operation->check(); });
          }
          EXPECT_EQ(error, rule == "fail" ? "non-finite: " + told + ", must be finite everywhere" : "");
          EXPECT_EQ(call(false), "");  // it is told once, and the layer goes on
          EXPECT_TRUE(std::isfinite(y[0]));
          EXPECT_NE(bytes(), before);
        });
}

// A variance that one value does not have is no matter of the input.
TEST(NonfiniteRule, IsNotBrokenByAnUnbiasedVarianceOfOneValue) {
  Queue queue = backend::queue();
  const auto operation =
      make_operation(parse_layer("switchable_norm:unbiased_instance_var=true:nonfinite=fail"), C, self(), queue);
  backend::Array<double> x{1, 2, 3, 4, 5, 7}, y(x.size());
  operation->forward({{"input", backend::view(x.data(), Shape{2, C, 1})}},
                     {{"output", backend::view(y.data(), Shape{2, C, 1})}}, queue);
  queue.wait();
  EXPECT_EQ(operation->nonfinite().calls, 0);
}

// What is told by the next call at the latest, a check tells before it: of layers around a norm too.
TEST(NonfiniteRule, IsToldByACheck) {
  for (const char* layer : {"batch_norm", "conditional_batch_norm", "spade"}) {
    SCOPED_TRACE(layer);
    Queue queue = backend::queue();
    const auto operation = make_operation(parse_layer(std::string(layer) + ":nonfinite=fail"), C, self(), queue);
    backend::Array<double> x(N * C * S, 0.5), y(x.size()), maps(x.size(), 0.25);
    x[S] = std::nan("");
    InputSlots in{{"input", backend::view(x.data(), Shape{N, C, S})}};
    if (operation->layer().row->tensor("gamma") != nullptr)
      for (const char* map : {"gamma", "beta"}) in.add(map, backend::view(maps.data(), Shape{N, C, S}));
    std::string error = harness::error_of([&] {
      operation->forward(in, {{"output", backend::view(y.data(), Shape{N, C, S})}}, queue);
    });
    queue.wait();
    if (backend::device().kind != DeviceKind::cpu) {
      EXPECT_EQ(error, "");
      error = harness::error_of([&] { operation->check(); });
    }
    EXPECT_NE(error.find("input is not finite in channel 1, must be finite everywhere"), std::string::npos) << error;
    EXPECT_EQ(harness::error_of([&] { operation->check(); }), "");  // once
  }
}

// An iteration leaves the average of its channel: beside the current one, that before it remains of a window of 3.
TEST(NonfiniteWindow, AveragesWhatItCanUse) {
  const Layer windowed = parse_layer("cross_iteration_batch_norm:window=3:compensate=false"), plain("batch_norm");
  Queue queue = backend::queue();
  const auto of = [&](const Layer& layer, Hit hit) { return run(layer, self(), queue, hit, HUGE_VAL); };
  const auto averaged = of(windowed, Hit::input), own = of(plain, Hit::nothing);
  const auto mean = [&](std::size_t step) { return own[step].mean[0]; };
  // sums of two or three means and a division: an ulp each
  const auto expect_near = [](double value, double expected) { EXPECT_NEAR(value, expected, 4e-16); };
  expect_near(averaged[hit_step + 1].mean[0], (mean(hit_step + 1) + mean(hit_step - 1)) / 2);
  expect_near(averaged[hit_step + 2].mean[0], (mean(hit_step + 2) + mean(hit_step + 1)) / 2);
  expect_near(averaged[hit_step + 3].mean[0], (mean(hit_step + 3) + mean(hit_step + 2) + mean(hit_step + 1)) / 3);
}

// Derivatives that are not finite spoil what they move, not later calls.
TEST(NonfiniteWindow, SkipsWhatItCannotMove) {
  Queue queue = backend::queue();
  for (const auto& trace :
       run(parse_layer("cross_iteration_batch_norm:window=3"), self(), queue, Hit::conv_input, std::nan("")))
    for (const auto& y : trace.y) EXPECT_TRUE(finite(y));
}

}  // namespace
}  // namespace nonfinite_test
