#include "src/plan.hpp"

#include <algorithm>
#include <array>
#include <span>
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

std::int64_t whitened_groups(const Layer& layer, std::int64_t channels) {
  const std::int64_t g = layer.options.group_size;
  expect(channels % g == 0, Code::invalid_argument, [&] {
    return "attribute group_size is " + std::to_string(g) + ", must divide the number of channels, " +
           std::to_string(channels);
  });
  return channels / g;
}

// How the layer cuts the axes of an input of that shape.
Cut cut_of(const Layer& layer, const Shape& shape) {
  if (layer.row->statistics.has(Axis::row)) return {1, 0, layer.row_axis(shape)};
  if (layer.row->by_trailing()) return {1, normalized_axes(layer, shape)};
  expect_channels(shape);
  if (layer.row->statistics.has(Axis::partner)) return {whitened_groups(layer, shape[1])};
  if (!layer.row->statistics.has(Axis::group)) return {};
  const std::int64_t C = shape[1], G = layer.options.groups;
  expect(C % G == 0, Code::invalid_argument, [&] {
    return "attribute groups is " + std::to_string(G) + ", must divide the number of channels, " + std::to_string(C);
  });
  expect_fits("attribute groups", G, {std::max<std::int64_t>(1, shape[0])});  // 0 channels have any divisor
  return {G, 0};
}

}  // namespace

Plan plan_for(const Layer& layer, const Shape& shape, Order order) {
  const Row& row = *layer.row;
  const TensorSpec* gamma = nullptr;
  for (const char* name : {"gamma", "gain", "weight"})
    if (row.tensor(name) != nullptr) gamma = row.tensor(name);
  const Axes statistics = row.statistics, affine = gamma != nullptr ? gamma->axes : statistics;
  const Cut cut = cut_of(layer, shape);
  Plan plan;
  plan.norm = partition(statistics, shape, order, cut);
  plan.affine = partition(affine, shape, order, cut);
  const Axes refined = statistics | affine;
  const Axes every =
      row.by_trailing() ? Axes{Axis::leading, Axis::trailing} : Axes{Axis::sample, Axis::channel, Axis::space};
  plan.along = refined.has(every);
  plan.fine = plan.along ? plan.norm : partition(refined, shape, order, cut);
  plan.to_norm = {1, std::max<std::int64_t>(1, plan.norm.groups())};
  if (!plan.along) {
    plan.to_norm = coarsening(refined, statistics, shape, order, cut);
    plan.to_affine = coarsening(refined, affine, shape, order, cut);
  }
  // Frames, sums and scratch are at most 16 doubles for each.
  const std::int64_t most = std::max({plan.norm.groups(), plan.fine.groups(), plan.affine.groups()});
  expect(product({most, 16, sizeof(double)}).has_value(), Code::invalid_input,
         [&] { return "input has shape " + to_string(shape) + ", must have at most 2^56 groups and parameters"; });
  return plan;
}

int Layer::row_axis(const Shape& input) const {
  const std::int64_t rank = input.rank(), dim = options.dim;
  expect(rank >= 1, Code::invalid_input, "input has shape (), must have at least 1 axis");
  expect(-rank <= dim && dim < rank, Code::invalid_argument, [&] {
    return "attribute dim is " + std::to_string(dim) + ", must be from " + std::to_string(-rank) + " to " +
           std::to_string(rank - 1) + ": input has shape " + to_string(input);
  });
  return static_cast<int>(dim < 0 ? dim + rank : dim);
}

bool Layer::fits(Axes axes, const Shape& given, const Shape& input) const {
  if (given == shape_of(axes, input)) return true;
  if (!axes.has(Axis::row) || axes == every_axis) return false;
  const int axis = row_axis(input);
  bool same = given.rank() == input.rank();
  for (int i = 0; same && i < input.rank(); ++i) same = given[i] == (i == axis ? input[i] : 1);
  return same;
}

Shape Layer::shape_of(Axes axes, const Shape& input) const {
  const Cut cut = cut_of(*this, input);
  if (axes == every_axis) return input;
  if (axes.has(Axis::row)) return {input[cut.row]};
  if (axes.has(Axis::statistic)) return {3};
  if (axes.has(Axis::partner)) return {cut.groups, options.group_size, options.group_size};
  const int first = input.rank() - cut.trailing;
  if (axes.has(Axis::leading)) return Shape(std::span(input.begin(), static_cast<std::size_t>(first)));
  if (axes.has(Axis::trailing)) return Shape(std::span(input.begin() + first, static_cast<std::size_t>(cut.trailing)));
  const bool space = axes.has(Axis::space);
  std::array<std::int64_t, Shape::max_rank> extents;  // as many as the input's at most
  std::size_t rank = 0;
  const auto add = [&](bool kept, std::int64_t extent) {
    if (kept || space) extents[rank++] = kept ? extent : 1;
  };
  add(axes.has(Axis::sample), input[0]);
  add(axes.has(Axis::channel) || axes.has(Axis::group), axes.has(Axis::channel) ? input[1] : cut.groups);
  for (int i = 2; space && i < input.rank(); ++i) add(true, input[i]);
  return Shape(std::span(extents.data(), rank));
}

}  // namespace allnorm
