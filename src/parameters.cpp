#include "parameters.hpp"

namespace allnorm {

namespace {
void expect_parameter(DType dtype) {
  expect(dtype == DType::f32 || dtype == DType::f64, Code::unsupported,
         [&] { return "a parameter has dtype " + std::string(to_string(dtype)) + ", must have f32 or f64"; });
}
}  // namespace

std::vector<double> read_parameter(const ConstTensorView& view) {
  expect_parameter(view.dtype);
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
  expect_parameter(view.dtype);
  for (std::size_t i = 0; i < values.size(); ++i)
    if (view.dtype == DType::f64)
      static_cast<double*>(view.data)[i] = values[i];
    else
      static_cast<float*>(view.data)[i] = static_cast<float>(values[i]);
}

}  // namespace allnorm
