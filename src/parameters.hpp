// Parameters and their gradients: small f32 or f64 arrays, double inside the library.
#pragma once

#include "allnorm/tensor.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm {

/// Throws invalid_argument unless `view` is f32 or f64 with data.
void expect_floats(const ConstTensorView& view, const char* name);
/// Throws unless `view` is not given, or is f32 or f64 data of this shape in memory of the queue's device: whatever the
/// kernels need, to be checked before ranks exchange anything.
void expect_parameter(const ConstTensorView& view, const Shape& shape, const Queue& queue, const char* name);
/// Such a view as the kernels read it, `otherwise` where it is not given; and as they write it.
Parameter parameter(const ConstTensorView& view, double otherwise) noexcept;
ParameterGrad parameter_grad(const TensorView& view) noexcept;

}  // namespace allnorm
