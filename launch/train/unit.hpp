// One block of the experiment's network.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "adapters/torch/conv_norm.hpp"

namespace allnorm::launch::train {

/// A convolution, and the norm behind it, if there is one.
class Unit {
 public:
  explicit Unit(std::unique_ptr<torch_adapter::ConvNorm> both)
      : norm_(&both->norm()), both_(both.get()), conv_(std::move(both)) {}
  explicit Unit(std::unique_ptr<torch_adapter::Conv> conv) : conv_(std::move(conv)) {}

  torch::Tensor forward(const torch::Tensor& x) const { return both_ ? both_->forward(x) : conv_->convolve(x); }
  torch_adapter::Conv& conv() const noexcept { return *conv_; }
  torch_adapter::NormModule* norm() const noexcept { return norm_; }
  std::vector<torch::Tensor> parameters() const {  // besides the weight
    std::vector<torch::Tensor> all = norm_ ? norm_->parameters() : std::vector<torch::Tensor>{};
    for (const torch::Tensor& own : {conv_->length, conv_->bias})
      if (own.defined()) all.push_back(own);
    return all;
  }

 private:
  torch_adapter::NormModule* norm_ = nullptr;
  torch_adapter::ConvNorm* both_ = nullptr;
  std::unique_ptr<torch_adapter::Conv> conv_;
};

/// Who applies ReLU: the norm; a threshold of its own in its place; or the network behind it.
enum class Rectifier : std::uint8_t { norm, threshold, network };
inline Rectifier rectifier_of(const std::optional<Layer>& norm) {
  if (norm && norm->row->attribute("activation") != nullptr) return Rectifier::norm;
  if (norm && norm->row->tensor("tau") != nullptr) return Rectifier::threshold;
  return Rectifier::network;
}

/// What the layer divides by where the variance is `var`.
inline double deviation(const Layer& layer, double var) { return layer.row->scaled ? layer.sigma(var) : 1; }

}  // namespace allnorm::launch::train
