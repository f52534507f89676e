// Parameters and their gradients: small f32 or f64 arrays, double inside the library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "allnorm/tensor.hpp"

namespace allnorm {

/// Throws unless `view` is not given, or is f32 or f64 data of this shape on this device: whatever read_parameter and
/// write_parameter need, to be checked before ranks exchange anything.
void expect_parameter(const ConstTensorView& view, const Shape& shape, Device device, const char* name);
/// The values of such a view.
std::vector<double> read_parameter(const ConstTensorView& view);
/// The same, or `size` times `otherwise` when the view is not given.
std::vector<double> read_parameter(const ConstTensorView& view, std::int64_t size, double otherwise);
void write_parameter(const std::vector<double>& values, const TensorView& view);

}  // namespace allnorm
