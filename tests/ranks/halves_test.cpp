// The two halves of a call whose exchange and memory are the caller's, against the ordinary call.
#include "halves_support.hpp"

#include <gtest/gtest.h>

namespace halves_test {
namespace {

using namespace allnorm;
using namespace halves_support;

constexpr int steps = 7;
const Case plain{"Plain", "sync_batch_norm"};
const Case cases_of_halves[] = {
    plain,
    {"Gated", "sync_batch_norm:activation=relu", true},
    {"Renorm", "batch_renorm:sync=world"},
    {"MiniBatches", "cross_mini_batch_norm:sync=world:minibatches=3:weighting=count"},
    {"Stale", "cross_iteration_batch_norm:sync=world:window=3:compensate=false"},
    {"Window", "cross_iteration_batch_norm:sync=world:window=3", false, true},
    {"Composed", "cross_iteration_batch_norm:sync=world:window=3:minibatches=2:renorm=true:burn_in=1", true, true},
    {"MeanOnly", "mean_only_batch_norm:sync=world"},
    {"Tracked", "instance_norm:sync=world:track=true", false, false, {2, 2, 2}},
    {"Groups", "group_norm:sync=world:groups=2", false, false, {2, 2, 2}},
    {"Alone", "cross_iteration_batch_norm:window=3:minibatches=2:renorm=true", true, true, {5}},
    {"Rows", "layer_norm:normalized_shape=4,3", false, false, {5}},
    {"Inference", "batch_norm:activation=relu:training=false", true, false, {3}},
};

struct Trace {
  std::vector<std::vector<double>> steps{};
  std::vector<std::pair<std::string, std::vector<std::byte>>> state{};
  friend bool operator==(const Trace&, const Trace&) = default;

  void end_with(const State& saved) {
    for (const StateEntry& entry : saved.entries) state.emplace_back(entry.name, entry.data);
  }
};

std::vector<Trace> ordinary(const Case& c) {
  std::vector<Trace> traces(c.samples.size());
  harness::run(static_cast<int>(c.samples.size()), [&](const harness::World& world, Queue& queue) {
    Norm norm(parse_layer(c.layer), channels, world, queue, "layer");
    Trace& trace = traces[static_cast<std::size_t>(world->rank())];
    for (int i = 0; i < steps; ++i) {
      Step step(c, i, world->rank());
      if (i == 5) norm.begin_batch(queue);
      const Saved saved = norm.forward(step.inputs(), step.output(), queue);
      norm.backward(saved, step.gradient(), step.outputs(), queue);
      auto results = step.results();
      queue.wait();
      results = step.results();
      for (const auto part : {saved.frame().mean, saved.frame().var, saved.frame().rstd, saved.frame().share}) {
        const auto values = to_host(part, queue);
        results.insert(results.end(), values.begin(), values.end());
      }
      trace.steps.push_back(std::move(results));
    }
    trace.end_with(norm.save(queue));
  });
  return traces;
}

class HalvesOf : public testing::TestWithParam<Case> {};

TEST_P(HalvesOf, MakeTheBitsOfTheOrdinaryOne) {
  const Case& c = GetParam();
  Queue queue = backend::queue();
  std::vector<Caller> callers = callers_of(c, queue);
  std::vector<Trace> traces(callers.size());
  for (int i = 0; i < steps; ++i) {
    std::vector<Step> step;
    for (std::size_t r = 0; r < callers.size(); ++r) step.emplace_back(c, i, static_cast<int>(r));
    const auto each = [&](auto&& half) {
      for (std::size_t r = 0; r < callers.size(); ++r) half(callers[r], step[r]);
    };
    if (i == 5) each([&](Caller& caller, Step&) { caller.halves().begin_batch(caller.state(), queue); });
    if (i == 4)  // as a job that stopped and went on
      each([&](Caller& caller, Step&) { caller.resume(caller.halves().save(caller.state(), queue)); });
    each([](Caller& caller, Step& own) { caller.forward_local(own); });
    const ByteArray forward = gathered(callers, queue);
    each([&](Caller& caller, Step& own) { caller.forward_finish(own, forward); });
    each([](Caller& caller, Step& own) { caller.backward_local(own); });
    const ByteArray backward = gathered(callers, queue);
    each([&](Caller& caller, Step& own) { caller.backward_finish(own, backward); });
    queue.wait();
    for (std::size_t r = 0; r < callers.size(); ++r) {
      const std::vector<double> made = step[r].results();
      traces[r].steps.push_back(made);
      const auto statistics = callers[r].statistics(step[r]);
      traces[r].steps.back().insert(traces[r].steps.back().end(), statistics.begin(), statistics.end());
      callers[r].replay(step[r]);
      queue.wait();
      EXPECT_EQ(step[r].results(), made) << "replayed on rank " << r;
    }
  }
  for (std::size_t r = 0; r < callers.size(); ++r)
    traces[r].end_with(callers[r].halves().save(callers[r].state(), queue));
  const std::vector<Trace> expected = ordinary(c);
  for (std::size_t r = 0; r < callers.size(); ++r) {
    for (std::size_t i = 0; i < traces[r].steps.size(); ++i)
      EXPECT_EQ(traces[r].steps[i], expected[r].steps[i]) << "rank " << r << ", step " << i;
    EXPECT_EQ(traces[r].state, expected[r].state) << "rank " << r;
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, HalvesOf, testing::ValuesIn(cases_of_halves),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace halves_test
