#include "allnorm/tensor.hpp"

#include "allnorm/sizes.hpp"

namespace allnorm {

Shape::Shape(std::span<const std::int64_t> extents) {
  expect(extents.size() <= max_rank, Code::invalid_argument, [&] {
    return "a tensor has " + std::to_string(extents.size()) + " axes, must have at most " + std::to_string(max_rank);
  });
  for (const std::int64_t e : extents) {
    expect(e >= 0, Code::invalid_argument,
           [&] { return "an axis has extent " + std::to_string(e) + ", must be at least 0"; });
    extent_[static_cast<std::size_t>(rank_++)] = e;
  }
  expect(allnorm::product(extents).has_value(), Code::invalid_argument,
         [&] { return "shape " + to_string(*this) + " has more than 2^63-1 elements"; });
}

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (int i = 0; i < shape.rank(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + (shape.rank() == 1 ? ",)" : ")");
}

}  // namespace allnorm
