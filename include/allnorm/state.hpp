// A layer's state as named arrays, to be saved and loaded whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/tensor.hpp"

namespace allnorm {

/// What layers save is f64, f32 and i64; buffers of a framework may also be f16 and bf16.
enum class StateType : std::uint8_t { f64, f32, i64, f16, bf16 };

/// One array, in C order. `per_rank` parts hold this rank's share of a sum over the group: they mean nothing to
/// another number of ranks.
struct StateEntry {
  std::string name;                 ///< its key
  StateType type = StateType::f64;  ///< of its values
  Shape shape{};                    ///< empty for one value
  std::vector<std::byte> data{};    ///< in this machine's byte order
  bool per_rank = false;            ///< this rank's share of a sum
};

/// PyTorch's keys (running_mean, running_var, num_batches_tracked), and the rest under "allnorm.".
struct State {
  std::vector<StateEntry> entries{};  ///< in the layer's order

  /// The entry of that name; null where there is none.
  const StateEntry* find(std::string_view name) const noexcept;
  /// True where there are entries in a window or an open batch: such a state is for as many ranks as it was made by.
  bool has_history() const noexcept;
  /// Adds an f64 array of that shape.
  void add(std::string name, const double* values, const Shape& shape, bool per_rank = false);
  /// Adds an f32 array of that shape.
  void add(std::string name, const float* values, const Shape& shape, bool per_rank = false);
  /// Adds an integer.
  void add(std::string name, std::int64_t value);
};

/// What loading may leave out.
struct LoadOptions {
  bool drop_window = false;  ///< window and open batch start anew, so that a state of another number of ranks loads
};

}  // namespace allnorm
