// The tensors of a call against the slots of the layer's row.
#pragma once

#include <string_view>

#include "allnorm/catalogue.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

/// Throws unless `view` has the shape, dtype, order and device of the input, and data that the queue can use.
void expect_like(const ConstTensorView& view, const ConstTensorView& input, const Queue& queue, const char* name);

/// Throws invalid_argument that `name` must not be given for the row, unless it is `known` there.
void expect_known(const Row& row, bool known, std::string_view name);

/// Throws unless `view` is what the layer's tensor, or its gradient, must be for this input: shape, type, device and
/// memory. Those of a convolution are not looked at: they are checked with its geometry.
void expect_tensor(const Layer& layer, const TensorSpec& tensor, const ConstTensorView& view,
                   const ConstTensorView& input, const Queue& queue, const char* name);

}  // namespace allnorm
