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
#include "kernels/cpu/short_sums-inl.hpp"
#include "kernels/cpu/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// What the gate's level takes of dy: what g leaves.
template <class D>
HWY_INLINE Vec<D> level_gradient_of(D d, Vec<D> dy, Vec<D> g) {
  return hn::IfThenElse(hn::Ne(dy, g), hn::Sub(dy, g), hn::Zero(d));
}

/// Where sums are short. With gamma along they are not: rows_grad.cpp has those of columns too, in the same order, and
/// short ones of both took as long in f32 and a third longer for rows of 64.
template <class T, bool along>
constexpr bool are_short = has_short_sums<T> && !along;
/// What sums are taken in: doubles, or floats as long as they are short.
template <class T, bool is_short>
using TermTag = std::conditional_t<is_short, WideTag<T>, SumTag<T>>;
template <bool is_short, class V>
HWY_INLINE auto term_of(V value) {
  if constexpr (is_short)
    return value;
  else
    return to_double(value);
}
/// weight * g.
template <bool along, class D, class V, class Own>
HWY_INLINE V weighted(D d, V g, const Own& own, std::int64_t j, std::int64_t n) {
  if constexpr (along)
    return hn::Mul(g, to_double(read_some(d, own.weight + j, n)));
  else
    return g;
}

/// Sums about the rounded center, about the exact one.
template <bool has_level, class C>
GradSums about_exact(const Terms<double, has_level>& sums, const Affine<C>& a, double exact_center) {
  GradSums about{sums.first, sums.second + (static_cast<double>(a.center) - exact_center) * sums.first};
  if constexpr (has_level) about.level = sums.third;
  return about;
}

/// One block of one group. The gate is apply's, in the compute type; distances are from the exact center, in short sums
/// from the rounded one, a.center.
template <class T, GateKind kind, bool along, bool is_short>
HWY_INLINE GradSums block_sums_of(const GradInput<T> in, const AlongValues<compute_t<T>>& values, GroupWalk& walk,
                                  const RunGrid::Block& block, std::int64_t stride, double exact_center,
                                  const Affine<compute_t<T>>& a, compute_t<T> a_level) {
  using D = TermTag<T, is_short>;
  constexpr bool has_level = kind == GateKind::level;
  const D d;
  const std::int64_t n = lanes(d);
  const auto center = hn::Set(d, a.center), power = hn::Set(d, a.power);
  const auto scale = hn::Set(d, a.scale), shift = hn::Set(d, a.shift), level = hn::Set(d, a_level);
  const auto origin = [&]() HWY_ATTR {
    if constexpr (is_short)
      return center;
    else
      return hn::Set(DoubleTag(), exact_center);
  }();
  typename AlongValues<compute_t<T>>::Room room;
  const auto add = [&](auto& terms, Vec<D> x, Vec<D> dy, std::int64_t first, const auto& own, std::int64_t i,
                       std::int64_t some) HWY_ATTR {
    const auto gradient =
        gradient_of<kind, along>(d, dy, centred_of(x, center, power), scale, shift, level, in, first + i, own, i, some);
    auto g = weighted<along>(d, term_of<is_short>(gradient), own, i, some);
    auto distance = hn::Sub(term_of<is_short>(x), origin);
    using Sum = hn::DFromV<decltype(g)>;
    if (some < n) g = first_n(Sum(), g, some), distance = first_n(Sum(), distance, some);
    terms.first = hn::Add(terms.first, g), terms.second = hn::MulAdd(g, distance, terms.second);
    if constexpr (has_level) {
      auto rest = term_of<is_short>(level_gradient_of(d, dy, gradient));
      if (some < n) rest = first_n(Sum(), rest, some);
      terms.third = hn::Add(terms.third, rest);
    }
  };
  auto even = no_terms<has_level>(DoubleTag()), odd = even;
  ShortSums<WideTag<T>, has_level> short_sums;
  for (std::int64_t run = 0; run < block.runs; ++run) {
    for (std::int64_t done = 0, length = 0; done < block.length; done += length) {
      const std::int64_t first = block.offset + run * stride + done;
      length = along ? min_of(tile_columns, block.length - done) : block.length;
      typename AlongValues<compute_t<T>>::Stretch own;
      if constexpr (along) own = values.at(walk, first, length, room);
      const T *const x = in.x + first, *const dy = in.dy + first;
      const auto add_whole = [&](std::int64_t i, auto& terms)
                                 HWY_ATTR { add(terms, read(d, x + i), read(d, dy + i), first, own, i, n); };
      const auto add_first = [&](std::int64_t i, std::int64_t rest, auto& terms) HWY_ATTR {
        add(terms, read_n(d, x + i, rest), read_n(d, dy + i, rest), first, own, i, rest);
      };
      if constexpr (is_short) {
        short_sums.add(length, add_whole, add_first);
      } else {
        std::int64_t i = 0;
        for (; i + 2 * n <= length; i += 2 * n) add_whole(i, even), add_whole(i + n, odd);
        for (; i + n <= length; i += n) add_whole(i, even);
        if (i < length) add_first(i, length - i, odd);
      }
    }
  }
  if constexpr (is_short) {
    return about_exact(short_sums.totals(), a, exact_center);
  } else {
    GradSums sums{sum_of_lanes(hn::Add(even.first, odd.first)), sum_of_lanes(hn::Add(even.second, odd.second))};
    if constexpr (has_level) sums.level = sum_of_lanes(hn::Add(even.third, odd.third));
    return sums;
  }
}
/// In short sums where they are enough.
template <class T, GateKind kind, bool along>
HWY_INLINE GradSums block_sums(const GradInput<T> in, const AlongValues<compute_t<T>>& values, GroupWalk& walk,
                               const RunGrid::Block& block, std::int64_t stride, double center,
                               const Affine<compute_t<T>>& a, compute_t<T> level) {
  if constexpr (are_short<T, along>) {
    const auto sums = block_sums_of<T, kind, along, true>(in, values, walk, block, stride, center, a, level);
    if (is_enough(sums.g, sums.gx, sums.level)) return sums;
  }
  return block_sums_of<T, kind, along, false>(in, values, walk, block, stride, center, a, level);
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
template <class T, GateKind kind, bool along, bool is_short>
void tile_sums_of(const MomentsGradArgs& args, const GradInput<T> in, const AlongValues<compute_t<T>>& values,
                  const ColumnGrid& grid, const ColumnGrid::Unit& unit, const SumsOf<sums_of<kind>>& sums) {
  using C = compute_t<T>;
  using Values = AlongValues<C>;
  using D = TermTag<T, is_short>;
  constexpr bool has_level = kind == GateKind::level;
  const D d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  alignas(64) C center[tile_columns], power[tile_columns], scale[tile_columns], shift[tile_columns];
  alignas(64) double exact[tile_columns], acc_g[tile_columns], acc_gx[tile_columns];
  alignas(64) C level[has_level ? tile_columns : 1];
  alignas(64) double acc_level[has_level ? tile_columns : 1];
  for (std::int64_t j = 0; j < ceil_div(unit.columns, n) * n; ++j) {  // as far as vectors read
    const std::int64_t group = grid.group(unit.matrix, unit.column + min_of(j, unit.columns - 1));
    const auto a = gate_affine<kind, C>(args.center[group], args.gate, group);
    center[j] = a.center, power[j] = a.power, scale[j] = a.scale, shift[j] = a.shift;
    exact[j] = args.center[group], acc_g[j] = acc_gx[j] = 0.0;
    if constexpr (has_level) level[j] = gate_level<kind, C>(args.gate, group), acc_level[j] = 0.0;
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
      auto at_level = hn::Zero(d);
      if constexpr (has_level) at_level = hn::Load(d, level + j);
      const auto origin = [&]() HWY_ATTR {
        if constexpr (is_short)
          return c;
        else
          return hn::Load(dd, exact + j);
      }();
      const auto zero = hn::Zero(hn::DFromV<decltype(origin)>());
      auto s = zero, p = zero, rest = zero;
      if constexpr (!is_short) s = hn::Load(dd, acc_g + j), p = hn::Load(dd, acc_gx + j);
      if constexpr (!is_short && has_level) rest = hn::Load(dd, acc_level + j);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t i = first + r * grid.width + j;
        const auto x = read_some(d, in.x + i, some), dy = read_some(d, in.dy + i, some);
        const auto gradient =
            gradient_of<kind, along>(d, dy, centred_of(x, c, k), a, b, at_level, in, i, own[r], j, min_of(n, some));
        const auto g = weighted<along>(d, term_of<is_short>(gradient), own[r], j, some);
        s = hn::Add(s, g), p = hn::MulAdd(g, hn::Sub(term_of<is_short>(x), origin), p);
        if constexpr (has_level) rest = hn::Add(rest, term_of<is_short>(level_gradient_of(d, dy, gradient)));
      }
      if constexpr (is_short) {
        add_wide(d, s, acc_g + j), add_wide(d, p, acc_gx + j);
        if constexpr (has_level) add_wide(d, rest, acc_level + j);
      } else {
        hn::Store(s, dd, acc_g + j), hn::Store(p, dd, acc_gx + j);
        if constexpr (has_level) hn::Store(rest, dd, acc_level + j);
      }
    }
  }
  for (std::int64_t j = 0; j < unit.columns; ++j) {
    sums[0][j] = acc_g[j], sums[1][j] = acc_gx[j];
    if constexpr (is_short) sums[1][j] += (static_cast<double>(center[j]) - exact[j]) * acc_g[j];
    if constexpr (has_level) sums[2][j] = acc_level[j];
  }
}

/// In short sums where they are enough; other columns with those that are in a vector of doubles with them.
template <class T, GateKind kind, bool along>
void tile_sums(const MomentsGradArgs& args, const GradInput<T> in, const AlongValues<compute_t<T>>& values,
               const ColumnGrid& grid, const ColumnGrid::Unit& unit, const SumsOf<sums_of<kind>>& sums) {
  tile_sums_of<T, kind, along, are_short<T, along>>(args, in, values, grid, unit, sums);
  if constexpr (are_short<T, along>) {
    const std::int64_t n = lanes(DoubleTag());
    for (std::int64_t j = 0, enough = 0; j < unit.columns; j += n, enough = 0) {
      const std::int64_t some = min_of(n, unit.columns - j);
      for (std::int64_t i = j; i < j + some; ++i)
        enough += is_enough(sums[0][i], sums[1][i], kind == GateKind::level ? sums[sums_of<kind> - 1][i] : 0);
      if (enough == some) continue;
      auto part = unit;
      part.column += j, part.columns = some;
      auto to = sums;
      for (double*& sum : to) sum += j;
      tile_sums_of<T, kind, along, false>(args, in, values, grid, part, to);
    }
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
