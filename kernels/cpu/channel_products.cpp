// Sums of products of two channels of a group: a covariance, or what a gradient has of one.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/channel_products.cpp"
#include <hwy/foreach_target.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu/channel_block-inl.hpp"
#include "kernels/cpu/kernels.hpp"

#ifndef ALLNORM_KERNELS_CPU_CHANNEL_PRODUCTS_ONCE
#define ALLNORM_KERNELS_CPU_CHANNEL_PRODUCTS_ONCE
namespace allnorm::cpu {

/// How positions are cut into parts, whose sums are added in their order.
struct ProductGrid {
  std::int64_t parts = 1, part = 0;

  explicit ProductGrid(const ChannelGroups& g) noexcept {
    constexpr std::int64_t least = 32 * block_positions, most_sums = 1 << 22;  // of all parts
    const std::int64_t most = max_of(1, most_sums / max_of(1, g.channels * (g.width + 1)));
    parts = max_of(1, min_of(most, ceil_div(g.positions(), least)));
    part = ceil_div(ceil_div(g.positions(), parts), block_positions) * block_positions;
  }
};

}  // namespace allnorm::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// sums[j] += sum over a block of left * rows[j], for `count` rows, at most four.
HWY_INLINE void add_products(const double* left, const double* rows, std::int64_t count, double* sums) {
  const DoubleTag d;
  const double* r[4];
  for (std::int64_t j = 0; j < 4; ++j) r[j] = rows + min_of(j, count - 1) * block_positions;
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  for (std::int64_t p = 0; p < block_positions; p += lanes(d)) {
    const auto l = hn::LoadU(d, left + p);
    s0 = hn::MulAdd(l, hn::LoadU(d, r[0] + p), s0);
    s1 = hn::MulAdd(l, hn::LoadU(d, r[1] + p), s1);
    s2 = hn::MulAdd(l, hn::LoadU(d, r[2] + p), s2);
    s3 = hn::MulAdd(l, hn::LoadU(d, r[3] + p), s3);
  }
  const double made[4] = {sum_of_lanes(s0), sum_of_lanes(s1), sum_of_lanes(s2), sum_of_lanes(s3)};
  for (std::int64_t j = 0; j < count; ++j) sums[j] += made[j];
}

HWY_INLINE double sum_of_row(const double* row) {
  const DoubleTag d;
  auto s = hn::Zero(d);
  for (std::int64_t p = 0; p < block_positions; p += lanes(d)) s = hn::Add(s, hn::LoadU(d, row + p));
  return sum_of_lanes(s);
}

/// One group's sums over positions [from, to): products (width, width), of x alone its upper half, then sums (width).
template <class T>
void part_products(const ChannelProductsArgs& a, std::int64_t group, std::int64_t from, std::int64_t to, double* out) {
  const std::int64_t w = a.groups.width;
  const auto size = static_cast<std::size_t>(w * block_positions);
  std::vector<double> x(size), dy(a.sums != nullptr ? size : 0);
  const std::vector<double> zero(static_cast<std::size_t>(w), 0.0);
  const double* left = a.sums != nullptr ? dy.data() : x.data();
  for (std::int64_t p = from; p < to; p += block_positions) {
    const std::int64_t count = min_of(block_positions, to - p);
    read_block<double>(static_cast<const T*>(a.x), a.groups, group, p, count, a.center + group * w, 1.0, x.data());
    if (a.sums != nullptr)
      read_block<double>(static_cast<const T*>(a.dy), a.groups, group, p, count, zero.data(), 1.0, dy.data());
    for (std::int64_t c = 0; c < w; ++c) {
      for (std::int64_t j = a.sums != nullptr ? 0 : c; j < w; j += 4)
        add_products(left + c * block_positions, x.data() + j * block_positions, min_of(4, w - j), out + c * w + j);
      if (a.sums != nullptr) out[w * w + c] += sum_of_row(left + c * block_positions);
    }
  }
}

void channel_products_target(const ChannelProductsArgs& a, Queue& queue) {
  const ProductGrid grid(a.groups);
  const std::int64_t w = a.groups.width, size = w * (w + 1), positions = a.groups.positions();
  std::vector<double> sums(static_cast<std::size_t>(a.groups.groups() * grid.parts * size));  // (groups, parts, size)
  visit(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    for_items(queue, a.groups.groups() * grid.parts, 1, [&](std::int64_t unit) {
      const std::int64_t from = unit % grid.parts * grid.part;
      part_products<T>(a, unit / grid.parts, from, min_of(positions, from + grid.part), sums.data() + unit * size);
    });
  });
  for_items(queue, a.groups.groups(), max_of(1, task_values / (grid.parts * size)), [&](std::int64_t group) {
    double* all = sums.data() + group * grid.parts * size;
    for (std::int64_t part = 1; part < grid.parts; ++part)
      for (std::int64_t i = 0; i < size; ++i) all[i] += all[part * size + i];
    for (std::int64_t c = 0; c < w; ++c) {
      for (std::int64_t j = 0; j < w; ++j)
        a.products[(group * w + c) * w + j] = a.sums != nullptr || j >= c ? all[c * w + j] : all[j * w + c];
      if (a.sums != nullptr) a.sums[group * w + c] = all[w * w + c];
    }
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(channel_products_target);
void channel_products(const ChannelProductsArgs& args, Queue& queue) {
  HWY_DYNAMIC_DISPATCH(channel_products_target)(args, queue);
}
}  // namespace allnorm::cpu
#endif
