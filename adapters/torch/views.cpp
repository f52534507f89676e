// Torch tensors as the library's views.
#include "adapters/torch/views.hpp"

#include <span>
#include <string>

namespace allnorm::torch_adapter {
namespace {

/// Dense with the channel axis last. The shape of such a tensor is (N, C, space...) all the same.
bool is_channels_last(const torch::Tensor& tensor) { return tensor.dim() > 2 && tensor.movedim(1, -1).is_contiguous(); }

}  // namespace

DType dtype_of(const torch::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::kDouble:
      return DType::f64;
    case torch::kFloat:
      return DType::f32;
    case torch::kHalf:
      return DType::f16;
    case torch::kBFloat16:
      return DType::bf16;
    default:
      break;
  }
  fail(Code::invalid_argument, std::string("element type of a tensor is ") + toString(tensor.scalar_type()) +
                                   ", must be Double, Float, Half or BFloat16");
}

Shape shape_of(const torch::Tensor& tensor) {
  return Shape(std::span<const std::int64_t>(tensor.sizes().data(), tensor.sizes().size()));
}

Dense dense(const torch::Tensor& tensor, bool rows) {
  expect(tensor.device().is_cpu(), Code::unsupported,
         [&] { return "device of a tensor is " + tensor.device().str() + ", must be cpu"; });
  if (tensor.is_contiguous()) return {tensor, Order::channels_first};
  if (!rows && is_channels_last(tensor)) return {tensor, Order::channels_last};
  return {tensor.contiguous(), Order::channels_first};
}

torch::Tensor in_order(const torch::Tensor& tensor, Order order) {
  if (order == Order::channels_first) return tensor.contiguous();
  if (is_channels_last(tensor)) return tensor;
  return tensor.movedim(1, -1).contiguous().movedim(-1, 1);
}

ConstTensorView view_of(const torch::Tensor& tensor, Order order) {
  if (!tensor.defined()) return {};
  return {tensor.data_ptr(), dtype_of(tensor), Device{}, shape_of(tensor), order};
}

TensorView writable_view_of(const torch::Tensor& tensor, Order order) {
  if (!tensor.defined()) return {};
  return {tensor.data_ptr(), dtype_of(tensor), Device{}, shape_of(tensor), order};
}

}  // namespace allnorm::torch_adapter
