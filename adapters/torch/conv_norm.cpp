// A convolution without bias and the normalization after it, as one libtorch module.
#include "adapters/torch/conv_norm.hpp"

#include <ATen/ops/convolution.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "adapters/torch/streams.hpp"

namespace allnorm::torch_adapter {
namespace {

std::vector<std::int64_t> weight_extents(const ConvolutionShape& shape) {
  const std::int64_t groups = shape.geometry.groups;
  expect(groups >= 1 && shape.in % groups == 0 && shape.out % groups == 0, Code::invalid_argument, [&] {
    return "groups of the convolution is " + std::to_string(groups) + ", must divide " + std::to_string(shape.in) +
           " and " + std::to_string(shape.out);
  });
  std::vector<std::int64_t> extents{shape.out, shape.in / groups};
  extents.insert(extents.end(), shape.kernel.begin(), shape.kernel.end());
  return extents;
}

// Where the layer may read what the convolution reads.
Layer with_geometry(Layer layer, const Convolution& geometry) {
  if (layer.row->attribute("conv_stride") != nullptr) layer.options.convolution = geometry;
  return layer;
}

}  // namespace

ConvNorm::ConvNorm(ConvolutionShape shape, Layer layer, std::shared_ptr<Communicator> group, Queue& queue,
                   const std::string& name)
    : shape_(std::move(shape)) {
  weight = register_parameter("weight", at::zeros(weight_extents(shape_), device_for(queue)));
  norm_ = register_module("norm", std::make_shared<NormModule>(with_geometry(std::move(layer), shape_.geometry),
                                                               shape_.out, std::move(group), queue, name));
}

torch::Tensor ConvNorm::convolve(const torch::Tensor& input) const {
  const std::vector<std::int64_t> no_output_padding(shape_.kernel.size(), 0);
  const Convolution& g = shape_.geometry;
  return at::convolution(input, weight, {}, g.stride, g.padding, g.dilation, false, no_output_padding, g.groups);
}

torch::Tensor ConvNorm::forward(const torch::Tensor& input, const torch::Tensor& residual) {
  SlotTensors more{{"residual", residual}};
  if (is_training() && norm_->operation().layer().options.compensates()) {
    more.emplace_back("conv_input", input.detach());
    more.emplace_back("conv_weight", weight.detach());
  }
  return norm_->forward(convolve(input), more);
}

}  // namespace allnorm::torch_adapter
