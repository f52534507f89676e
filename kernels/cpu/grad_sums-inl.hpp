// What the backward reductions share: what they read, g, and sums column by column. Compiled once per Highway target.
#if defined(ALLNORM_KERNELS_CPU_GRAD_SUMS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ALLNORM_KERNELS_CPU_GRAD_SUMS_INL
#undef ALLNORM_KERNELS_CPU_GRAD_SUMS_INL
#else
#define ALLNORM_KERNELS_CPU_GRAD_SUMS_INL
#endif

#include <array>

#include "kernels/cpu/gate-inl.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/vectors-inl.hpp"

#ifndef ALLNORM_KERNELS_CPU_GRAD_SUMS_ONCE
#define ALLNORM_KERNELS_CPU_GRAD_SUMS_ONCE
namespace allnorm::cpu {

struct GradSums {
  double g = 0.0, gx = 0.0, level = 0.0;  // level: where a gate has one
  void add(const GradSums& other) noexcept { g += other.g, gx += other.gx, level += other.level; }
};
constexpr std::int64_t rows_per_pass = 8;  // of column sums, so that loads and stores of the sums are few

}  // namespace allnorm::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// What every traversal reads. Its loops copy it: the members of a copy stay in registers, where a vector that is
/// stored might be anything in memory.
template <class T>
struct GradInput {
  const T* x;
  const T* dy;
  Below<compute_t<T>> low;
  MaskBits mask;

  template <class Args>
  GradInput(const Args& args, const Partition& partition)
      : x(static_cast<const T*>(args.x)),
        dy(static_cast<const T*>(args.dy)),
        low(below<compute_t<T>>(args.gate.activation)),
        mask{args.gate.mask, ceil_div(partition.elements(), 8)} {}
};

/// g of `n` values from memory offset i on, in the compute type; with `along` their gamma and beta are those at `j` of
/// `own`.
template <GateKind kind, bool along, class D, class In, class Own>
HWY_INLINE Vec<D> gradient_of(D d, Vec<D> dy, Vec<D> centred, Vec<D> scale, Vec<D> shift, Vec<D> level, const In& in,
                              std::int64_t i, const Own& own, std::int64_t j, std::int64_t n) {
  const auto z = [&]() HWY_ATTR {
    const auto folded = affine_of(centred, scale, shift);
    if constexpr (along)
      return affine_of(folded, read_some(d, own.weight + j, n), read_some(d, own.bias + j, n));
    else
      return folded;
  };
  return gated<kind>(d, dy, z, in.low, in.mask, i, n, level);
}

/// `count` sums for every group: sum_tile(unit, sums) sums the columns of a unit, and those of a group are joined.
template <std::size_t count>
using SumsOf = std::array<double*, count>;
template <std::size_t count, class Tile>
void sum_columns(const ColumnGrid& grid, const SumsOf<count>& to, Queue& queue, const Tile& sum_tile) {
  const auto from = [](SumsOf<count> sums, std::int64_t first, std::int64_t apart) {
    for (std::size_t k = 0; k < count; ++k) sums[k] += first + static_cast<std::int64_t>(k) * apart;
    return sums;
  };
  if (grid.parts == 1 && grid.group_width == 1) {  // every unit holds all of its columns: no scratch
    for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
      const auto unit = grid.unit(u);
      const std::int64_t group = grid.group(unit.matrix, unit.column);
      sum_tile(unit, from(to, group, 0));
    });
    return;
  }
  const auto tile = static_cast<std::size_t>(grid.tile);
  const auto room = static_cast<std::size_t>(grid.units()) * count * tile;
  Buffer<double> sums(room, queue, Fill::none);  // (units, count, tile)
  for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
    SumsOf<count> out;
    out.fill(sums.data() + static_cast<std::size_t>(u) * count * tile);
    sum_tile(grid.unit(u), from(out, 0, grid.tile));
  });
  const std::int64_t groups_per_matrix = grid.width / grid.group_width;
  for_items(queue, grid.matrices * groups_per_matrix, max_of(1, task_values / (grid.group_width * grid.parts)),
            [&](std::int64_t group) {
              const std::int64_t matrix = group / groups_per_matrix,
                                 column = group % groups_per_matrix * grid.group_width;
              std::array<double, count> total{};
              for (std::int64_t j = column; j < column + grid.group_width; ++j)
                for (std::int64_t part = 0; part < grid.parts; ++part) {
                  const std::int64_t u = (matrix * grid.parts + part) * grid.tiles + j / grid.tile;
                  const double* sum = sums.data() + static_cast<std::size_t>(u) * count * tile + j % grid.tile;
                  for (std::size_t k = 0; k < count; ++k) total[k] += sum[k * tile];
                }
              for (std::size_t k = 0; k < count; ++k) to[k][group] = total[k];
            });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
