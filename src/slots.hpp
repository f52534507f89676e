// The tensors of a call against the slots of the layer's row.
#pragma once

#include <string_view>

#include "allnorm/catalogue.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

/// Throws unless `view` has the shape, dtype, order and device of the input, and data that the queue can use.
void expect_like(const ConstTensorView& view, const ConstTensorView& input, const Queue& queue, const char* name);

/// Throws invalid_argument where `name` is given, which stands for a tensor, or is its gradient, that the row does not
/// list.
void expect_listed(const Row& row, bool given, std::string_view name, std::string_view tensor);

/// Throws unless `view` is what the layer's tensor, or its gradient, must be for this input: shape, type, device and
/// memory. Those of a convolution are not looked at: they are checked with its geometry.
void expect_tensor(const Layer& layer, const TensorSpec& tensor, const ConstTensorView& view,
                   const ConstTensorView& input, const Queue& queue, const char* name);

}  // namespace allnorm
