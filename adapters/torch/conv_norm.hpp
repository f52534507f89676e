// A convolution without bias and the normalization after it, as one libtorch module.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "adapters/torch/norm_module.hpp"

namespace allnorm::torch_adapter {

struct ConvolutionShape {
  std::int64_t in = 1, out = 1;      ///< channels
  std::vector<std::int64_t> kernel;  ///< one extent per space axis
  Convolution geometry{};            ///< stride, padding, dilation, groups
};

/// norm(convolution(x)). For a layer with a window and compensation it hands the layer the convolution's geometry,
/// input and weight by itself, so that the composition is used like any other block.
class ConvNorm : public torch::nn::Module {
 public:
  /// As NormModule; the layer's attributes of the convolution are set from `shape`.
  ConvNorm(ConvolutionShape shape, Layer layer, std::shared_ptr<Communicator> group, Queue& queue,
           const std::string& name);

  /// input (N, Ci, space...) -> (N, C, smaller space...).
  torch::Tensor forward(const torch::Tensor& input, const torch::Tensor& residual = {});
  /// The convolution alone.
  torch::Tensor convolve(const torch::Tensor& input) const;

  NormModule& norm() noexcept { return *norm_; }
  const ConvolutionShape& shape() const noexcept { return shape_; }

  torch::Tensor weight;  ///< (C, Ci/groups, k...), Float; zeros until the caller fills it

 private:
  ConvolutionShape shape_;
  std::shared_ptr<NormModule> norm_;
};

}  // namespace allnorm::torch_adapter
