// Saving and loading the history: keys "allnorm.batch.*" and "allnorm.window.<j>.*", j = 0 the newest.
#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "history.hpp"
#include "state_reader.hpp"

namespace allnorm {

namespace {

void save_kept(State& state, const std::string& name, const Kept& kept, const Shape& shape, bool per_rank) {
  if (kept.wide.empty())
    state.add(name, kept.narrow.data(), shape, per_rank);
  else
    state.add(name, kept.wide.data(), shape, per_rank);
}

Kept load_kept(const State& state, const std::string& name, const Shape& shape) {
  const StateEntry& entry = state_reader::find(state, name, shape);
  Kept kept(static_cast<std::size_t>(shape.elements()), entry.type == StateType::f64);
  expect(entry.type != StateType::i64, Code::invalid_input,
         [&] { return "state " + name + " holds integers, must hold floats"; });
  void* to = kept.wide.empty() ? static_cast<void*>(kept.narrow.data()) : kept.wide.data();
  if (!entry.data.empty()) std::memcpy(to, entry.data.data(), entry.data.size());
  return kept;
}

WeightShape load_weight_shape(const State& state, std::int64_t channels) {
  constexpr std::int64_t most = std::int64_t{1} << 31;  // keeps every product of extents in 64 bits
  const WeightShape shape{channels, state_reader::integer(state, "allnorm.weight.fan_in", 1),
                          state_reader::integer(state, "allnorm.weight.mean_rows", 1)};
  expect(shape.fan_in < most && shape.mean_rows <= std::max<std::int64_t>(1, channels) &&
             channels % shape.mean_rows == 0 && channels < most,
         Code::invalid_input, [&] {
           return "state allnorm.weight is of " + std::to_string(shape.fan_in) + " weights and " +
                  std::to_string(shape.mean_rows) + " groups, must be of fewer than 2^31 and a divisor of " +
                  std::to_string(channels) + " channels";
         });
  return shape;
}

std::string entry_name(std::size_t j, const char* part) { return "allnorm.window." + std::to_string(j) + "." + part; }

}  // namespace

void History::save(State& state) const {
  if (!active()) return;
  const Shape C{channels_};
  state.add("allnorm.batches", batches_);
  state.add("allnorm.window.entries", entries());
  if (shape_) {
    state.add("allnorm.weight.fan_in", shape_->fan_in);
    state.add("allnorm.weight.mean_rows", shape_->mean_rows);
  }
  const Shape mean_shape = shape_ ? Shape{shape_->mean_rows, shape_->fan_in} : Shape{0, 0};
  const Shape weight_shape = shape_ ? Shape{channels_, shape_->fan_in} : Shape{0, 0};

  state.add("allnorm.batch.done", batch_.done);
  if (batch_.done > 0) {
    const double sums[2] = {batch_.weight, batch_.count};
    state.add("allnorm.batch.sums", sums, Shape{2});
    state.add("allnorm.batch.mean", batch_.mean.data(), C);
    state.add("allnorm.batch.var", batch_.var.data(), C);
    if (batch_.running.given) {
      state.add("allnorm.batch.running.mean", batch_.running.mean.data(), C);
      state.add("allnorm.batch.running.var", batch_.running.var.data(), C);
      state.add("allnorm.batch.running.biased", batch_.running.biased.data(), C);
    }
    if (!batch_.center.empty()) {
      state.add("allnorm.batch.center", batch_.center.data(), C);
      save_kept(state, "allnorm.batch.dmean", batch_.dmean, mean_shape, true);
      save_kept(state, "allnorm.batch.dsquare", batch_.dsquare, weight_shape, true);
      save_kept(state, "allnorm.batch.weight", batch_.theta, weight_shape, false);
    }
  }
  for (std::size_t j = 0; j < window_.size(); ++j) {
    const WindowEntry& entry = *window_[j];
    state.add(entry_name(j, "count"), &entry.count, Shape{});
    state.add(entry_name(j, "mean"), entry.mean.data(), C);
    state.add(entry_name(j, "var"), entry.var.data(), C);
    if (entry.dmean.empty()) continue;
    save_kept(state, entry_name(j, "dmean"), entry.dmean, mean_shape, true);
    save_kept(state, entry_name(j, "dvar"), entry.dvar, weight_shape, true);
    save_kept(state, entry_name(j, "weight"), entry.weight, weight_shape, false);
  }
}

bool History::has_per_rank_parts(const State& state) noexcept {
  return std::any_of(state.entries.begin(), state.entries.end(), [](const StateEntry& e) {
    return e.name.starts_with("allnorm.") && (e.name.ends_with(".dmean") || e.name == "allnorm.batch.center");
  });
}

// Dropping the per-rank parts leaves past means that cannot be moved to the present weights: window and batch start
// anew, the counters go on.
void History::load(const State& state, bool drop_per_rank) {
  using namespace state_reader;
  History loaded(options_, channels_);
  if (state.find("allnorm.batches")) {
    const Shape C{channels_};
    loaded.batches_ = integer(state, "allnorm.batches", 0);
    if (!drop_per_rank) {
      if (state.find("allnorm.weight.fan_in")) loaded.shape_ = load_weight_shape(state, channels_);
      const Shape mean_shape = loaded.shape_ ? Shape{loaded.shape_->mean_rows, loaded.shape_->fan_in} : Shape{0, 0};
      const Shape weight_shape = loaded.shape_ ? Shape{channels_, loaded.shape_->fan_in} : Shape{0, 0};

      BatchSoFar& batch = loaded.batch_;
      batch.done = integer(state, "allnorm.batch.done", 0);
      expect(batch.done < options_.minibatches, Code::invalid_input, [&] {
        return "state allnorm.batch.done is " + std::to_string(batch.done) +
               ", must be less than minibatches = " + std::to_string(options_.minibatches);
      });
      if (batch.done > 0) {
        const auto sums = finite(state, "allnorm.batch.sums", Shape{2}, 0);
        batch.weight = sums[0];
        batch.count = sums[1];
        batch.mean = finite(state, "allnorm.batch.mean", C);
        batch.var = finite(state, "allnorm.batch.var", C, 0);
        if (state.find("allnorm.batch.running.mean")) {
          batch.running.given = true;
          batch.running.mean = finite(state, "allnorm.batch.running.mean", C);
          batch.running.var = finite(state, "allnorm.batch.running.var", C, 0);
          batch.running.biased = finite(state, "allnorm.batch.running.biased", C, 0);
        }
        if (state.find("allnorm.batch.center")) {
          batch.center = finite(state, "allnorm.batch.center", C);
          batch.dmean = load_kept(state, "allnorm.batch.dmean", mean_shape);
          batch.dsquare = load_kept(state, "allnorm.batch.dsquare", weight_shape);
          batch.theta = load_kept(state, "allnorm.batch.weight", weight_shape);
        }
      }
      const std::int64_t entries = integer(state, "allnorm.window.entries", 0);
      expect(entries < options_.window, Code::invalid_input, [&] {
        return "state allnorm.window.entries is " + std::to_string(entries) +
               ", must be less than window = " + std::to_string(options_.window);
      });
      for (std::size_t j = 0; j < static_cast<std::size_t>(entries); ++j) {
        const auto entry = std::make_shared<WindowEntry>();
        entry->count = finite(state, entry_name(j, "count"), Shape{}, 1)[0];
        entry->mean = finite(state, entry_name(j, "mean"), C);
        entry->var = finite(state, entry_name(j, "var"), C, 0);
        const bool moved = state.find(entry_name(j, "dmean")) != nullptr;
        expect(moved == options_.compensate, Code::invalid_input, [&] {
          return "state " + entry_name(j, "dmean") + " is " + (moved ? "there" : "missing") + ", must " +
                 (moved ? "not be for compensate=false" : "be there for compensate=true");
        });
        if (moved) {
          entry->dmean = load_kept(state, entry_name(j, "dmean"), mean_shape);
          entry->dvar = load_kept(state, entry_name(j, "dvar"), weight_shape);
          entry->weight = load_kept(state, entry_name(j, "weight"), weight_shape);
        }
        loaded.window_.push_back(entry);
      }
    }
  }
  *this = std::move(loaded);
}

}  // namespace allnorm
