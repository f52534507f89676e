#include "adapters/torch/dynamic_shortcut.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/full.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>

#include <string>

#include "adapters/torch/streams.hpp"
#include "allnorm/error.hpp"

namespace allnorm::torch_adapter {
namespace {

torch::Tensor same_size(const torch::Tensor& input, const torch::Tensor& weight, const torch::Tensor& bias) {
  return at::convolution(input, weight, bias, {1, 1}, {weight.size(2) / 2, weight.size(3) / 2}, {1, 1}, false, {0, 0},
                         1);
}

}  // namespace

DynamicMomentShortcut::DynamicMomentShortcut(std::int64_t channels, std::int64_t hidden, std::int64_t kernel,
                                             const Queue& queue) {
  expect(channels >= 1 && hidden >= 1 && kernel >= 1 && kernel % 2 == 1, Code::invalid_argument, [&] {
    return "channels, hidden channels and kernel are " + std::to_string(channels) + ", " + std::to_string(hidden) +
           " and " + std::to_string(kernel) + ", must be at least 1, and the kernel odd";
  });
  const c10::Device device = device_for(queue);
  first_weight = register_parameter("first_weight", at::zeros({hidden, 2, kernel, kernel}, device));
  first_bias = register_parameter("first_bias", at::zeros({hidden}, device));
  second_weight = register_parameter("second_weight", at::zeros({2 * channels, hidden, kernel, kernel}, device));
  second_bias =
      register_parameter("second_bias", at::cat({at::zeros({channels}, device), at::full({channels}, 1.0, device)}));
}

torch::Tensor DynamicMomentShortcut::forward(const torch::Tensor& x, const torch::Tensor& mean,
                                             const torch::Tensor& std) const {
  const torch::Tensor hidden = at::relu(same_size(at::cat({mean, std}, 1), first_weight, first_bias));
  const auto maps = same_size(hidden, second_weight, second_bias).chunk(2, 1);
  return maps[1] * x + maps[0];
}

}  // namespace allnorm::torch_adapter
