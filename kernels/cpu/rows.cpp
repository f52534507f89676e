// The row-wise operations: one group per contiguous row, one weight and bias per column.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rows.cpp"
#include <hwy/foreach_target.h>

#include <vector>

#include "kernels/cpu/gate-inl.hpp"
#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/vectors-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// Rows per task.
inline std::int64_t row_grain(const RowsArgs& args) { return max_of(1, task_values / args.columns); }

/// values[0 .. count) in the compute type, or `otherwise` when not given.
template <class C>
HWY_INLINE void narrow(const double* values, std::int64_t first, std::int64_t count, double otherwise, C* out) {
  for (std::int64_t j = 0; j < count; ++j) out[j] = static_cast<C>(values != nullptr ? values[first + j] : otherwise);
}

/// Calls body(row, column, columns) for tiles of all rows, those of one task and one tile in order; before(column,
/// columns) first, with the task's own storage for the tile's weights.
template <class C, class Body>
void for_row_tiles(const RowsArgs& args, const double* bias, Queue& queue, const Body& body) {
  for_tasks(queue, ceil_div(args.rows, row_grain(args)), [&](std::int64_t task) {
    const std::int64_t begin = task * row_grain(args), end = min_of(args.rows, begin + row_grain(args));
    alignas(64) C weights[tile_columns], biases[tile_columns];
    for (std::int64_t column = 0; column < args.columns; column += tile_columns) {
      const std::int64_t columns = min_of(tile_columns, args.columns - column);
      narrow(args.weight, column, columns, 1.0, weights);
      narrow(bias, column, columns, 0.0, biases);
      for (std::int64_t row = begin; row < end; ++row) body(row, row * args.columns + column, columns, weights, biases);
    }
  });
}

template <class T>
void apply_rows_of(const RowsArgs& args, Queue& queue) {
  using C = compute_t<T>;
  const WideTag<T> d;
  const std::int64_t n = lanes(d);
  for_row_tiles<C>(args, args.bias, queue,
                   [&](std::int64_t row, std::int64_t first, std::int64_t columns, const C* weights, const C* biases) {
                     const auto a = affine<C>(args.center[row], args.scale[row], 0.0);
                     const auto center = hn::Set(d, a.center), power = hn::Set(d, a.power);
                     const auto scale = hn::Set(d, a.scale), shift = hn::Set(d, a.shift);
                     const T* x = static_cast<const T*>(args.x) + first;
                     T* y = static_cast<T*>(args.y) + first;
                     const auto map = [&](auto value, std::int64_t j) HWY_ATTR {
                       const auto normalized = affine_of(centred_of(value, center, power), scale, shift);
                       return hn::MulAdd(normalized, hn::Load(d, weights + j), hn::Load(d, biases + j));
                     };
                     std::int64_t j = 0;
                     for (; j + n <= columns; j += n) write(d, map(read(d, x + j), j), y + j);
                     if (const std::int64_t rest = columns - j; rest > 0)
                       write_n(d, map(read_n(d, x + j, rest), j), y + j, rest);
                   });
}

template <class T>
void apply_grad_rows_of(const RowsArgs& args, Queue& queue) {
  using C = compute_t<T>;
  const WideTag<T> d;
  const std::int64_t n = lanes(d);
  for_row_tiles<C>(
      args, nullptr, queue,
      [&](std::int64_t row, std::int64_t first, std::int64_t columns, const C* weights, const C*) {
        const auto a = affine<C>(args.center[row], {power_of(args.power, row), args.slope[row]}, args.offset[row]);
        const auto center = hn::Set(d, a.center), power = hn::Set(d, a.power);
        const auto slope = hn::Set(d, a.scale), offset = hn::Set(d, a.shift);
        const auto gain = hn::Set(d, static_cast<C>(args.gain[row]));
        const T* x = static_cast<const T*>(args.x) + first;
        const T* dy = static_cast<const T*>(args.dy) + first;
        T* dx = static_cast<T*>(args.dx) + first;
        const auto map = [&](auto value, auto gradient, std::int64_t j) HWY_ATTR {
          const auto rest = affine_of(centred_of(value, center, power), slope, offset);
          return hn::MulAdd(hn::Mul(gradient, hn::Load(d, weights + j)), gain, rest);
        };
        std::int64_t j = 0;
        for (; j + n <= columns; j += n) write(d, map(read(d, x + j), read(d, dy + j), j), dx + j);
        if (const std::int64_t rest = columns - j; rest > 0)
          write_n(d, map(read_n(d, x + j, rest), read_n(d, dy + j, rest), j), dx + j, rest);
      });
}

template <class T>
void moments_grad_rows_of(const RowsArgs& args, Queue& queue) {
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  for_items(queue, args.rows, row_grain(args), [&](std::int64_t row) {
    const auto center = hn::Set(dd, args.center[row]);
    const T* x = static_cast<const T*>(args.x) + row * args.columns;
    const T* dy = static_cast<const T*>(args.dy) + row * args.columns;
    auto s0 = hn::Zero(dd), s1 = s0, p0 = s0, p1 = s0;
    const auto add = [&](auto centred, auto dy_vector, auto w, auto& s, auto& p) HWY_ATTR {
      const auto g = hn::Mul(to_double(dy_vector), w);
      s = hn::Add(s, g), p = hn::MulAdd(g, centred, p);
    };
    const auto centred_at = [&](std::int64_t j) HWY_ATTR { return hn::Sub(to_double(read(d, x + j)), center); };
    const auto weight = [&](std::int64_t j) HWY_ATTR {
      return args.weight != nullptr ? hn::LoadU(dd, args.weight + j) : hn::Set(dd, 1.0);
    };
    std::int64_t j = 0;
    for (; j + 2 * n <= args.columns; j += 2 * n) {
      add(centred_at(j), read(d, dy + j), weight(j), s0, p0);
      add(centred_at(j + n), read(d, dy + j + n), weight(j + n), s1, p1);
    }
    for (; j + n <= args.columns; j += n) add(centred_at(j), read(d, dy + j), weight(j), s0, p0);
    if (const std::int64_t rest = args.columns - j; rest > 0) {
      const auto last = args.weight != nullptr ? read_n(dd, args.weight + j, rest) : hn::Set(dd, 1.0);
      const auto centred = first_n(dd, hn::Sub(to_double(read_n(d, x + j, rest)), center), rest);
      add(centred, first_n(d, read_n(d, dy + j, rest), rest), last, s1, p1);
    }
    args.sum_g[row] = sum_of_lanes(hn::Add(s0, s1));
    args.sum_gx[row] = sum_of_lanes(hn::Add(p0, p1));
  });
}

/// One unit of the column sums: dweight and dbias (unit.columns) over its rows.
template <class T>
void affine_grad_tile(const RowsArgs& args, const ColumnGrid::Unit& unit, double* dweight, double* dbias) {
  const SumTag<T> d;
  const DoubleTag dd;
  const std::int64_t n = lanes(d);
  constexpr std::int64_t step = 8;  // rows per pass, so that loads and stores of the sums are few
  alignas(64) double acc_weight[tile_columns] = {}, acc_bias[tile_columns] = {};
  for (std::int64_t row = unit.row; row < unit.row + unit.rows; row += step) {
    const std::int64_t count = min_of(step, unit.row + unit.rows - row);
    const T* x = static_cast<const T*>(args.x) + row * args.columns + unit.column;
    const T* dy = static_cast<const T*>(args.dy) + row * args.columns + unit.column;
    for (std::int64_t j = 0; j < unit.columns; j += n) {
      const std::int64_t some = unit.columns - j;
      auto w = hn::Load(dd, acc_weight + j), b = hn::Load(dd, acc_bias + j);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t i = r * args.columns + j;
        const auto centred = hn::Sub(to_double(read_some(d, x + i, some)), hn::Set(dd, args.center[row + r]));
        const auto g = to_double(read_some(d, dy + i, some));
        w = hn::MulAdd(g, hn::Mul(centred, hn::Set(dd, args.scale[row + r])), w), b = hn::Add(b, g);
      }
      hn::Store(w, dd, acc_weight + j), hn::Store(b, dd, acc_bias + j);
    }
  }
  for (std::int64_t j = 0; j < unit.columns; ++j) dweight[j] = acc_weight[j], dbias[j] = acc_bias[j];
}

template <class T>
void affine_grad_rows_of(const RowsArgs& args, Queue& queue) {
  const ColumnGrid grid(1, args.rows, args.columns, 1);
  if (grid.parts == 1) {
    for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
      const auto unit = grid.unit(u);
      affine_grad_tile<T>(args, unit, args.dweight + unit.column, args.dbias + unit.column);
    });
    return;
  }
  const auto width = static_cast<std::size_t>(grid.width);
  std::vector<double> sums(static_cast<std::size_t>(grid.parts) * 2 * width);  // (parts, weight and bias, columns)
  for_items(queue, grid.units(), grid.units_per_task(), [&](std::int64_t u) {
    const auto unit = grid.unit(u);
    double* out = sums.data() + static_cast<std::size_t>(unit.part) * 2 * width + unit.column;
    affine_grad_tile<T>(args, unit, out, out + width);
  });
  for (std::size_t j = 0; j < width; ++j) args.dweight[j] = args.dbias[j] = 0.0;
  for (std::int64_t part = 0; part < grid.parts; ++part) {
    const double* in = sums.data() + static_cast<std::size_t>(part) * 2 * width;
    for (std::size_t j = 0; j < width; ++j) args.dweight[j] += in[j], args.dbias[j] += in[width + j];
  }
}

void apply_rows_target(const RowsArgs& args, Queue& queue) {
  if (args.rows == 0 || args.columns == 0) return;
  visit(args.dtype, [&](auto type) { apply_rows_of<typename decltype(type)::type>(args, queue); });
}

void apply_grad_rows_target(const RowsArgs& args, Queue& queue) {
  if (args.rows == 0 || args.columns == 0) return;
  visit(args.dtype, [&](auto type) { apply_grad_rows_of<typename decltype(type)::type>(args, queue); });
}

void moments_grad_rows_target(const RowsArgs& args, Queue& queue) {
  if (args.columns == 0)
    for (std::int64_t row = 0; row < args.rows; ++row) args.sum_g[row] = args.sum_gx[row] = 0.0;
  else
    visit(args.dtype, [&](auto type) { moments_grad_rows_of<typename decltype(type)::type>(args, queue); });
}

void affine_grad_rows_target(const RowsArgs& args, Queue& queue) {
  if (args.rows == 0)
    for (std::int64_t j = 0; j < args.columns; ++j) args.dweight[j] = args.dbias[j] = 0.0;
  else if (args.columns != 0)
    visit(args.dtype, [&](auto type) { affine_grad_rows_of<typename decltype(type)::type>(args, queue); });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace allnorm::cpu {
HWY_EXPORT(apply_rows_target);
HWY_EXPORT(moments_grad_rows_target);
HWY_EXPORT(affine_grad_rows_target);
HWY_EXPORT(apply_grad_rows_target);
void apply_rows(const RowsArgs& args, Queue& queue) { HWY_DYNAMIC_DISPATCH(apply_rows_target)(args, queue); }
void moments_grad_rows(const RowsArgs& args, Queue& queue) {
  HWY_DYNAMIC_DISPATCH(moments_grad_rows_target)(args, queue);
}
void affine_grad_rows(const RowsArgs& args, Queue& queue) {
  HWY_DYNAMIC_DISPATCH(affine_grad_rows_target)(args, queue);
}
void apply_grad_rows(const RowsArgs& args, Queue& queue) { HWY_DYNAMIC_DISPATCH(apply_grad_rows_target)(args, queue); }
}  // namespace allnorm::cpu
#endif
