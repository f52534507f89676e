// What the tests of the libtorch modules share: a module, an input, and the comparison with operations of torch.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "adapters/torch/norm_module.hpp"

namespace allnorm::torch_adapter {

class Modules : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(1); }

  /// Its parameters are drawn; `wide`: in double precision.
  std::shared_ptr<NormModule> module(const std::string& text, std::int64_t channels, bool wide = true) {
    auto made = std::make_shared<NormModule>(parse_layer(text), channels, self(), queue_, "layer");
    if (wide) made->to(torch::kDouble);
    const torch::NoGradGuard no_gradients;
    for (torch::Tensor& parameter : made->parameters()) parameter.copy_(torch::randn_like(parameter));
    return made;
  }
  /// (3,4,5,2), far enough from 0 to notice a lost mean.
  static torch::Tensor input() { return (3 * torch::randn({3, 4, 5, 2}, torch::kDouble) + 7).requires_grad_(); }

  Queue queue_ = Queue::cpu();
};

inline double relative_error(const torch::Tensor& a, const torch::Tensor& b) {
  const double size = b.abs().max().item<double>();
  return (a - b).abs().max().item<double>() / (size > 0 ? size : 1);
}
constexpr double rounding = 1e-12;  // 2^-52 times the few hundred operations behind a value, and |mean|/std of 3

/// Output and gradients of `ours` and `theirs` for the same random gradient.
inline void expect_same(const torch::Tensor& ours, const torch::Tensor& theirs,
                        const std::vector<torch::Tensor>& leaves, double tolerance = rounding) {
  EXPECT_LE(relative_error(ours, theirs), tolerance);
  const torch::Tensor gradient = torch::randn_like(theirs);
  const auto a = torch::autograd::grad({ours}, leaves, {gradient});
  const auto b = torch::autograd::grad({theirs}, leaves, {gradient});
  for (std::size_t i = 0; i < leaves.size(); ++i) EXPECT_LE(relative_error(a[i], b[i]), tolerance) << "leaf " << i;
}

}  // namespace allnorm::torch_adapter
