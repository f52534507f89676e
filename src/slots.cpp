#include "src/slots.hpp"

#include <string>

#include "src/parameters.hpp"

namespace allnorm {

void expect_like(const ConstTensorView& view, const ConstTensorView& input, const Queue& queue, const char* name) {
  expect(view.shape == input.shape, Code::invalid_input, [&] {
    return std::string(name) + " has shape " + to_string(view.shape) + ", must have " + to_string(input.shape) +
           " as input";
  });
  expect(view.dtype == input.dtype && view.order == input.order && view.device == input.device, Code::invalid_argument,
         [&] { return std::string(name) + " must have input's dtype, order of axes and device"; });
  expect(view.data != nullptr || view.elements() == 0, Code::invalid_argument,
         [&] { return std::string(name) + " has no data"; });
  expect_memory(view.data, queue, name);
}

void expect_known(const Row& row, bool known, std::string_view name) {
  expect(known, Code::invalid_argument,
         [&] { return std::string(name) + " is given, must not be for " + std::string(row.name); });
}

void expect_tensor(const Layer& layer, const TensorSpec& tensor, const ConstTensorView& view,
                   const ConstTensorView& input, const Queue& queue, const char* name) {
  if (tensor.role == TensorRole::activation) expect_like(view, input, queue, name);
  if (tensor.role == TensorRole::parameter || tensor.role == TensorRole::map || tensor.role == TensorRole::gradient)
    expect_parameter(
        view, layer.fits(tensor.axes, view.shape, input.shape) ? view.shape : layer.shape_of(tensor.axes, input.shape),
        queue, name);
}

}  // namespace allnorm
