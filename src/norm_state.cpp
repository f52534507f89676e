// A layer's state, saved and loaded whole.
#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "src/norm_impl.hpp"
#include "src/slots.hpp"
#include "src/state_reader.hpp"

namespace allnorm {

namespace {

constexpr std::int64_t state_version = 1;
constexpr std::string_view layer_prefix = "allnorm.layer.";

const char* spread_of(const Layer& layer) noexcept { return layer.keeps_std() ? "running_std" : "running_var"; }

void save_ramp(State& state, const char* name, const Ramp& ramp) {
  if (ramp.empty()) return;
  std::vector<double> points;
  for (const auto& [call, value] : ramp) {
    points.push_back(static_cast<double>(call));
    points.push_back(value);
  }
  state.add(name, points.data(), Shape{static_cast<std::int64_t>(ramp.size()), 2});
}

Ramp load_ramp(const State& state, const char* name) {
  const StateEntry* entry = state.find(name);
  expect(entry->shape.rank() == 2 && entry->shape[1] == 2, Code::invalid_input, [&] {
    return "state " + std::string(name) + " has shape " + to_string(entry->shape) + ", must have (points,2)";
  });
  const std::vector<double> points = state_reader::finite(state, name, entry->shape);
  Ramp ramp;
  for (std::size_t i = 0; i < points.size(); i += 2) {
    expect(points[i] >= 0 && points[i] < 0x1p62, Code::invalid_input, [&] {
      return "state " + std::string(name) + " has a point at call " + std::to_string(points[i]) +
             ", must be from 0 to 2^62";
    });
    ramp.push_back({static_cast<std::int64_t>(points[i]), points[i + 1]});
  }
  return ramp;
}

void load_ramps(const State& state, Layer& layer) {
  for (const auto& [ramp, name] :
       {std::pair{&layer.options.r_max_ramp, "allnorm.r_max_ramp"}, {&layer.options.d_max_ramp, "allnorm.d_max_ramp"}})
    if (state.find(name)) *ramp = load_ramp(state, name);
  try {
    layer.check();
  } catch (const Error& error) {
    fail(Code::invalid_input, "state: " + error.message());
  }
}

void expect_family(const State& state, const Row& row) {
  const auto mark = std::find_if(state.entries.begin(), state.entries.end(),
                                 [](const StateEntry& e) { return e.name.starts_with(layer_prefix); });
  expect(mark != state.entries.end(), Code::invalid_input,
         [&] { return "state " + std::string(layer_prefix) + std::string(row.name) + " is missing"; });
  const std::string of = mark->name.substr(layer_prefix.size());
  const auto rows = catalogue();
  expect(of == row.name || std::any_of(rows.begin(), rows.end(),
                                       [&](const Row& r) { return r.name == of && family_of(r) == family_of(row); }),
         Code::invalid_input,
         [&] { return "state is of layer " + of + ", must be of " + std::string(row.name) + " or its family"; });
  const std::int64_t version = state_reader::integer(state, mark->name, 1);
  expect(version == state_version, Code::invalid_input, [&] {
    return "state has version " + std::to_string(version) + ", must have " + std::to_string(state_version);
  });
}

}  // namespace

void mark_state(State& state, const Layer& layer, const Communicator& group) {
  state.add(std::string(layer_prefix) + std::string(layer.row->name), state_version);
  state.add("allnorm.ranks", group.size());
  state.add("allnorm.rank", group.rank());
}

bool expect_mark(const State& state, const Row& row) {
  const bool framework = std::none_of(state.entries.begin(), state.entries.end(),
                                      [](const StateEntry& e) { return e.name.starts_with("allnorm."); });
  if (!framework) expect_family(state, row);
  return !framework;
}

State named_state(const Layer& layer, const RunningStatistics& running) {
  State made;
  const Row& row = *layer.row;
  const Shape channels{static_cast<std::int64_t>(running.mean.size())};
  made.add("running_mean", running.mean.data(), channels);
  if (row.state(spread_of(layer)) != nullptr) made.add(spread_of(layer), running.spread.data(), channels);
  if (row.state("num_batches_tracked") != nullptr) made.add("num_batches_tracked", running.tracked);
  return made;
}

void take_named_state(const Layer& layer, const State& given, RunningStatistics& running) {
  for (const StateEntry& entry : given.entries) {
    const TensorSpec* tensor = layer.row->state(entry.name);
    expect_known(*layer.row, tensor != nullptr && layer.has(*tensor), entry.name);
  }
  const Shape channels{static_cast<std::int64_t>(running.mean.size())};
  for (const auto& [name, values] : {std::pair{"running_mean", &running.mean}, {spread_of(layer), &running.spread}})
    if (given.find(name)) *values = state_reader::doubles(given, name, channels);
  if (given.find("num_batches_tracked")) running.tracked = state_reader::integer(given, "num_batches_tracked", 0);
}

State NormImpl::save(Queue& queue) const {
  State state;
  if (!has_running()) return state;
  memory_.save(state, queue);
  mark_state(state, layer_, *group_);
  memory_.save_lengths(state);
  save_ramp(state, "allnorm.r_max_ramp", layer_.options.r_max_ramp);
  save_ramp(state, "allnorm.d_max_ramp", layer_.options.d_max_ramp);
  return state;
}

void NormImpl::load(const State& state, Queue& queue, const LoadOptions& options) {
  expect(has_running() || state.entries.empty(), Code::invalid_input,
         [&] { return std::string(layer_.row->name) + " has no state, must be loaded with none"; });
  if (!has_running()) return;
  Layer layer = layer_;
  const bool history = LayerMemory::gives_history(state, options);
  if (expect_mark(state, *layer_.row)) {  // otherwise running statistics alone
    if (history) memory_.expect_same_history(state, *group_);
    load_ramps(state, layer);
  }
  LayerMemory memory(layer, channels_, queue);
  memory.load(state, history, memory_.counters(queue).calls, queue);
  layer_ = std::move(layer);
  memory_.take(std::move(memory), queue);
}

}  // namespace allnorm
