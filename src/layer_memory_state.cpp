// Saving and loading a layer's state under PyTorch's keys; what only layers with a history have stands in
// layer_memory_history.cpp.
#include <string>
#include <utility>

#include "kernels/arrays.hpp"
#include "src/layer_memory.hpp"
#include "src/state_reader.hpp"

namespace allnorm {

namespace {

const char* spread_name(const Rules& rules) { return rules.keeps_std() ? "running_std" : "running_var"; }

}  // namespace

// Refuses what load() refuses: what a layer saves it can load.
void LayerMemory::set_running(const RunningStatistics& running, Queue& queue) {
  for (const auto& [values, name] : {std::pair{&running.mean, "mean"}, {&running.spread, "spread"}})
    expect(values->size() == index(view_.channels), Code::invalid_argument, [&, v = values, n = name] {
      return std::string("running ") + n + " has " + std::to_string(v->size()) + " values, must have " +
             std::to_string(view_.channels);
    });
  if (!persists()) return;
  state_reader::expect_finite(running.mean, "running_mean", state_reader::any);
  state_reader::expect_finite(running.spread, spread_name(rules_), 0);
  expect(running.tracked >= 0 && running.tracked <= state_reader::most_calls, Code::invalid_input,
         [&] { return "num_batches_tracked is " + std::to_string(running.tracked) + ", must be from 0 to 2^62"; });
  put(LayerState::running_mean, running.mean, queue);
  put(LayerState::running_spread, running.spread, queue);
  Counters now = counters(queue);
  now.tracked = running.tracked;
  put(now, queue);
}

void LayerMemory::save(State& state, Queue& queue) const {
  const Counters now = counters(queue);
  const Shape C{view_.channels};
  const auto add = [&](const char* name, LayerState::Field field) { state.add(name, values(field, queue).data(), C); };
  add("running_mean", LayerState::running_mean);
  if (rules_.scaled) add(spread_name(rules_), LayerState::running_spread);
  state.add("num_batches_tracked", now.tracked);
  state.add("allnorm.calls", now.counted);
  if (view_.has_history()) save_history(state, now, queue);
}

void LayerMemory::load(const State& state, bool history, std::int64_t calls, Queue& queue) {
  using namespace state_reader;
  const Shape C{view_.channels};
  put(LayerState::running_mean, finite(state, "running_mean", C), queue);
  if (rules_.scaled) put(LayerState::running_spread, finite(state, spread_name(rules_), C, 0), queue);
  Counters now;
  now.calls = calls;
  if (state.find("num_batches_tracked")) now.tracked = integer(state, "num_batches_tracked", 0);
  now.counted = state.find("allnorm.calls") ? integer(state, "allnorm.calls", 0) : now.tracked;
  if (view_.has_history() && state.find("allnorm.batches")) {
    now.batches = integer(state, "allnorm.batches", 0);
    if (history) load_history(state, now, queue);
  }
  put(now, queue);
}

}  // namespace allnorm
