#include "src/parameters.hpp"

#include <string>

namespace allnorm {

void expect_floats(const ConstTensorView& view, const char* name) {
  if (view.dtype == DType::i64) refuse_integers(name);
  expect(view.data != nullptr || view.elements() == 0, Code::invalid_argument,
         [&] { return std::string(name) + " has no data"; });
}

void expect_parameter(const ConstTensorView& view, const Shape& shape, const Queue& queue, const char* name) {
  if (!view.given()) return;
  expect_floats(view, name);
  expect(view.shape == shape, Code::invalid_input,
         [&] { return std::string(name) + " has shape " + to_string(view.shape) + ", must have " + to_string(shape); });
  expect(view.device == queue.device(), Code::device, [&] {
    return std::string(name) + " is on " + to_string(view.device) + ", must be on " + to_string(queue.device());
  });
  expect_memory(view.data, queue, name);
}

Parameter parameter(const ConstTensorView& view, double otherwise) noexcept {
  return {view.data, view.dtype, otherwise};
}

ParameterGrad parameter_grad(const TensorView& view) noexcept { return {view.data, view.dtype}; }

}  // namespace allnorm
