// Saving and loading of a layer's batch so far and window: "allnorm.batch.*" and "allnorm.window.<j>.*", j = 0 the
// newest.
#include <algorithm>
#include <string>
#include <utility>

#include "kernels/arrays.hpp"
#include "src/layer_memory.hpp"
#include "src/state_reader.hpp"

namespace allnorm {

namespace {

using Values = std::vector<double>;

std::string entry_name(std::int64_t j, const char* part) { return "allnorm.window." + std::to_string(j) + "." + part; }

// Does `state` hold parts of a sum over ranks?
bool has_per_rank_parts(const State& state) noexcept {
  return std::any_of(state.entries.begin(), state.entries.end(), [](const StateEntry& e) {
    return e.name.starts_with("allnorm.") && (e.name.ends_with(".dmean") || e.name == "allnorm.batch.center");
  });
}

/// Rows of one of Ring's arrays of derivatives, in device memory.
struct Rows {
  void* data;
  Shape shape;  // (rows, fan_in)

  static Rows of(void* array, bool wide, std::int64_t slot, std::int64_t rows, std::int64_t fan_in) {
    const std::int64_t size = wide ? sizeof(double) : sizeof(float);
    return {static_cast<std::byte*>(array) + slot * rows * fan_in * size, Shape{rows, fan_in}};
  }
};

void save_rows(State& state, const std::string& name, const Rows& rows, bool wide, bool per_rank, Queue& queue) {
  const auto elements = index(rows.shape.elements());
  const auto add = [&](const auto* data) {
    const auto values = to_host(std::span(data, elements), queue);
    state.add(name, values.data(), rows.shape, per_rank);
  };
  if (wide)
    add(static_cast<const double*>(rows.data));
  else
    add(static_cast<const float*>(rows.data));
}

void load_rows(const State& state, const std::string& name, const Rows& rows, bool wide, Queue& queue) {
  const Values values = state_reader::doubles(state, name, rows.shape);  // widening f32 and narrowing again is exact
  if (wide) {
    copy_to_device(rows.data, values.data(), values.size() * sizeof(double), queue);
    return;
  }
  const std::vector<float> narrow(values.begin(), values.end());
  copy_to_device(rows.data, narrow.data(), narrow.size() * sizeof(float), queue);
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

/// Before anything of that size is allocated: every array of derivatives that `state` names has its shape and bytes.
bool expect_derivatives(const State& state, const WeightShape& shape, std::int64_t entries, bool in_batch) {
  bool wide = false;
  const auto expect_array = [&](const std::string& name, std::int64_t rows) {
    const StateEntry& entry = state_reader::find(state, name, Shape{rows, shape.fan_in});
    expect(entry.type != StateType::i64, Code::invalid_input,
           [&] { return "state " + name + " holds integers, must hold floats"; });
    wide |= entry.type == StateType::f64;
  };
  if (in_batch) {
    expect_array("allnorm.batch.dmean", shape.mean_rows);
    expect_array("allnorm.batch.dsquare", shape.channels);
    expect_array("allnorm.batch.weight", shape.channels);
  }
  for (std::int64_t j = 0; j < entries; ++j) {
    expect_array(entry_name(j, "dmean"), shape.mean_rows);
    expect_array(entry_name(j, "dvar"), shape.channels);
    expect_array(entry_name(j, "weight"), shape.channels);
  }
  return wide;
}

}  // namespace

bool LayerMemory::gives_history(const State& state, const LoadOptions& options) noexcept {
  return state.has_history() && !options.drop_window;
}

void LayerMemory::save_lengths(State& state) const {
  state.add("allnorm.window", rules_.window);
  state.add("allnorm.minibatches", rules_.minibatches);
}

void LayerMemory::expect_same_history(const State& state, const Communicator& group) const {
  const auto agree = [&](const char* name, std::int64_t least, std::int64_t value) {
    const std::int64_t held = state_reader::integer(state, std::string("allnorm.") + name, least);
    expect(held == value, Code::invalid_input, [&] {
      return "state was made with " + std::string(name) + " = " + std::to_string(held) + ", must be made with " +
             std::to_string(value) + ": it has entries in a window or an open batch, which can be dropped";
    });
  };
  agree("window", 1, rules_.window);
  agree("minibatches", 1, rules_.minibatches);
  agree("ranks", 1, group.size());
  if (has_per_rank_parts(state)) agree("rank", 0, group.rank());
}

void LayerMemory::save_history(State& state, const Counters& now, Queue& queue) const {
  const Ring& ring = view_.ring;
  const std::int64_t channels = view_.channels;
  const Shape C{channels};
  state.add("allnorm.batches", now.batches);
  state.add("allnorm.window.entries", now.entries);
  if (now.derivatives != 0 || (ring.fan_in > 0 && now.entries > 0)) {
    state.add("allnorm.weight.fan_in", ring.fan_in);
    state.add("allnorm.weight.mean_rows", ring.mean_rows);
  }
  const auto add = [&](const std::string& name, const Values& of) { state.add(name, of.data(), C); };
  const auto row = [&](const double* array, std::int64_t slot) {
    return to_host(std::span(array + slot * channels, index(channels)), queue);
  };
  const auto add_rows = [&](const std::string& name, void* array, std::int64_t slot, std::int64_t rows, bool per_rank) {
    save_rows(state, name, Rows::of(array, ring.wide, slot, rows, ring.fan_in), ring.wide, per_rank, queue);
  };
  const auto add_derivatives = [&](std::int64_t slot, const std::string& dmean, const std::string& dvar,
                                   const std::string& weight) {
    add_rows(dmean, ring.dmean, slot, ring.mean_rows, true);
    add_rows(dvar, ring.dvar, slot, channels, true);
    add_rows(weight, ring.weight, slot, channels, false);
  };

  state.add("allnorm.batch.done", now.done);
  if (now.done > 0) {
    const double sums[2] = {now.weight, now.count};
    state.add("allnorm.batch.sums", sums, Shape{2});
    add("allnorm.batch.mean", values(LayerState::batch_mean, queue));
    add("allnorm.batch.var", values(LayerState::batch_var, queue));
    if (now.candidate != 0) {
      add("allnorm.batch.running.mean", values(LayerState::candidate_mean, queue));
      add("allnorm.batch.running.var", values(LayerState::candidate_var, queue));
      add("allnorm.batch.running.biased", values(LayerState::candidate_biased, queue));
    }
    if (now.derivatives != 0) {
      add("allnorm.batch.center", row(ring.center, 0));
      add_derivatives((now.newest + 1) % ring.slots, "allnorm.batch.dmean", "allnorm.batch.dsquare",
                      "allnorm.batch.weight");
    }
  }
  for (std::int64_t j = 0; j < now.entries; ++j) {
    const std::int64_t slot = ring.slot(now, j);
    const auto count = to_host(std::span<const double>(ring.count + slot, 1), queue);
    state.add(entry_name(j, "count"), count.data(), Shape{});
    add(entry_name(j, "mean"), row(ring.mean, slot));
    add(entry_name(j, "var"), row(ring.var, slot));
    if (ring.fan_in > 0) add_derivatives(slot, entry_name(j, "dmean"), entry_name(j, "dvar"), entry_name(j, "weight"));
  }
}

void LayerMemory::load_history(const State& state, Counters& now, Queue& queue) {
  using namespace state_reader;
  const std::int64_t channels = view_.channels;
  const Shape C{channels};
  Ring& ring = view_.ring;
  const auto expect_below = [](const char* name, std::int64_t value, const char* limit, std::int64_t most) {
    expect(value < most, Code::invalid_input, [&] {
      return "state " + std::string(name) + " is " + std::to_string(value) + ", must be less than " + limit + " = " +
             std::to_string(most);
    });
  };
  now.done = integer(state, "allnorm.batch.done", 0);
  expect_below("allnorm.batch.done", now.done, "minibatches", rules_.minibatches);
  now.entries = integer(state, "allnorm.window.entries", 0);
  expect_below("allnorm.window.entries", now.entries, "window", rules_.window);
  now.newest = now.entries > 0 ? now.entries - 1 : 0;

  const bool in_batch = now.done > 0 && state.find("allnorm.batch.center") != nullptr;
  now.derivatives = in_batch;
  for (std::int64_t j = 0; j < now.entries; ++j) {
    const bool moved = state.find(entry_name(j, "dmean")) != nullptr;
    expect(moved == rules_.compensates(), Code::invalid_input, [&] {
      return "state " + entry_name(j, "dmean") + " is " + (moved ? "there" : "missing") + ", must " +
             (moved ? "not be for compensate=false" : "be there for compensate=true");
    });
  }
  if (state.find("allnorm.weight.fan_in")) {
    const WeightShape shape = load_weight_shape(state, channels);
    const bool wide = expect_derivatives(state, shape, rules_.compensates() ? now.entries : 0, in_batch);
    if (in_batch || (rules_.compensates() && now.entries > 0)) make_window(shape, wide, queue);
  }
  const auto put_row = [&](double* array, std::int64_t slot, const Values& values) {
    copy_to_device(array + slot * channels, values.data(), values.size() * sizeof(double), queue);
  };
  const auto load_derivatives = [&](std::int64_t slot, const std::string& dmean, const std::string& dvar,
                                    const std::string& weight) {
    const auto load = [&](const std::string& name, void* array, std::int64_t rows) {
      load_rows(state, name, Rows::of(array, ring.wide, slot, rows, ring.fan_in), ring.wide, queue);
    };
    load(dmean, ring.dmean, ring.mean_rows);
    load(dvar, ring.dvar, channels);
    load(weight, ring.weight, channels);
  };

  if (now.done > 0) {
    const auto sums = finite(state, "allnorm.batch.sums", Shape{2}, 0);
    now.weight = sums[0];
    now.count = sums[1];
    put(LayerState::batch_mean, finite_or_nan(state, "allnorm.batch.mean", C), queue);
    put(LayerState::batch_var, finite_or_nan(state, "allnorm.batch.var", C, 0), queue);
    if (state.find("allnorm.batch.running.mean")) {
      now.candidate = 1;
      put(LayerState::candidate_mean, finite_or_nan(state, "allnorm.batch.running.mean", C), queue);
      put(LayerState::candidate_var, finite_or_nan(state, "allnorm.batch.running.var", C, 0), queue);
      put(LayerState::candidate_biased, finite_or_nan(state, "allnorm.batch.running.biased", C, 0), queue);
    }
    if (in_batch) {
      put_row(ring.center, 0, finite_or_nan(state, "allnorm.batch.center", C));
      expect(ring.fan_in > 0, Code::invalid_input, "state allnorm.weight.fan_in is missing");
      load_derivatives((now.newest + 1) % ring.slots, "allnorm.batch.dmean", "allnorm.batch.dsquare",
                       "allnorm.batch.weight");
    }
  }
  for (std::int64_t j = 0; j < now.entries; ++j) {
    const std::int64_t slot = ring.slot(now, j);
    const Values count = finite(state, entry_name(j, "count"), Shape{}, 1);
    copy_to_device(ring.count + slot, count.data(), sizeof(double), queue);
    put_row(ring.mean, slot, finite_or_nan(state, entry_name(j, "mean"), C));
    put_row(ring.var, slot, finite_or_nan(state, entry_name(j, "var"), C, 0));
    if (!rules_.compensates()) continue;
    expect(ring.fan_in > 0, Code::invalid_input, "state allnorm.weight.fan_in is missing");
    load_derivatives(slot, entry_name(j, "dmean"), entry_name(j, "dvar"), entry_name(j, "weight"));
  }
}

}  // namespace allnorm
