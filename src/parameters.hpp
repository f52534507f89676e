// Parameters and their gradients: small arrays of any floating-point type, double inside the library.
#pragma once

#include "allnorm/tensor.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm {

/// Throws invalid_argument unless `view` is of a floating-point type with data.
void expect_floats(const ConstTensorView& view, const char* name);
/// Throws unless `view` is not given, or is such data of this shape in memory of the queue's device: whatever the
/// kernels need, to be checked before ranks exchange anything.
void expect_parameter(const ConstTensorView& view, const Shape& shape, const Queue& queue, const char* name);
/// Such a view as the kernels read it, `otherwise` where it is not given; and as they write it.
Parameter parameter(const ConstTensorView& view, double otherwise) noexcept;
ParameterGrad parameter_grad(const TensorView& view) noexcept;

}  // namespace allnorm
