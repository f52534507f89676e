// The Dynamic Moment Shortcut as a libtorch module.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>

#include "allnorm/device.hpp"

namespace allnorm::torch_adapter {

/// Gives moments back that positional normalization took away, through two convolutions (Li et al. 2019,
/// arXiv:1907.04312): (beta, gamma) = second(relu(first(mean, std))), and y = gamma * x + beta. Beta is the first half
/// of the second convolution's channels, as in the authors' code.
class DynamicMomentShortcut : public torch::nn::Module {
 public:
  /// `channels`: those of x. Convolutions of an odd `kernel` with zeros around, so that they keep H and W. Throws
  /// invalid_argument for numbers below 1 and an even kernel.
  DynamicMomentShortcut(std::int64_t channels, std::int64_t hidden, std::int64_t kernel, const Queue& queue);

  /// x (N, C, H, W), mean and std (N, 1, H, W) -> (N, C, H, W).
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& mean, const torch::Tensor& std) const;

  // Float; zeros until the caller fills them, but for gamma's bias, which is 1: x passes as it is.
  torch::Tensor first_weight;   ///< (hidden, 2, kernel, kernel)
  torch::Tensor first_bias;     ///< (hidden)
  torch::Tensor second_weight;  ///< (2 C, hidden, kernel, kernel)
  torch::Tensor second_bias;    ///< (2 C), beta's and then gamma's
};

}  // namespace allnorm::torch_adapter
