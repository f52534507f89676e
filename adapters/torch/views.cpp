// Torch tensors as the library's views.
#include "adapters/torch/views.hpp"

#include <span>
#include <string>

namespace allnorm::torch_adapter {
namespace {

/// Dense with the channel axis last. The shape of such a tensor is (N, C, space...) all the same.
bool is_channels_last(const torch::Tensor& tensor) { return tensor.dim() > 2 && tensor.movedim(1, -1).is_contiguous(); }

/// The library's name for the device of a tensor that expect_on() has let pass.
Device memory_of(const torch::Tensor& tensor) {
  return tensor.is_cuda() ? Device{DeviceKind::cuda, static_cast<int>(tensor.get_device())} : Device{};
}

}  // namespace

void expect_on(const torch::Tensor& tensor, Device device, const char* name) {
  if (!tensor.defined()) return;
  const c10::Device actual = tensor.device();
  const bool same =
      device.kind == DeviceKind::cpu ? actual.is_cpu() : actual.is_cuda() && actual.index() == device.index;
  expect(same, Code::invalid_argument, [&] {
    return std::string("device of ") + name + " is " + actual.str() + ", must be " + to_string(device) +
           " as the module's queue";
  });
}

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
    case torch::kLong:
      return DType::i64;
    default:
      break;
  }
  fail(Code::invalid_argument, std::string("element type of a tensor is ") + toString(tensor.scalar_type()) +
                                   ", must be Double, Float, Half or BFloat16, or Long for labels");
}

Shape shape_of(const torch::Tensor& tensor) {
  return Shape(std::span<const std::int64_t>(tensor.sizes().data(), tensor.sizes().size()));
}

Dense dense(const torch::Tensor& tensor, bool rows) {
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
  return {tensor.data_ptr(), dtype_of(tensor), memory_of(tensor), shape_of(tensor), order};
}

TensorView writable_view_of(const torch::Tensor& tensor, Order order) {
  if (!tensor.defined()) return {};
  return {tensor.data_ptr(), dtype_of(tensor), memory_of(tensor), shape_of(tensor), order};
}

}  // namespace allnorm::torch_adapter
