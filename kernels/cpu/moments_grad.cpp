// The backward reductions: sum of weight * g and of weight * g * (x - center) per group, g being dy behind the
// activation's gate; and of what the level of a gate takes of dy.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moments_grad.cpp"
#include <hwy/foreach_target.h>

#include <algorithm>

#include "kernels/cpu/grad_sums-inl.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// One block of one group. The gate is apply's, in the compute type; differences, products and sums are in double.
template <class T, GateKind kind, bool along>
HWY_INLINE GradSums block_sums(const GradInput<T> in, const AlongValues<compute_t<T>>& values, GroupWalk& walk,
                               const RunGrid::Block& block, std::int64_t stride, double exact_center,
                               const Affine<compute_t<T>>& a, compute_t<T> a_level) {
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  const auto center = hn::Set(d, a.center), power = hn::Set(d, a.power);
  const auto scale = hn::Set(d, a.scale), shift = hn::Set(d, a.shift), level = hn::Set(d, a_level);
  const auto exact = hn::Set(dd, exact_center);
  auto s0 = hn::Zero(dd), s1 = s0, p0 = s0, p1 = s0, to_level = s0;
  typename AlongValues<compute_t<T>>::Room room;
  const auto add = [&](auto x, auto dy, std::int64_t at, const auto& own, std::int64_t i, std::int64_t some, auto& s,
                       auto& p) HWY_ATTR {
    const auto gradient =
        gradient_of<kind, along>(d, dy, centred_of(x, center, power), scale, shift, level, in, at + i, own, i, some);
    if constexpr (kind == GateKind::level) {
      auto rest = level_gradient_of(d, dy, gradient);
      if (some < n) rest = first_n(dd, rest, some);
      to_level = hn::Add(to_level, rest);
    }
    auto g = weighted<along>(d, to_double(gradient), own, i, some);
    auto centred = hn::Sub(to_double(x), exact);
    if (some < n) g = first_n(dd, g, some), centred = first_n(dd, centred, some);
    s = hn::Add(s, g), p = hn::MulAdd(g, centred, p);
  };
  for (std::int64_t run = 0; run < block.runs; ++run) {
    for (std::int64_t done = 0, length = 0; done < block.length; done += length) {
      const std::int64_t first = block.offset + run * stride + done;
      length = along ? min_of(tile_columns, block.length - done) : block.length;
      typename AlongValues<compute_t<T>>::Stretch own;
      if constexpr (along) own = values.at(walk, first, length, room);
      const T *const x = in.x + first, *const dy = in.dy + first;
      std::int64_t i = 0;
      for (; i + 2 * n <= length; i += 2 * n) {
        add(read(d, x + i), read(d, dy + i), first, own, i, n, s0, p0);
        add(read(d, x + i + n), read(d, dy + i + n), first, own, i + n, n, s1, p1);
      }
      for (; i + n <= length; i += n) add(read(d, x + i), read(d, dy + i), first, own, i, n, s0, p0);
      if (i < length)
        add(read_n(d, x + i, length - i), read_n(d, dy + i, length - i), first, own, i, length - i, s1, p1);
    }
  }
  return {sum_of_lanes(hn::Add(s0, s1)), sum_of_lanes(hn::Add(p0, p1)),
          kind == GateKind::level ? sum_of_lanes(to_level) : 0.0};
}

template <class T, GateKind kind, bool along>
void sums_by_runs(const MomentsGradArgs& args, const RunGrid& grid, Queue& queue) {
  using C = compute_t<T>;
  const GradInput<T> in(args, args.partition);
  const AlongValues<C> values(args.along);
  const auto part = [&args, &values, in, grid](GroupWalk& walk, std::int64_t group, std::int64_t part_index) HWY_ATTR {
    const auto a = gate_affine<kind, C>(args.center[group], args.gate, group);
    const auto level = gate_level<kind, C>(args.gate, group);
    const std::int64_t end = min_of(grid.blocks, (part_index + 1) * grid.blocks_per_part);
    GradSums total;
    for (std::int64_t b = part_index * grid.blocks_per_part; b < end; ++b)
      total.add(block_sums<T, kind, along>(in, values, walk, grid.block(group, b), grid.stride(), args.center[group], a,
                                           level));
    return total;
  };
  const auto finish = [&](std::int64_t group, const GradSums& total) {
    args.sum_g[group] = total.g, args.sum_gx[group] = total.gx;
    if constexpr (kind == GateKind::level) args.sum_level[group] = total.level;
  };
  if (!along && grid.is_of_runs()) {
    const double* const centers = args.center;
    const Gate gate = args.gate;
    double *const gs = args.sum_g, *const gxs = args.sum_gx, *const levels = args.sum_level;
    for_items(queue, grid.units(), grid.units_per_task(), values.walk(),
              [=, &values](GroupWalk& walk, std::int64_t group) HWY_ATTR {
                const auto a = gate_affine<kind, C>(centers[group], gate, group);
                const auto sums = block_sums<T, kind, along>(in, values, walk, grid.run(group), 0, centers[group], a,
                                                             gate_level<kind, C>(gate, group));
                gs[group] = sums.g, gxs[group] = sums.gx;
                if constexpr (kind == GateKind::level) levels[group] = sums.level;
              });
    return;
  }
  if (grid.parts == 1) {
    for_items(queue, grid.units(), grid.units_per_task(), values.walk(),
              [&](GroupWalk& walk, std::int64_t group) HWY_ATTR { finish(group, part(walk, group, 0)); });
    return;
  }
  Buffer<GradSums> sums(static_cast<std::size_t>(grid.units()), queue, Fill::none);  // (groups, parts)
  for_items(queue, grid.units(), grid.units_per_task(), values.walk(), [&](GroupWalk& walk, std::int64_t unit) {
    sums[static_cast<std::size_t>(unit)] = part(walk, unit / grid.parts, unit % grid.parts);
  });
  for (std::int64_t group = 0; group < grid.p.groups(); ++group) {
    GradSums total;
    for (std::int64_t i = 0; i < grid.parts; ++i) total.add(sums[static_cast<std::size_t>(group * grid.parts + i)]);
    finish(group, total);
  }
}

/// One unit: sum_g, sum_gx and with a level sum_level (grid.tile).
template <GateKind kind>
constexpr std::size_t sums_of = kind == GateKind::level ? 3 : 2;
template <class T, GateKind kind, bool along>
void tile_sums(const MomentsGradArgs& args, const GradInput<T> in, const AlongValues<compute_t<T>>& values,
               const ColumnGrid& grid, const ColumnGrid::Unit& unit, const SumsOf<sums_of<kind>>& sums) {
  using C = compute_t<T>;
  using Values = AlongValues<C>;
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  alignas(64) C center[tile_columns], power[tile_columns], scale[tile_columns], shift[tile_columns];
  alignas(64) double exact[tile_columns], acc_g[tile_columns], acc_gx[tile_columns];
  constexpr std::int64_t level_columns = kind == GateKind::level ? tile_columns : 1;
  alignas(64) C level[level_columns];
  alignas(64) double acc_level[level_columns];
  for (std::int64_t j = 0; j < grid.tile; ++j) {
    const std::int64_t group = grid.group(unit.matrix, unit.column + min_of(j, unit.columns - 1));
    const auto a = gate_affine<kind, C>(args.center[group], args.gate, group);
    center[j] = a.center, power[j] = a.power, scale[j] = a.scale, shift[j] = a.shift;
    exact[j] = args.center[group], acc_g[j] = acc_gx[j] = 0.0;
    if constexpr (kind == GateKind::level) level[j] = gate_level<kind, C>(args.gate, group), acc_level[j] = 0.0;
  }
  auto walk = values.walk();
  typename Values::Room rooms[along ? rows_per_pass : 1];
  typename Values::Stretch own[rows_per_pass];
  for (std::int64_t row = 0; row < unit.rows; row += rows_per_pass) {
    const std::int64_t count = min_of(rows_per_pass, unit.rows - row);
    const std::int64_t first = (unit.matrix * grid.rows + unit.row + row) * grid.width + unit.column;
    if constexpr (along)
      for (std::int64_t r = 0; r < count; ++r) own[r] = values.at(walk, first + r * grid.width, unit.columns, rooms[r]);
    for (std::int64_t j = 0; j < unit.columns; j += n) {
      const std::int64_t some = unit.columns - j;
      const auto c = hn::Load(d, center + j), k = hn::Load(d, power + j);
      const auto a = hn::Load(d, scale + j), b = hn::Load(d, shift + j);
      const auto e = hn::Load(dd, exact + j);
      auto s = hn::Load(dd, acc_g + j), p = hn::Load(dd, acc_gx + j), rest = hn::Zero(dd);
      auto at_level = hn::Zero(d);
      if constexpr (kind == GateKind::level) at_level = hn::Load(d, level + j), rest = hn::Load(dd, acc_level + j);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t i = first + r * grid.width + j;
        const auto x = read_some(d, in.x + i, some), dy = read_some(d, in.dy + i, some);
        const auto gradient =
            gradient_of<kind, along>(d, dy, centred_of(x, c, k), a, b, at_level, in, i, own[r], j, min_of(n, some));
        const auto g = weighted<along>(d, to_double(gradient), own[r], j, some);
        if constexpr (kind == GateKind::level) rest = hn::Add(rest, level_gradient_of(d, dy, gradient));
        s = hn::Add(s, g), p = hn::MulAdd(g, hn::Sub(to_double(x), e), p);
      }
      hn::Store(s, dd, acc_g + j), hn::Store(p, dd, acc_gx + j);
      if constexpr (kind == GateKind::level) hn::Store(rest, dd, acc_level + j);
    }
  }
  for (std::int64_t j = 0; j < unit.columns; ++j) {
    sums[0][j] = acc_g[j], sums[1][j] = acc_gx[j];
    if constexpr (kind == GateKind::level) sums[2][j] = acc_level[j];
  }
}

template <class T, GateKind kind, bool along>
void moments_grad_of(const MomentsGradArgs& args, const Partition& p, Queue& queue) {
  if (!by_columns(p)) return sums_by_runs<T, kind, along>(args, RunGrid(p), queue);
  const GradInput<T> in(args, p);
  const AlongValues<compute_t<T>> values(args.along);
  const ColumnGrid grid(p);
  using Sums = SumsOf<sums_of<kind>>;
  Sums to{args.sum_g, args.sum_gx};
  if constexpr (kind == GateKind::level) to[2] = args.sum_level;
  sum_columns(grid, to, queue, [&](const ColumnGrid::Unit& unit, const Sums& sums) {
    tile_sums<T, kind, along>(args, in, values, grid, unit, sums);
  });
}

void moments_grad_target(const MomentsGradArgs& args, Queue& queue) {
  const Partition p = canonical(args.partition);
  if (p.elements() == 0) {
    for (double* sums : {args.sum_g, args.sum_gx, args.gate.floor.given() ? args.sum_level : nullptr})
      if (sums != nullptr) std::fill_n(sums, args.partition.groups(), 0.0);
    return;
  }
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    visit_gate(kind_of(args.gate), [&](auto kind) {
      if constexpr (kind() != GateKind::level)  // with which gamma is folded
        if (args.along.given) return moments_grad_of<T, kind(), true>(args, p, queue);
      moments_grad_of<T, kind(), false>(args, p, queue);
    });
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(moments_grad_target);
void moments_grad(const MomentsGradArgs& args, Queue& queue) { HWY_DYNAMIC_DISPATCH(moments_grad_target)(args, queue); }
}  // namespace allnorm::cpu
#endif
