// `allnorm apply`: the tensors of one step, from files to what the library takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/operation.hpp"
#include "allnorm/tensor.hpp"
#include "launch/apply.hpp"

namespace allnorm::launch {

/// A tensor as this rank sees it: cut, converted, with the axes of the library.
struct LoadedTensor {
  std::string file;    ///< where it came from, for messages
  Shape file_shape{};  ///< axes in the order of the file
  Shape shape{};       ///< (N, C, space...) for activations, otherwise as in the file
  Order order = Order::channels_first;
  DType dtype = DType::f32;
  std::vector<std::byte> data{};  ///< shape.elements() values of `dtype`

  ConstTensorView view() const { return {data.data(), dtype, Device{}, shape, order}; }
};

/// The tensors of one rank and step, by name. State is read at step 0 only, and a file that all steps share once.
class StepTensors {
 public:
  StepTensors(const ApplyPlan& plan, int rank, int ranks);

  /// Reads and checks everything that step `step` needs. Throws invalid_input and invalid_argument.
  void read(std::int64_t step);

  const LoadedTensor* find(std::string_view name) const;
  const LoadedTensor& input() const { return tensors_.find("input")->second; }
  /// What a forward call is given: the input and the row's tensors but its state.
  InputSlots inputs() const;
  /// What a backward call is given: grad_output, and gradients of statistics.
  InputSlots gradients() const;
  std::int64_t channels() const;
  /// The layer as this rank has it: --split cuts normalized_shape, and the channels between groups.
  const Layer& layer() const { return layer_; }
  /// With --split channels over groups of channels: the first group that this rank has a part of. Ranks of the same one
  /// hold parts of it, others none of each other's groups.
  std::optional<std::int64_t> group() const { return group_; }

  /// The state that the user gives by name, of step 0.
  State state() const;

 private:
  LoadedTensor load(const TensorSpec& spec, std::int64_t step, DType dtype);
  void cut_layer(const Shape& whole);
  /// Another rank of its sync group gives the gradients of the statistics that they share.
  bool leaves_gradients() const;
  void check() const;
  void check_shape(const TensorSpec& spec, const LoadedTensor& tensor) const;

  const ApplyPlan* plan_;
  Layer layer_;
  int rank_, ranks_;
  std::optional<std::int64_t> group_{};
  std::int64_t channels_ = -1;  // of step 0
  DType dtype_ = DType::f32;    // of step 0's input
  std::map<std::string, LoadedTensor, std::less<>> tensors_{};
  std::map<std::string, std::int64_t, std::less<>> counters_{};
};

/// The part [begin, end) of an extent that is this rank's.
struct Slice {
  std::int64_t begin = 0, end = 0;
};
Slice slice_of(std::int64_t extent, int rank, int ranks) noexcept;

}  // namespace allnorm::launch
