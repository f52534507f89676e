#include "adapters/torch/cosine_conv.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/zeros.h>

#include <numeric>
#include <utility>
#include <vector>

#include "adapters/torch/streams.hpp"

namespace allnorm::torch_adapter {
namespace {

using Extents = std::vector<std::int64_t>;

std::int64_t at_axis(const Extents& values, std::size_t axis) { return values.size() == 1 ? values[0] : values[axis]; }

// (N, Ci, space...) -> (N, output space..., Ci, k...): a view of the padded input.
torch::Tensor patches_of(const torch::Tensor& input, const ConvolutionShape& shape) {
  const auto axes = static_cast<std::int64_t>(shape.kernel.size());
  Extents padding;
  for (auto axis = shape.kernel.size(); axis-- > 0;)  // from the last axis on, as torch has it
    padding.insert(padding.end(), 2, at_axis(shape.geometry.padding, axis));
  torch::Tensor patches = at::constant_pad_nd(input, padding, 0);
  for (std::int64_t axis = 0; axis < axes; ++axis) {
    const auto i = static_cast<std::size_t>(axis);
    const std::int64_t dilation = at_axis(shape.geometry.dilation, i), reach = (shape.kernel[i] - 1) * dilation + 1;
    patches = patches.unfold(2 + axis, reach, at_axis(shape.geometry.stride, i)).slice(-1, 0, reach, dilation);
  }
  Extents order{0};
  for (std::int64_t axis = 0; axis < axes; ++axis) order.push_back(2 + axis);
  order.push_back(1);
  for (std::int64_t axis = 0; axis < axes; ++axis) order.push_back(2 + axes + axis);
  return patches.permute(order);
}

}  // namespace

CosineConv::CosineConv(ConvolutionShape shape, const Layer& layer, Queue& queue, const std::string& name)
    : shape_(std::move(shape)) {
  expect(layer.row->vectors() != nullptr, Code::invalid_argument, [&] {
    return "layer of the convolution is " + std::string(layer.row->name) +
           ", must be one that compares rows with vectors";
  });
  weight = register_parameter("weight", at::zeros(weight_extents(shape_), device_for(queue)));
  cosine_ = register_module("cosine", std::make_shared<NormModule>(layer, shape_.out, nullptr, queue, name));
}

torch::Tensor CosineConv::forward(const torch::Tensor& input) const {
  expect(input.dim() == static_cast<std::int64_t>(2 + shape_.kernel.size()) && input.size(1) == shape_.in,
         Code::invalid_input, [&] {
           return "input has shape " + to_string(Shape(std::span(input.sizes().data(), input.sizes().size()))) +
                  ", must have " + std::to_string(shape_.in) + " channels and " + std::to_string(shape_.kernel.size()) +
                  " space axes";
         });
  const std::string_view slot = cosine_->operation().layer().row->vectors()->name;
  const std::int64_t groups = shape_.geometry.groups;
  std::vector<torch::Tensor> parts;
  Extents made;  // N, space..., channels of a group
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t in = shape_.in / groups, out = shape_.out / groups;
    const torch::Tensor patches = patches_of(input.narrow(1, g * in, in), shape_);
    const torch::Tensor own = weight.narrow(0, g * out, out).flatten(1);
    made.assign(patches.sizes().begin(), patches.sizes().begin() + static_cast<std::ptrdiff_t>(input.dim() - 1));
    made.push_back(out);
    parts.push_back(cosine_->forward(patches.reshape({-1, own.size(1)}), {{slot, own}}).view(made));
  }
  return at::cat(parts, -1).movedim(-1, 1).contiguous();
}

}  // namespace allnorm::torch_adapter
