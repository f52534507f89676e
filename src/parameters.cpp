#include "parameters.hpp"

namespace allnorm {

void expect_parameter(const ConstTensorView& view, const Shape& shape, Device device, const char* name) {
  if (!view.given()) return;
  expect(view.dtype == DType::f32 || view.dtype == DType::f64, Code::invalid_argument, [&] {
    return std::string(name) + " has dtype " + std::string(to_string(view.dtype)) + ", must have f32 or f64";
  });
  expect(view.shape == shape, Code::invalid_input,
         [&] { return std::string(name) + " has shape " + to_string(view.shape) + ", must have " + to_string(shape); });
  expect(view.device == device, Code::device,
         [&] { return std::string(name) + " is on " + to_string(view.device) + ", must be on " + to_string(device); });
  expect(view.data != nullptr || view.elements() == 0, Code::invalid_argument,
         [&] { return std::string(name) + " has no data"; });
}

std::vector<double> read_parameter(const ConstTensorView& view) {
  std::vector<double> values(static_cast<std::size_t>(view.elements()));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = view.dtype == DType::f64 ? static_cast<const double*>(view.data)[i]
                                         : static_cast<double>(static_cast<const float*>(view.data)[i]);
  return values;
}

std::vector<double> read_parameter(const ConstTensorView& view, std::int64_t size, double otherwise) {
  return view.given() ? read_parameter(view) : std::vector<double>(static_cast<std::size_t>(size), otherwise);
}

void write_parameter(const std::vector<double>& values, const TensorView& view) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (view.dtype == DType::f64)
      static_cast<double*>(view.data)[i] = values[i];
    else
      static_cast<float*>(view.data)[i] = static_cast<float>(values[i]);
}

}  // namespace allnorm
