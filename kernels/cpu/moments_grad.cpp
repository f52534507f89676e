// The backward reductions: sum of g and of g * (x - center) per group, g being dy behind the activation's gate.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moments_grad.cpp"
#include <hwy/foreach_target.h>

#include <vector>

#include "kernels/cpu/gate-inl.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/vectors-inl.hpp"

#ifndef ALLNORM_KERNELS_CPU_MOMENTS_GRAD_ONCE
#define ALLNORM_KERNELS_CPU_MOMENTS_GRAD_ONCE
namespace allnorm::cpu {

struct GradSums {
  double g = 0.0, gx = 0.0;
  void add(const GradSums& other) noexcept { g += other.g, gx += other.gx; }
};

}  // namespace allnorm::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// What both traversals read.
template <class T>
struct GradInput {
  const T* x;
  const T* dy;
  Below<SumTag<T>> low;
  MaskBits mask;

  explicit GradInput(const MomentsGradArgs& args)
      : x(static_cast<const T*>(args.x)),
        dy(static_cast<const T*>(args.dy)),
        low(below(SumTag<T>(), args.gate.activation)),
        mask{args.gate.mask, ceil_div(args.partition.elements(), 8)} {}
};

/// One block of one group. The gate is apply's, in the compute type; differences, products and sums are in double.
template <class T, GateKind kind>
GradSums block_sums(const GradInput<T>& in, const RunGrid::Block& block, std::int64_t stride, double exact_center,
                    const Affine<compute_t<T>>& a) {
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  const auto center = hn::Set(d, a.center), power = hn::Set(d, a.power);
  const auto scale = hn::Set(d, a.scale), shift = hn::Set(d, a.shift);
  const auto exact = hn::Set(dd, exact_center);
  auto s0 = hn::Zero(dd), s1 = s0, p0 = s0, p1 = s0;
  const auto add = [&](std::int64_t i, auto& s, auto& p) HWY_ATTR {
    const auto x = read(d, in.x + i);
    const auto centred = centred_of(x, center, power);
    const auto g = to_double(gated<kind>(d, read(d, in.dy + i), centred, scale, shift, in.low, in.mask, i, n));
    s = hn::Add(s, g), p = hn::MulAdd(g, hn::Sub(to_double(x), exact), p);
  };
  for (std::int64_t run = 0; run < block.runs; ++run) {
    std::int64_t i = block.offset + run * stride;
    const std::int64_t end = i + block.length;
    for (; i + 2 * n <= end; i += 2 * n) add(i, s0, p0), add(i + n, s1, p1);
    for (; i + n <= end; i += n) add(i, s0, p0);
    if (const std::int64_t rest = end - i; rest > 0) {
      const auto x = read_n(d, in.x + i, rest), dy = read_n(d, in.dy + i, rest);
      const auto g = gated<kind>(d, dy, centred_of(x, center, power), scale, shift, in.low, in.mask, i, rest);
      const auto gd = to_double(first_n(d, g, rest));
      s1 = hn::Add(s1, gd), p1 = hn::MulAdd(gd, first_n(dd, hn::Sub(to_double(x), exact), rest), p1);
    }
  }
  return {sum_of_lanes(hn::Add(s0, s1)), sum_of_lanes(hn::Add(p0, p1))};
}

template <class T, GateKind kind>
void sums_by_runs(const MomentsGradArgs& args, const RunGrid& grid, Queue& queue) {
  using C = compute_t<T>;
  const GradInput<T> in(args);
  const auto part = [&](std::int64_t group, std::int64_t part_index) {
    const auto a = gate_affine<kind, C>(args.center[group], args.gate, group);
    const std::int64_t end = min_of(grid.blocks, (part_index + 1) * grid.blocks_per_part);
    GradSums total;
    for (std::int64_t b = part_index * grid.blocks_per_part; b < end; ++b)
      total.add(block_sums<T, kind>(in, grid.block(group, b), grid.stride(), args.center[group], a));
    return total;
  };
  const auto finish = [&](std::int64_t group, const GradSums& total) {
    args.sum_g[group] = total.g, args.sum_gx[group] = total.gx;
  };
  if (grid.parts == 1) {
    for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t group) { finish(group, part(group, 0)); });
    return;
  }
  std::vector<GradSums> sums(static_cast<std::size_t>(grid.units()));  // (groups, parts)
  for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t unit) {
    sums[static_cast<std::size_t>(unit)] = part(unit / grid.parts, unit % grid.parts);
  });
  for (std::int64_t group = 0; group < grid.p.groups(); ++group) {
    GradSums total;
    for (std::int64_t i = 0; i < grid.parts; ++i) total.add(sums[static_cast<std::size_t>(group * grid.parts + i)]);
    finish(group, total);
  }
}

/// One unit: sum_g and sum_gx (grid.tile).
template <class T, GateKind kind>
void tile_sums(const MomentsGradArgs& args, const GradInput<T>& in, const ColumnGrid& grid,
               const ColumnGrid::Unit& unit, double* sum_g, double* sum_gx) {
  using C = compute_t<T>;
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  alignas(64) C center[tile_columns], power[tile_columns], scale[tile_columns], shift[tile_columns];
  alignas(64) double exact[tile_columns], acc_g[tile_columns], acc_gx[tile_columns];
  for (std::int64_t j = 0; j < grid.tile; ++j) {
    const std::int64_t group = grid.group(unit.matrix, unit.column + min_of(j, unit.columns - 1));
    const auto a = gate_affine<kind, C>(args.center[group], args.gate, group);
    center[j] = a.center, power[j] = a.power, scale[j] = a.scale, shift[j] = a.shift;
    exact[j] = args.center[group], acc_g[j] = acc_gx[j] = 0.0;
  }
  constexpr std::int64_t step = 8;  // rows per pass, so that loads and stores of the sums are few
  for (std::int64_t row = 0; row < unit.rows; row += step) {
    const std::int64_t count = min_of(step, unit.rows - row);
    const std::int64_t first = (unit.matrix * grid.rows + unit.row + row) * grid.width + unit.column;
    for (std::int64_t j = 0; j < unit.columns; j += n) {
      const std::int64_t some = unit.columns - j;
      const auto c = hn::Load(d, center + j), k = hn::Load(d, power + j);
      const auto a = hn::Load(d, scale + j), b = hn::Load(d, shift + j);
      const auto e = hn::Load(dd, exact + j);
      auto s = hn::Load(dd, acc_g + j), p = hn::Load(dd, acc_gx + j);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t i = first + r * grid.width + j;
        const auto x = read_some(d, in.x + i, some), dy = read_some(d, in.dy + i, some);
        const auto g = to_double(gated<kind>(d, dy, centred_of(x, c, k), a, b, in.low, in.mask, i, min_of(n, some)));
        s = hn::Add(s, g), p = hn::MulAdd(g, hn::Sub(to_double(x), e), p);
      }
      hn::Store(s, dd, acc_g + j), hn::Store(p, dd, acc_gx + j);
    }
  }
  for (std::int64_t j = 0; j < unit.columns; ++j) sum_g[j] = acc_g[j], sum_gx[j] = acc_gx[j];
}

template <class T, GateKind kind>
void sums_by_columns(const MomentsGradArgs& args, const ColumnGrid& grid, Queue& queue) {
  const GradInput<T> in(args);
  if (grid.parts == 1 && grid.group_width == 1) {  // every unit holds all of its columns: no scratch
    for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
      const auto unit = grid.unit(u);
      const std::int64_t group = grid.group(unit.matrix, unit.column);
      tile_sums<T, kind>(args, in, grid, unit, args.sum_g + group, args.sum_gx + group);
    });
    return;
  }
  const auto tile = static_cast<std::size_t>(grid.tile);
  std::vector<double> sums(static_cast<std::size_t>(grid.units()) * 2 * tile);  // (units, g and gx, tile)
  for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
    double* out = sums.data() + static_cast<std::size_t>(u) * 2 * tile;
    tile_sums<T, kind>(args, in, grid, grid.unit(u), out, out + tile);
  });
  const std::int64_t groups_per_matrix = grid.width / grid.group_width;
  for_items(queue, grid.matrices * groups_per_matrix, max_of(1, task_values / (grid.group_width * grid.parts)),
            [&](std::int64_t group) {
              const std::int64_t matrix = group / groups_per_matrix,
                                 column = group % groups_per_matrix * grid.group_width;
              GradSums total;
              for (std::int64_t j = column; j < column + grid.group_width; ++j)
                for (std::int64_t part = 0; part < grid.parts; ++part) {
                  const std::int64_t u = (matrix * grid.parts + part) * grid.tiles + j / grid.tile;
                  const double* sum = sums.data() + static_cast<std::size_t>(u) * 2 * tile + j % grid.tile;
                  total.add({sum[0], sum[grid.tile]});
                }
              args.sum_g[group] = total.g, args.sum_gx[group] = total.gx;
            });
}

void moments_grad_target(const MomentsGradArgs& args, Queue& queue) {
  const Partition p = canonical(args.partition);
  if (p.elements() == 0) {
    for (std::int64_t i = 0; i < args.partition.groups(); ++i) args.sum_g[i] = args.sum_gx[i] = 0.0;
    return;
  }
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    visit_gate(kind_of(args.gate), [&](auto kind) {
      if (by_columns(p))
        sums_by_columns<T, kind()>(args, ColumnGrid(p), queue);
      else
        sums_by_runs<T, kind()>(args, RunGrid(p), queue);
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
