// The owner of a layer's state (kernels/layer_state.hpp) in the memory of its queue's device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/device.hpp"
#include "allnorm/norm.hpp"
#include "allnorm/state.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm {

/// The shape of a layer's weights and derivatives (compensate only).
struct WeightShape {
  std::int64_t channels = 0, fan_in = 0, mean_rows = 0;  // mean_rows: groups of the convolution
  friend bool operator==(const WeightShape&, const WeightShape&) = default;
};

/// Throws invalid_argument when the weights' shape is not that of the window's earlier calls.
void expect_shape(const LayerState& state, const WeightShape& shape);

class LayerMemory {
 public:
  /// Running mean 0, spread 1, no history. Without `keeps` only the rules: the state is kept elsewhere.
  LayerMemory(const Layer& layer, std::int64_t channels, Queue& queue, bool keeps = true);

  const Rules& rules() const noexcept { return rules_; }
  const LayerState& view() const noexcept { return view_; }
  bool persists() const noexcept { return rules_.persists; }

  /// Makes the window's arrays of derivatives, once; `wide`: f64. Throws as expect_shape.
  void make_window(const WeightShape& shape, bool wide, Queue& queue);

  /// Before a call: makes the memory where kernels tell the host what they meet.
  void listen(const Queue& queue);
  /// What those of calls that are done have told. Does not wait.
  HitsMet met() const noexcept;

  // What waits for the queue:
  Counters counters(Queue& queue) const;
  RunningStatistics running(Queue& queue) const;
  void set_running(const RunningStatistics& running, Queue& queue);
  Norm::PastStatistics past(Queue& queue) const;
  void save(State& state, Queue& queue) const;
  /// Checks everything and reads, window and open batch only with `history`; on throwing the memory may be half
  /// written: load into a fresh one. `calls`: the layer's training calls so far, which no state changes.
  void load(const State& state, bool history, std::int64_t calls, Queue& queue);

  /// Whether entries of a window or an open batch are there, and are not to be dropped.
  static bool gives_history(const State& state, const LoadOptions& options) noexcept;
  /// How long a window and a batch are, of which such entries are a part.
  void save_lengths(State& state) const;
  /// Throws invalid_input unless they mean here what they meant where they were saved: to as many iterations,
  /// mini-batches and ranks.
  void expect_same_history(const State& state, const Communicator& group) const;

  /// Takes over what `other`, of the same layer, holds. Arrays stay where they are as far as they have the same shapes:
  /// a captured graph goes on with them.
  void take(LayerMemory&& other, Queue& queue);

  std::size_t bytes() const noexcept;

 private:
  /// (C) of the current copy, on the host.
  std::vector<double> values(LayerState::Field field, Queue& queue) const;
  std::uint32_t parity(Queue& queue) const;
  void put(LayerState::Field field, const std::vector<double>& values, Queue& queue);
  void put(const Counters& counters, Queue& queue);
  void save_history(State& state, const Counters& counters, Queue& queue) const;
  void load_history(const State& state, Counters& counters, Queue& queue);

  Rules rules_{};
  LayerState view_{};
  Buffer<RampPoint> r_max_ramp_{}, d_max_ramp_{};
  Buffer<Counters> counters_{};     // (2)
  Buffer<std::uint32_t> parity_{};  // (1)
  Buffer<Turn> last_{};             // (1)
  Buffer<Hits> hits_{};             // (1)
  std::shared_ptr<HitsMet> met_{};  // page-locked where a GPU writes it, and from the first call on
  Buffer<double> values_{};         // (2, fields, C)
  Buffer<double> ring_{};  // count (slots), mean (slots, C), var (slots, C), center (C), past (slots - 1, 4, C)
  Buffer<std::byte> derivatives_{};  // dmean, dvar, weight of Ring
};

}  // namespace allnorm
