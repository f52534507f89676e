// Parameters and their gradients: small f32 or f64 arrays, double inside the library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "allnorm/tensor.hpp"

namespace allnorm {

/// The values of an f32 or f64 view. Throws unsupported for other dtypes.
std::vector<double> read_parameter(const ConstTensorView& view);
/// The same, or `size` times `otherwise` when the view is not given.
std::vector<double> read_parameter(const ConstTensorView& view, std::int64_t size, double otherwise);
void write_parameter(const std::vector<double>& values, const TensorView& view);

}  // namespace allnorm
