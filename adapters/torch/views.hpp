// Torch tensors as the library's views: same memory, no copies where the tensor is dense.
#pragma once

#include <torch/types.h>

#include "allnorm/tensor.hpp"

namespace allnorm::torch_adapter {

/// Throws invalid_argument, with `name`, unless the tensor is in the memory of `device`. An undefined tensor passes.
void expect_on(const torch::Tensor& tensor, Device device, const char* name);
/// The element type. Throws invalid_argument for integers and others that the library does not compute in.
DType dtype_of(const torch::Tensor& tensor);
Shape shape_of(const torch::Tensor& tensor);

/// A dense tensor and the order it lies in; dense tensors are returned as they are.
struct Dense {
  torch::Tensor tensor;
  Order order = Order::channels_first;
};
/// `tensor`, copied to channels first unless it is dense in one of the two orders. `rows`: only channels first will do,
/// since trailing axes are taken as they lie.
Dense dense(const torch::Tensor& tensor, bool rows = false);
/// `tensor` in that order, copied only if it lies otherwise.
torch::Tensor in_order(const torch::Tensor& tensor, Order order);

/// Views of a dense tensor in that order, in the memory of the CPU or of a GPU. An undefined tensor is "not given".
ConstTensorView view_of(const torch::Tensor& tensor, Order order = Order::channels_first);
TensorView writable_view_of(const torch::Tensor& tensor, Order order = Order::channels_first);

}  // namespace allnorm::torch_adapter
