#include "allnorm/partition.hpp"

namespace allnorm {

namespace {
std::int64_t space_of(const Shape& shape) noexcept { return shape.product(2, shape.rank()); }
}  // namespace

Partition per_channel(const Shape& shape, Order order) noexcept {
  if (order == Order::channels_first) return {1, shape[0], shape[1], space_of(shape)};
  return {1, shape[0] * space_of(shape), shape[1], 1};
}

Partition per_sample_block(const Shape& shape, Order order, std::int64_t blocks) noexcept {
  const std::int64_t width = blocks > 0 ? shape[1] / blocks : 0;
  if (order == Order::channels_first) return {1, 1, shape[0] * blocks, width * space_of(shape)};
  return {shape[0], space_of(shape), blocks, width};
}

Partition per_row(const Shape& shape, int axes) noexcept {
  const int first = shape.rank() - axes;
  return {1, 1, shape.product(0, first), shape.product(first, shape.rank())};
}

}  // namespace allnorm
