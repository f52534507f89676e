#include "adapters/torch/conv_norm.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "adapters/torch/streams.hpp"
#include "adapters/torch/views.hpp"
#include "allnorm/weight_start.hpp"

namespace allnorm::torch_adapter {
namespace {

// Where the layer may read what the convolution reads.
Layer with_geometry(Layer layer, const Convolution& geometry) {
  if (layer.row->attribute("conv_stride") != nullptr) layer.options.convolution = geometry;
  return layer;
}

// The name of what a layer of weights multiplies each row with.
std::string_view length_of(const Row& row) {
  for (const TensorSpec& tensor : row.tensors)
    if (tensor.role == TensorRole::parameter && tensor.axes == row.statistics) return tensor.name;
  return {};
}

}  // namespace

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

Conv::Conv(ConvolutionShape shape, const std::optional<Layer>& weights, Queue& queue, const std::string& name,
           bool with_bias)
    : shape_(std::move(shape)), queue_(&queue) {
  weight = register_parameter("weight", at::zeros(weight_extents(shape_), device_for(queue)));
  if (with_bias) bias = register_parameter("bias", at::zeros({shape_.out}, device_for(queue)));
  if (!weights) return;
  expect(weights->row->statistics.has(Axis::row) && weights->row->vectors() == nullptr, Code::invalid_argument, [&] {
    return "layer of the weight is " + std::string(weights->row->name) + ", must be one with statistics of each row";
  });
  weights_ =
      register_module("weights", std::make_shared<NormModule>(*weights, shape_.out, nullptr, queue, name + ".weight"));
  length_slot_ = length_of(*weights->row);
  if (length_slot_.empty()) return;
  length = register_parameter("length", at::full({shape_.out}, 1.0, device_for(queue)));
}

torch::Tensor Conv::kernel() const { return weights_ ? weights_->forward(weight, {{length_slot_, length}}) : weight; }

torch::Tensor Conv::convolve(const torch::Tensor& input) const { return convolve(input, kernel()); }

torch::Tensor Conv::convolve(const torch::Tensor& input, const torch::Tensor& with) const {
  const std::vector<std::int64_t> no_output_padding(shape_.kernel.size(), 0);
  const Convolution& g = shape_.geometry;
  return at::convolution(input, with, bias, g.stride, g.padding, g.dilation, false, no_output_padding, g.groups);
}

void Conv::start(const torch::Tensor& input, std::shared_ptr<Communicator> group, double eps) {
  expect(length.defined(), Code::unsupported, "the convolution has no lengths of its weight's rows to begin with");
  const at::NoGradGuard no_gradients;
  length.fill_(1);
  if (bias.defined()) bias.zero_();
  Queue& queue = current_queue(*queue_);
  const Dense t = dense(convolve(input));
  const WeightStart start = weight_start(view_of(t.tensor, t.order), std::move(group), queue, eps);
  length.copy_(at::tensor(start.g, at::kDouble));
  if (bias.defined()) bias.copy_(at::tensor(start.bias, at::kDouble));
}

ConvNorm::ConvNorm(ConvolutionShape shape, Layer layer, std::shared_ptr<Communicator> group, Queue& queue,
                   const std::string& name, const std::optional<Layer>& weights)
    : Conv(std::move(shape), weights, queue, name, false) {
  norm_ = register_module("norm", std::make_shared<NormModule>(with_geometry(std::move(layer), this->shape().geometry),
                                                               this->shape().out, std::move(group), queue, name));
}

torch::Tensor ConvNorm::forward(const torch::Tensor& input, const torch::Tensor& residual) {
  SlotTensors more{{"residual", residual}};
  const torch::Tensor with = kernel();
  if (is_training() && norm_->operation().layer().options.compensates()) {
    more.emplace_back("conv_input", input.detach());
    more.emplace_back("conv_weight", with.detach());
  }
  return norm_->forward(convolve(input, with), more);
}

}  // namespace allnorm::torch_adapter
