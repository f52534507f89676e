// What `allnorm verify` does with one layer object: calls with their tensors, and what they must give.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "launch/reference/definitions.hpp"

namespace allnorm::launch::verify {

using reference::Answers;
using reference::Array;
using reference::Tensors;

/// Which of the row's tensors are given: all, those that must be, or all with integers for a mixture's weights.
enum class Given : std::uint8_t { all, required, integers };

/// Which numbers a trial has: others for every number, and inputs times `scale`.
struct Draws {
  std::uint64_t number = 0;
  double scale = 1;
};

/// A layer, the shape of its input, and what it is given.
struct Trial {
  const reference::Defined* defined = nullptr;
  std::string attributes;  ///< "eps=0.1:eps_place=outside"; empty: the defaults
  Layer layer;
  std::vector<std::int64_t> shape;
  Given given = Given::all;
  Draws draws{};
};
/// Of each variant of the definition one with all tensors, and one of another shape with those that must be there.
std::vector<Trial> trials_of(const Row& row, const reference::Defined& defined, const Draws& draws = {});

struct Step {
  bool training = true;
  Tensors given;    ///< of all ranks together
  Answers answers;  ///< of forward and backward
};
/// Every value is one that `dtype` holds. Steps that follow upon each other on one layer object; the last of a layer
/// with running statistics is inference.
std::vector<Step> script_of(const Trial& trial, DType dtype);

/// What a type of the input is computed in: that of parameters.
constexpr DType compute_type(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }
/// The types and orders that a tensor of the row has in memory.
DType type_of(const TensorSpec& tensor, const Array& values, DType dtype);
bool lies_as_input(const TensorSpec& tensor);
/// The tensor of that name, "input" and "grad_output" among them.
TensorSpec spec_of(const Row& row, std::string_view name);

/// How ranks hold parts of the whole.
class Cut {
 public:
  /// Of a layer whose ranks share statistics along the first axis that these sum over. Others are whole on each.
  Cut(const Trial& trial, int rank, int ranks);

  bool cuts() const noexcept { return axis_.has_value(); }
  /// The layer as this rank has it: attributes say what is of its part.
  const Layer& layer() const noexcept { return layer_; }
  /// The axis of an array like that of the tensor which is cut; none where every rank has it whole.
  std::optional<int> axis_of(const TensorSpec& tensor) const;
  Array part(const TensorSpec& tensor, const Array& whole) const;
  /// What this rank is given: gradients of statistics that ranks share count once.
  Tensors part(const Tensors& whole) const;

 private:
  std::optional<int> axis_{};  ///< of the input
  Layer layer_;
  int rank_;
  std::int64_t begin_ = 0, end_ = 0;
};

}  // namespace allnorm::launch::verify
