// A layer's state, saved and loaded whole.
#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "src/norm_impl.hpp"
#include "src/state_reader.hpp"

namespace allnorm {

namespace {

constexpr std::int64_t state_version = 1;
constexpr std::string_view layer_prefix = "allnorm.layer.";

void save_ramp(State& state, const char* name, const Ramp& ramp) {
  if (ramp.empty()) return;
  Values points;
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
  const Values points = state_reader::finite(state, name, entry->shape);
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

}  // namespace

State NormImpl::save(Queue& queue) const {
  State state;
  if (!has_running()) return state;
  memory_.save(state, queue);
  state.add(std::string(layer_prefix) + std::string(layer_.row->name), state_version);
  state.add("allnorm.ranks", group_->size());
  state.add("allnorm.rank", group_->rank());
  state.add("allnorm.window", layer_.options.window);
  state.add("allnorm.minibatches", layer_.options.minibatches);
  save_ramp(state, "allnorm.r_max_ramp", layer_.options.r_max_ramp);
  save_ramp(state, "allnorm.d_max_ramp", layer_.options.d_max_ramp);
  return state;
}

// Entries of a window and an open batch mean the same only to as many iterations, mini-batches and ranks.
void NormImpl::expect_same_history(const State& state) const {
  const auto agree = [&](const char* name, std::int64_t least, std::int64_t value) {
    const std::int64_t held = state_reader::integer(state, std::string("allnorm.") + name, least);
    expect(held == value, Code::invalid_input, [&] {
      return "state was made with " + std::string(name) + " = " + std::to_string(held) + ", must be made with " +
             std::to_string(value) + ": it has entries in a window or an open batch, which can be dropped";
    });
  };
  agree("window", 1, layer_.options.window);
  agree("minibatches", 1, layer_.options.minibatches);
  agree("ranks", 1, group_->size());
  if (LayerMemory::has_per_rank_parts(state)) agree("rank", 0, group_->rank());
}

void NormImpl::load(const State& state, Queue& queue, const LoadOptions& options) {
  using state_reader::integer;
  expect(has_running() || state.entries.empty(), Code::invalid_input,
         [&] { return std::string(layer_.row->name) + " has no state, must be loaded with none"; });
  if (!has_running()) return;
  Layer layer = layer_;
  const bool history = state.has_history() && !options.drop_window;
  const auto ours = std::find_if(state.entries.begin(), state.entries.end(),
                                 [](const StateEntry& e) { return e.name.starts_with(layer_prefix); });
  const bool framework = std::none_of(state.entries.begin(), state.entries.end(),
                                      [](const StateEntry& e) { return e.name.starts_with("allnorm."); });
  if (!framework) {  // otherwise running statistics alone
    expect(ours != state.entries.end(), Code::invalid_input,
           [&] { return "state " + std::string(layer_prefix) + std::string(layer_.row->name) + " is missing"; });
    const std::string of = ours->name.substr(layer_prefix.size());
    const auto rows = catalogue();
    expect(of == layer_.row->name ||
               std::any_of(rows.begin(), rows.end(),
                           [&](const Row& row) { return row.name == of && family_of(row) == family_of(*layer_.row); }),
           Code::invalid_input, [&] {
             return "state is of layer " + of + ", must be of " + std::string(layer_.row->name) + " or its family";
           });
    const std::int64_t version = integer(state, ours->name, 1);
    expect(version == state_version, Code::invalid_input, [&] {
      return "state has version " + std::to_string(version) + ", must have " + std::to_string(state_version);
    });
    if (history) expect_same_history(state);
    for (const auto& [ramp, name] : {std::pair{&layer.options.r_max_ramp, "allnorm.r_max_ramp"},
                                     {&layer.options.d_max_ramp, "allnorm.d_max_ramp"}})
      if (state.find(name)) *ramp = load_ramp(state, name);
    try {
      layer.check();
    } catch (const Error& error) {
      fail(Code::invalid_input, "state: " + error.message());
    }
  }
  LayerMemory memory(layer, channels_, queue);
  memory.load(state, history, memory_.counters(queue).calls, queue);
  layer_ = std::move(layer);
  memory_.take(std::move(memory), queue);
}

}  // namespace allnorm
