// Mean and centred sum of squares of every group.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moments.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/short_sums-inl.hpp"
#include "kernels/cpu/vectors-inl.hpp"

#ifndef ALLNORM_KERNELS_CPU_MOMENTS_ONCE
#define ALLNORM_KERNELS_CPU_MOMENTS_ONCE
namespace allnorm::cpu {

/// Shifted sums of n values of one group: sum of (x - pivot), and the sum of squares about their own mean. The pivot is
/// the first value of the group, so whole numbers have exact sums and a constant group has none.
struct Shifted {
  double n = 0.0, sum = 0.0, m2 = 0.0;

  /// Chan's formula, in sums.
  void add(const Shifted& other) noexcept {
    if (other.n == 0.0) return;
    if (n != 0.0) {
      const double delta = other.sum / other.n - sum / n;
      m2 += delta * delta * (n * (other.n / (n + other.n)));
    }
    m2 += other.m2;
    sum += other.sum;
    n += other.n;
  }
  void store(double pivot, double& mean_out, double& m2_out) const noexcept {
    mean_out = pivot + sum / n;
    m2_out = m2;
  }
};

/// From raw sums about a pivot of the block's own, `shift` from the group's. Rounding must not make m2 negative; NaN
/// stays.
inline Shifted shifted(double n, double sum, double squares, double shift) noexcept {
  const double m2 = squares - sum * (sum / n);
  return {n, sum + n * shift, m2 < 0.0 ? 0.0 : m2};
}

}  // namespace allnorm::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// The sums of one block about its first value: of differences, and of their squares.
struct BlockSums {
  double sum, squares;
};

/// In double.
template <class T>
HWY_INLINE BlockSums sums_in_double(const T* x, const RunGrid::Block& block, std::int64_t stride) {
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  const auto k = hn::Set(dd, static_cast<double>(load(x[block.offset])));
  auto s0 = hn::Zero(dd), s1 = s0, s2 = s0, s3 = s0, q0 = s0, q1 = s0, q2 = s0, q3 = s0;
  for (std::int64_t run = 0; run < block.runs; ++run) {
    const T* p = x + block.offset + run * stride;
    std::int64_t i = 0;
    for (; i + 4 * n <= block.length; i += 4 * n) {
      const auto d0 = hn::Sub(to_double(read(d, p + i)), k);
      const auto d1 = hn::Sub(to_double(read(d, p + i + n)), k);
      const auto d2 = hn::Sub(to_double(read(d, p + i + 2 * n)), k);
      const auto d3 = hn::Sub(to_double(read(d, p + i + 3 * n)), k);
      s0 = hn::Add(s0, d0), q0 = hn::MulAdd(d0, d0, q0);
      s1 = hn::Add(s1, d1), q1 = hn::MulAdd(d1, d1, q1);
      s2 = hn::Add(s2, d2), q2 = hn::MulAdd(d2, d2, q2);
      s3 = hn::Add(s3, d3), q3 = hn::MulAdd(d3, d3, q3);
    }
    for (; i + n <= block.length; i += n) {
      const auto d0 = hn::Sub(to_double(read(d, p + i)), k);
      s0 = hn::Add(s0, d0), q0 = hn::MulAdd(d0, d0, q0);
    }
    if (i < block.length) {
      const std::int64_t rest = block.length - i;
      const auto d1 = first_n(dd, hn::Sub(to_double(read_n(d, p + i, rest)), k), rest);
      s1 = hn::Add(s1, d1), q1 = hn::MulAdd(d1, d1, q1);
    }
  }
  return {sum_of_lanes(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))),
          sum_of_lanes(hn::Add(hn::Add(q0, q1), hn::Add(q2, q3)))};
}

/// In short sums.
template <class T>
HWY_INLINE BlockSums sums_in_short(const T* x, const RunGrid::Block& block, std::int64_t stride) {
  using D = WideTag<T>;
  const D d;
  const auto k = hn::Set(d, load(x[block.offset]));
  ShortSums<D> sums;
  const auto add = [](auto& terms, Vec<D> difference) HWY_ATTR {
    terms.first = hn::Add(terms.first, difference);
    terms.second = hn::MulAdd(difference, difference, terms.second);
  };
  for (std::int64_t run = 0; run < block.runs; ++run) {
    const T* p = x + block.offset + run * stride;
    sums.add(
        block.length, [&](std::int64_t i, auto& terms) HWY_ATTR { add(terms, hn::Sub(read(d, p + i), k)); },
        [&](std::int64_t i, std::int64_t rest, auto& terms)
            HWY_ATTR { add(terms, first_n(d, hn::Sub(read_n(d, p + i, rest), k), rest)); });
  }
  const auto totals = sums.totals();
  return {totals.first, totals.second};
}

/// One block about the first value of its group.
template <class T>
HWY_INLINE Shifted block_moments(const T* x, const RunGrid::Block& block, std::int64_t stride, double pivot) {
  const auto n = static_cast<double>(block.values()), shift = static_cast<double>(load(x[block.offset])) - pivot;
  if constexpr (has_short_sums<T>) {
    const auto sums = sums_in_short(x, block, stride);
    if (is_enough(sums.squares, sums.squares - sums.sum * (sums.sum / n)))
      return shifted(n, sums.sum, sums.squares, shift);
  }
  const auto sums = sums_in_double(x, block, stride);
  return shifted(n, sums.sum, sums.squares, shift);
}

template <class T>
void moments_by_runs(const MomentsArgs& args, const RunGrid& grid, Queue& queue) {
  const T* x = static_cast<const T*>(args.x);
  const auto part = [x, grid](std::int64_t group, std::int64_t part_index) HWY_ATTR {  // copies stay in registers
    const double pivot = static_cast<double>(load(x[grid.first_of(group)]));
    const std::int64_t end = min_of(grid.blocks, (part_index + 1) * grid.blocks_per_part);
    Shifted total;
    for (std::int64_t b = part_index * grid.blocks_per_part; b < end; ++b)
      total.add(block_moments(x, grid.block(group, b), grid.stride(), pivot));
    return total;
  };
  const auto finish = [&](std::int64_t group, const Shifted& total) {
    total.store(static_cast<double>(load(x[grid.first_of(group)])), args.mean[group], args.m2[group]);
  };
  if (grid.is_of_runs()) {
    double *const means = args.mean, *const m2s = args.m2;
    for_items(queue, grid.units(), grid.units_per_task(), [=](std::int64_t group) HWY_ATTR {
      const auto run = grid.run(group);
      const double pivot = static_cast<double>(load(x[run.offset]));
      block_moments(x, run, 0, pivot).store(pivot, means[group], m2s[group]);
    });
    return;
  }
  if (grid.parts == 1) {
    for_items(queue, grid.units(), grid.units_per_task(),
              [&](std::int64_t group) HWY_ATTR { finish(group, part(group, 0)); });
    return;
  }
  Buffer<Shifted> sums(static_cast<std::size_t>(grid.units()), queue, Fill::none);  // (groups, parts)
  for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t unit) {
    sums[static_cast<std::size_t>(unit)] = part(unit / grid.parts, unit % grid.parts);
  });
  for (std::int64_t group = 0; group < grid.p.groups(); ++group) {
    Shifted total;
    for (std::int64_t i = 0; i < grid.parts; ++i) total.add(sums[static_cast<std::size_t>(group * grid.parts + i)]);
    finish(group, total);
  }
}

/// Adds rows x[0 .. rows) of `columns` values, `width` apart, to the sums about `pivot` (one row of x).
template <class T>
void add_rows(const T* x, std::int64_t rows, std::int64_t columns, std::int64_t width, const T* pivot, double* sum,
              double* squares) {
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  constexpr std::int64_t step = 8;  // rows per pass, so that loads and stores of the sums are few
  for (std::int64_t r = 0; r < rows; r += step) {
    const std::int64_t count = min_of(step, rows - r);
    for (std::int64_t j = 0; j < columns; j += n) {
      const std::int64_t some = columns - j;
      const auto k = to_double(read_some(d, pivot + j, some));
      auto s = hn::Load(dd, sum + j), q = hn::Load(dd, squares + j);
      const T* p = x + r * width + j;
      const auto add = [&](auto value) HWY_ATTR {
        const auto difference = hn::Sub(to_double(value), k);
        s = hn::Add(s, difference), q = hn::MulAdd(difference, difference, q);
      };
      if (some < n)
        for (std::int64_t i = 0; i < count; ++i) add(read_n(d, p + i * width, some));
      else if (count == step)
        for (std::int64_t i = 0; i < step; ++i) add(read(d, p + i * width));
      else
        for (std::int64_t i = 0; i < count; ++i) add(read(d, p + i * width));
      hn::Store(s, dd, sum + j), hn::Store(q, dd, squares + j);
    }
  }
}

/// The same in short sums.
template <class T>
void add_short_rows(const T* x, std::int64_t rows, std::int64_t columns, std::int64_t width, const T* pivot,
                    double* sum, double* squares) {
  const WideTag<T> d;
  const std::int64_t n = lanes(d);
  for (std::int64_t r = 0; r < rows; r += short_sum) {
    const std::int64_t count = min_of(short_sum, rows - r);
    for (std::int64_t j = 0; j < columns; j += n) {
      const std::int64_t some = columns - j;
      const auto k = read_some(d, pivot + j, some);
      auto s = hn::Zero(d), q = s;
      const T* p = x + r * width + j;
      const auto add = [&](auto value) HWY_ATTR {
        const auto difference = hn::Sub(value, k);
        s = hn::Add(s, difference), q = hn::MulAdd(difference, difference, q);
      };
      if (some < n)
        for (std::int64_t i = 0; i < count; ++i) add(read_n(d, p + i * width, some));
      else if (count == short_sum)
        for (std::int64_t i = 0; i < short_sum; ++i) add(read(d, p + i * width));
      else
        for (std::int64_t i = 0; i < count; ++i) add(read(d, p + i * width));
      add_wide(d, s, sum + j), add_wide(d, q, squares + j);
    }
  }
}

/// Sums again in double where f32 was not enough, a vector of columns at a time.
template <class T>
void settle_columns(const T* block, std::int64_t rows, std::int64_t columns, std::int64_t width, double* sum,
                    double* squares) {
  const DoubleTag dd;
  const auto per_row = hn::Set(dd, 1.0 / static_cast<double>(rows));
  for (std::int64_t j = 0; j < columns; j += lanes(dd)) {
    const std::int64_t some = min_of(lanes(dd), columns - j);
    const auto s = hn::Load(dd, sum + j), q = hn::Load(dd, squares + j);
    const auto enough = are_enough(q, hn::Sub(q, hn::Mul(s, hn::Mul(s, per_row))));
    if (hn::AllTrue(dd, hn::Or(enough, hn::Not(hn::FirstN(dd, static_cast<std::size_t>(some)))))) continue;
    hn::Store(hn::Zero(dd), dd, sum + j), hn::Store(hn::Zero(dd), dd, squares + j);
    add_rows(block + j, rows, some, width, block + j, sum + j, squares + j);
  }
}

/// Chan's formula for every column of a block: `rows` rows with the given sums about the block's first row join the
/// `above` rows already in sum and m2, which are about `top`. Quotients are products with reciprocals here, as
/// divisions would cost a good part of what the block did.
template <class T>
void join_block(double above, double rows, const double* block_sum, const double* block_squares, const T* block,
                const T* top, std::int64_t columns, double* sum, double* m2) {
  const SumTag<T> d;
  const DoubleTag dd;
  const auto per_row = hn::Set(dd, 1.0 / rows), per_above = hn::Set(dd, above > 0.0 ? 1.0 / above : 0.0);
  const auto weight = hn::Set(dd, above * (rows / (above + rows))), zero = hn::Zero(dd);
  for (std::int64_t j = 0; j < columns; j += lanes(d)) {
    const std::int64_t some = columns - j;
    const auto s = hn::Load(dd, block_sum + j);
    auto own = hn::Sub(hn::Load(dd, block_squares + j), hn::Mul(s, hn::Mul(s, per_row)));
    own = hn::IfThenElse(hn::Lt(own, zero), zero, own);  // not Max: NaN stays
    const auto pivot = hn::Sub(to_double(read_some(d, block + j, some)), to_double(read_some(d, top + j, some)));
    auto joined = hn::MulAdd(pivot, hn::Set(dd, rows), s), squares = own;
    if (above > 0.0) {
      const auto before = read_some(dd, sum + j, some);
      const auto delta = hn::Sub(hn::Mul(joined, per_row), hn::Mul(before, per_above));
      squares = hn::Add(hn::MulAdd(hn::Mul(delta, delta), weight, own), read_some(dd, m2 + j, some));
      joined = hn::Add(joined, before);
    }
    if (some < lanes(d))
      write_n(dd, joined, sum + j, some), write_n(dd, squares, m2 + j, some);
    else
      write(dd, joined, sum + j), write(dd, squares, m2 + j);
  }
}

/// One unit: sum and m2 (unit.columns) about the first row of the matrix.
template <class T>
void tile_moments(const T* x, const ColumnGrid& grid, const ColumnGrid::Unit& unit, double* sum, double* m2) {
  alignas(64) double block_sum[tile_columns], block_squares[tile_columns];
  const T* top = x + unit.matrix * grid.rows * grid.width + unit.column;
  for (std::int64_t row = 0; row < unit.rows; row += grid.block_rows) {
    const std::int64_t rows = min_of(grid.block_rows, unit.rows - row);
    for (std::int64_t j = 0; j < grid.tile; ++j) block_sum[j] = block_squares[j] = 0.0;
    const T* block = top + (unit.row + row) * grid.width;
    if constexpr (has_short_sums<T>) {
      add_short_rows(block, rows, unit.columns, grid.width, block, block_sum, block_squares);
      settle_columns(block, rows, unit.columns, grid.width, block_sum, block_squares);
    } else {
      add_rows(block, rows, unit.columns, grid.width, block, block_sum, block_squares);
    }
    join_block(static_cast<double>(row), static_cast<double>(rows), block_sum, block_squares, block, top, unit.columns,
               sum, m2);
  }
}

template <class T>
void moments_by_columns(const MomentsArgs& args, const ColumnGrid& grid, Queue& queue) {
  const T* x = static_cast<const T*>(args.x);
  const auto pivot = [&](std::int64_t matrix, std::int64_t column) {
    return static_cast<double>(load(x[matrix * grid.rows * grid.width + column]));
  };
  if (grid.parts == 1 && grid.group_width == 1) {  // every unit holds all of its columns: no scratch
    for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
      const auto unit = grid.unit(u);
      double* mean = args.mean + grid.group(unit.matrix, unit.column);
      double* m2 = args.m2 + grid.group(unit.matrix, unit.column);
      tile_moments(x, grid, unit, mean, m2);
      for (std::int64_t j = 0; j < unit.columns; ++j)
        Shifted{static_cast<double>(grid.rows), mean[j], m2[j]}.store(pivot(unit.matrix, unit.column + j), mean[j],
                                                                      m2[j]);
    });
    return;
  }
  const auto tile = static_cast<std::size_t>(grid.tile);
  const auto room = static_cast<std::size_t>(grid.units()) * 2 * tile;
  Buffer<double> sums(room, queue, Fill::none);  // (units, sum and m2, tile)
  for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
    double* out = sums.data() + static_cast<std::size_t>(u) * 2 * tile;
    tile_moments(x, grid, grid.unit(u), out, out + tile);
  });
  const std::int64_t groups_per_matrix = grid.width / grid.group_width;
  for_items(queue, grid.matrices * groups_per_matrix, max_of(1, task_values / (grid.group_width * grid.parts)),
            [&](std::int64_t group) {
              const std::int64_t matrix = group / groups_per_matrix,
                                 column = group % groups_per_matrix * grid.group_width;
              Shifted total;
              for (std::int64_t j = column; j < column + grid.group_width; ++j) {
                Shifted one;
                for (std::int64_t part = 0; part < grid.parts; ++part) {
                  const std::int64_t u = (matrix * grid.parts + part) * grid.tiles + j / grid.tile;
                  const double* in = sums.data() + static_cast<std::size_t>(u) * 2 * tile + j % grid.tile;
                  one.add({static_cast<double>(grid.unit(u).rows), in[0], in[grid.tile]});
                }
                one.sum += one.n * (pivot(matrix, j) - pivot(matrix, column));
                total.add(one);
              }
              total.store(pivot(matrix, column), args.mean[group], args.m2[group]);
            });
}

void moments_target(const MomentsArgs& args, Queue& queue) {
  const Partition p = canonical(args.partition);
  if (p.elements() == 0) {
    for (std::int64_t i = 0; i < args.partition.groups(); ++i) args.mean[i] = args.m2[i] = 0.0;
    return;
  }
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (by_columns(p))
      moments_by_columns<T>(args, ColumnGrid(p), queue);
    else
      moments_by_runs<T>(args, RunGrid(p), queue);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(moments_target);
void moments(const MomentsArgs& args, Queue& queue) { HWY_DYNAMIC_DISPATCH(moments_target)(args, queue); }
}  // namespace allnorm::cpu
#endif
