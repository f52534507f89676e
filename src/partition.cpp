#include "allnorm/partition.hpp"

#include <algorithm>
#include <array>
#include <span>

#include "allnorm/error.hpp"

namespace allnorm {

namespace {

/// Adjacent axes in memory order that are kept, or not, together.
struct AxisPart {
  std::int64_t extent;
  Axes axes;  // any of them keeps it
};
struct AxisParts {
  std::array<AxisPart, 4> all{};
  std::size_t count = 0;
  void add(std::int64_t extent, Axes axes) { all[count++] = {extent, axes}; }
  std::span<const AxisPart> span() const { return {all.data(), count}; }
};

AxisParts parts_of(Axes axes, const Shape& shape, Order order, const Cut& cut) {
  AxisParts parts;
  if (axes.has(Axis::row)) {
    parts.add(shape.product(0, cut.row), {});
    parts.add(shape[cut.row], {Axis::row});
    parts.add(shape.product(cut.row + 1, shape.rank()), {});
    return parts;
  }
  if (axes.has(Axis::leading) || axes.has(Axis::trailing)) {
    const int first = shape.rank() - cut.trailing;
    parts.add(shape.product(0, first), {Axis::leading});
    parts.add(shape.product(first, shape.rank()), {Axis::trailing});
    return parts;
  }
  const auto add_space = [&] { parts.add(shape.product(2, shape.rank()), {Axis::space}); };
  parts.add(shape[0], {Axis::sample});
  if (order == Order::channels_last) add_space();
  parts.add(cut.groups, {Axis::group, Axis::channel});
  parts.add(cut.groups > 0 ? shape[1] / cut.groups : 0, {Axis::channel});
  if (order == Order::channels_first) add_space();
  return parts;
}

bool keeps(Axes axes, const AxisPart& part) { return (axes.bits & part.axes.bits) != 0; }

}  // namespace

Partition partition(Axes kept, const Shape& shape, Order order, const Cut& cut) {
  const AxisParts parts = parts_of(kept, shape, order, cut);
  std::array<std::int64_t, 4> extents{1, 1, 1, 1};  // keep0, reduce0, keep1, reduce1: filled from the end
  std::size_t at = 3;
  for (std::size_t i = parts.count; i-- > 0;) {
    const AxisPart& part = parts.all[i];
    if (keeps(kept, part) == (at % 2 == 1)) {
      expect(at > 0 || part.extent == 1, Code::unsupported,
             "a partition interleaves kept and reduced axes more than twice, must not in this order of axes");
      at -= at > 0;
    }
    extents[at] *= part.extent;
  }
  return {extents[0], extents[1], extents[2], extents[3]};
}

Coarsening coarsening(Axes fine, Axes coarse, const Shape& shape, Order order, const Cut& cut) {
  const AxisParts parts = parts_of(fine, shape, order, cut);
  Coarsening map;
  bool inside = false, after = false;
  for (std::size_t i = parts.count; i-- > 0;) {
    const AxisPart& part = parts.all[i];
    if (!keeps(fine, part)) continue;
    const bool kept = keeps(coarse, part);
    expect(!(kept && after), Code::unsupported, "a parameter lies on two axes apart, must lie on adjacent ones");
    after |= inside && !kept;
    inside |= kept;
    if (kept)
      map.modulo *= part.extent;
    else if (!inside)
      map.divide *= part.extent;
  }
  return {std::max<std::int64_t>(1, map.divide), std::max<std::int64_t>(1, map.modulo)};
}

}  // namespace allnorm
