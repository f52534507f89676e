#include "plan.hpp"

#include <algorithm>
#include <string>

#include "allnorm/sizes.hpp"

namespace allnorm {

namespace {

// The number of trailing axes that normalized_shape names.
int normalized_axes(const Layer& layer, const Shape& shape) {
  const auto& wanted = layer.options.normalized_shape;
  expect(shape.rank() >= 1, Code::invalid_input, "input has shape (), must have at least 1 axis");
  if (wanted.empty()) {
    expect(shape.rank() >= 2, Code::invalid_input, [&] {
      return "input has shape " + to_string(shape) + ", must have at least 2 axes where normalized_shape is not given";
    });
    return shape.rank() - 1;
  }
  const auto axes = std::min(wanted.size(), static_cast<std::size_t>(shape.rank()));
  const bool fits = axes == wanted.size() && std::equal(wanted.begin(), wanted.end(), shape.end() - axes);
  expect(fits, Code::invalid_argument, [&] {
    std::string text;
    for (const auto extent : wanted) text += (text.empty() ? "" : ",") + std::to_string(extent);
    return "attribute normalized_shape is (" + text + "), must be the trailing axes of input, whose shape is " +
           to_string(shape);
  });
  return static_cast<int>(axes);
}

void expect_channels(const Shape& shape) {
  expect(shape.rank() >= 2, Code::invalid_input,
         [&] { return "input has shape " + to_string(shape) + ", must have at least 2 axes (N,C,space...)"; });
}

}  // namespace

Plan plan_for(const Layer& layer, const Shape& shape, Order order) {
  Plan plan;
  switch (layer.row->reduction) {
    case Reduction::batch_and_space: {
      expect_channels(shape);
      plan.norm = plan.fine = per_channel(shape, order);
      plan.parameters = shape[1];
      plan.to_norm = plan.to_affine = {1, std::max<std::int64_t>(1, shape[1])};
      break;
    }
    case Reduction::group_and_space: {
      expect_channels(shape);
      const std::int64_t C = shape[1], G = layer.options.groups;
      expect(C % G == 0, Code::invalid_argument, [&] {
        return "attribute groups is " + std::to_string(G) + ", must divide the number of channels, " +
               std::to_string(C);
      });
      expect_fits("attribute groups", G, {std::max<std::int64_t>(1, shape[0])});  // 0 channels have any divisor
      plan.norm = per_sample_block(shape, order, G);
      plan.fine = per_sample_block(shape, order, C);
      plan.parameters = C;
      plan.to_norm = {std::max<std::int64_t>(1, C / G), std::max<std::int64_t>(1, shape[0] * G)};
      plan.to_affine = {1, std::max<std::int64_t>(1, C)};
      break;
    }
    case Reduction::trailing_axes: {
      plan.norm = per_row(shape, normalized_axes(layer, shape));
      plan.parameters = plan.norm.reduce1;
      plan.rows = true;
      break;
    }
  }
  // Frames, sums and scratch are at most 16 doubles for each.
  const std::int64_t most = std::max({plan.norm.groups(), plan.fine.groups(), plan.parameters});
  expect(product({most, 16, sizeof(double)}).has_value(), Code::invalid_input,
         [&] { return "input has shape " + to_string(shape) + ", must have at most 2^56 groups and parameters"; });
  return plan;
}

Shape parameter_shape(const Layer& layer, const Shape& shape) {
  if (layer.row->reduction != Reduction::trailing_axes) {
    expect_channels(shape);
    return Shape{shape[1]};
  }
  const int axes = normalized_axes(layer, shape);
  return Shape(std::span(shape.end() - axes, static_cast<std::size_t>(axes)));
}

}  // namespace allnorm
