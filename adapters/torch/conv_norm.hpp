// A convolution, its weight as it is or normalized, and the normalization after it, as libtorch modules.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adapters/torch/norm_module.hpp"

namespace allnorm::torch_adapter {

/// A convolution's extents.
struct ConvolutionShape {
  std::int64_t in = 1;               ///< Ci, channels
  std::int64_t out = 1;              ///< C, channels
  std::vector<std::int64_t> kernel;  ///< one extent per space axis
  Convolution geometry{};            ///< stride, padding, dilation, groups
};
/// The extents of its weight, (C, Ci/groups, k...). Throws invalid_argument for groups that do not divide both
/// channels.
std::vector<std::int64_t> weight_extents(const ConvolutionShape& shape);

/// A convolution. With a layer for its weight, one whose statistics are each row's (its operation's name is the
/// module's with ".weight"), it convolves with what that layer makes of `weight`.
class Conv : public torch::nn::Module {
 public:
  /// Throws invalid_argument for a number of groups that does not divide both channels, and for a layer of weights
  /// whose statistics are not those of rows; and as NormModule.
  Conv(ConvolutionShape shape, const std::optional<Layer>& weights, Queue& queue, const std::string& name,
       bool with_bias = true);

  /// input (N, Ci, space...) -> (N, C, smaller space...).
  torch::Tensor convolve(const torch::Tensor& input) const;
  /// What it convolves with: `weight`, or what the layer of weights makes of it.
  torch::Tensor kernel() const;
  /// Sets `length` and `bias` to where this batch's output has mean 0 and variance 1 in every channel (weight_start());
  /// where something takes the means away that follows, there is no bias. `group`: the ranks that hold parts of the
  /// batch. Throws unsupported where the layer of weights has no lengths.
  void start(const torch::Tensor& input, std::shared_ptr<Communicator> group = {}, double eps = 0);

  const ConvolutionShape& shape() const noexcept { return shape_; }  ///< as it was made

  torch::Tensor weight;  ///< (C, Ci/groups, k...), Float; zeros until the caller fills it
  torch::Tensor length;  ///< (C) what the layer of weights multiplies each row with, 1 at first; undefined without one
  torch::Tensor bias;    ///< (C) zeros at first; undefined without one

 protected:
  /// The same with this weight in place of kernel().
  torch::Tensor convolve(const torch::Tensor& input, const torch::Tensor& with) const;

 private:
  ConvolutionShape shape_;
  Queue* queue_;
  std::string_view length_slot_{};
  std::shared_ptr<NormModule> weights_;
};

/// norm(convolution(x)). For a layer with a window and compensation it hands the layer the convolution's geometry,
/// input and weight by itself, so that the composition is used like any other block.
class ConvNorm : public Conv {
 public:
  /// As Conv and NormModule; the layer's attributes of the convolution are set from `shape`.
  ConvNorm(ConvolutionShape shape, Layer layer, std::shared_ptr<Communicator> group, Queue& queue,
           const std::string& name, const std::optional<Layer>& weights = {});

  /// input (N, Ci, space...) -> (N, C, smaller space...).
  torch::Tensor forward(const torch::Tensor& input, const torch::Tensor& residual = {});

  NormModule& norm() noexcept { return *norm_; }  ///< what follows the convolution

 private:
  std::shared_ptr<NormModule> norm_;
};

}  // namespace allnorm::torch_adapter
