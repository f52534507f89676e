// A convolution whose output is a cosine, as a libtorch module.
#pragma once

#include <memory>
#include <string>

#include "adapters/torch/conv_norm.hpp"

namespace allnorm::torch_adapter {

/// Each output channel is the cosine of the angle between its kernel and the part of the input that it covers, whose
/// zeros of the padding count, in the length and in the mean that `centred` takes away (Luo et al. 2017,
/// arXiv:1702.05870). The parts are laid out in memory: input times taps.
class CosineConv : public torch::nn::Module {
 public:
  /// `layer`: a row that compares an input's rows with vectors, and its attributes. Throws invalid_argument for another
  /// layer, and for groups that do not divide both channels.
  CosineConv(ConvolutionShape shape, const Layer& layer, Queue& queue, const std::string& name);

  /// input (N, Ci, space...), as many space axes as the kernel has extents -> (N, C, smaller space...).
  torch::Tensor forward(const torch::Tensor& input) const;

  torch::Tensor weight;  ///< (C, Ci/groups, k...), Float; zeros until the caller fills it

 private:
  ConvolutionShape shape_;
  std::shared_ptr<NormModule> cosine_;
};

}  // namespace allnorm::torch_adapter
