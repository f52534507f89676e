// The row-wise operations: one group per contiguous row, one weight and bias per column; and the halves of calls built
// from them.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/cuda/coefficients.cuh"
#include "kernels/cuda/groupwise.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/records.cuh"
#include "kernels/cuda/row_steps.cuh"
#include "kernels/cuda/team.cuh"
#include "kernels/cuda/vectors.cuh"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda {
namespace {

constexpr int step_threads = 256;
constexpr int loads = 4;                      // vectors that a thread has under way
constexpr std::int64_t piece_values = 8192;   // of a row, for one team
constexpr int row_lanes = 8, part_rows = 64;  // of a column sum: threads per column, least rows of a part

std::int64_t blocks_for(std::int64_t items, std::int64_t per_block) {
  return std::max<std::int64_t>(1, ceil_div(items, per_block));
}

/// A row-wise operation with weights of either type.
struct RowsCall {
  RowsArgs args{};  // its weight, bias, dweight and dbias are those below
  Parameter weight{.otherwise = 1}, bias{};
  ParameterGrad dweight{}, dbias{};

  RowsCall() = default;
  explicit RowsCall(const RowsArgs& a)
      : args(a), weight{a.weight, true, 1}, bias{a.bias, true, 0}, dweight{a.dweight, true}, dbias{a.dbias, true} {}
};

/// Whether every row can be read and written in whole vectors of T.
template <class T>
bool is_vectorized(const RowsCall& call) {
  const RowsArgs& a = call.args;
  bool aligned = a.columns % vector_width<T> == 0;
  for (const void* p :
       {a.x, a.dy, static_cast<const void*>(a.y), static_cast<const void*>(a.dx), call.weight.data, call.bias.data})
    aligned = aligned && is_vector_aligned(p);
  return aligned;
}

/// Calls f with the vector's width, or 1, as a constant.
template <class T, class F>
void visit_width(const RowsCall& call, const F& f) {
  if (is_vectorized<T>(call))
    f(std::integral_constant<int, vector_width<T>>{});
  else
    f(std::integral_constant<int, 1>{});
}

/// How rows are cut: a unit is a piece of a row, and a team's work.
struct Pieces {
  std::int64_t per_row = 1, length = 0, units = 0;

  Pieces(const RowsArgs& a, int width) {
    per_row = std::max<std::int64_t>(1, ceil_div(a.columns, piece_values));
    length = ceil_div(ceil_div(a.columns, per_row), width) * width;
    units = a.rows * per_row;
  }
};
struct Piece {
  std::int64_t row = 0, column = 0;
  int values = 0;
};
__device__ inline Piece piece_of(const RowsArgs& a, const Pieces& pieces, std::int64_t unit) {
  const std::int64_t row = unit / pieces.per_row, column = unit % pieces.per_row * pieces.length;
  const std::int64_t rest = a.columns - column;
  return {row, column, static_cast<int>(rest < pieces.length ? rest : pieces.length)};
}

// ---- maps ----------------------------------------------------------------------------------------------------------

/// y, or with `gradient` dx. Walks backwards: what a reduction read last is still in the cache.
template <class T, int width, bool gradient>
__global__ void __launch_bounds__(512) map_rows_kernel(const RowsCall call, const Pieces pieces, const TeamShape team) {
  using C = compute_t<T>;
  const RowsArgs& args = call.args;
  const std::int64_t unit = pieces.units - 1 - team.place();
  if (unit < 0) return;
  const Piece piece = piece_of(args, pieces, unit);
  const std::int64_t first = piece.row * args.columns + piece.column;
  const auto a = gradient ? affine<C>(args.center[piece.row], {power_of(args.power, piece.row), args.slope[piece.row]},
                                      args.offset[piece.row])
                          : affine<C>(args.center[piece.row], args.scale[piece.row], 0.0);
  const C gain = gradient ? static_cast<C>(args.gain[piece.row]) : C{1};
  const T* x = static_cast<const T*>(args.x) + first;
  const T* dy = gradient ? static_cast<const T*>(args.dy) + first : nullptr;
  T* out = static_cast<T*>(gradient ? args.dx : args.y) + first;
  const int step = team.threads * width;
  for (int begin = team.lane() * width; begin < piece.values; begin += loads * step) {
    Vector<T, width> of_x[loads], of_dy[loads];
    unrolled<loads>([&](auto k) {
      if (const int j = begin + k * step; j < piece.values) {
        of_x[k] = read_vector<width>(x + j, Hint::last);
        if constexpr (gradient) of_dy[k] = read_vector<width>(dy + j, Hint::last);
      }
    });
    unrolled<loads>([&](auto k) {
      const int j = begin + k * step;
      if (j >= piece.values) return;
      C value[width], weight[width], other[width], result[width];
      unpack(of_x[k], value);
      rows::load_parameter<width>(call.weight, piece.column + j, weight);
      if constexpr (gradient)
        unpack(of_dy[k], other);
      else
        rows::load_parameter<width>(call.bias, piece.column + j, other);
      for (int i = 0; i < width; ++i) {
        const C mapped = affine_of(centred_of(value[i], a.center, a.power), a.scale, a.shift);
        result[i] = gradient ? fma(other[i] * weight[i], gain, mapped) : fma(mapped, weight[i], other[i]);
      }
      write_vector(out + j, pack<T>(result));
    });
  }
}

template <bool gradient>
void map_rows(const RowsCall& call, Queue& queue) {
  if (call.args.rows == 0 || call.args.columns == 0) return;
  visit(call.args.dtype, [&]<class T>(std::type_identity<T>) {
    visit_width<T>(call, [&](auto width) {
      const Pieces pieces(call.args, width);
      const TeamShape team = team_for(pieces.length, width);
      launch(queue, blocks_for(pieces.units, team.teams), team.block_threads(), 0,
             map_rows_kernel<T, width(), gradient>, call, pieces, team);
    });
  });
}

// ---- sums over rows ------------------------------------------------------------------------------------------------

/// Partial sums of a unit to (2, units), all in double: products with a weight of f64 are right to f64.
template <class T, int width>
__global__ void __launch_bounds__(512) moments_grad_rows_kernel(const RowsCall call, const Pieces pieces,
                                                                const TeamShape team, double* sum_g, double* sum_gx) {
  const RowsArgs& args = call.args;
  const std::int64_t unit = team.place();
  SumPair sum;
  if (unit < pieces.units) {
    const Piece piece = piece_of(args, pieces, unit);
    const std::int64_t first = piece.row * args.columns + piece.column;
    const T* x = static_cast<const T*>(args.x) + first;
    const T* dy = static_cast<const T*>(args.dy) + first;
    const double center = args.center[piece.row];
    const int step = team.threads * width;
    for (int begin = team.lane() * width; begin < piece.values; begin += loads * step) {
      Vector<T, width> of_x[loads], of_dy[loads];
      unrolled<loads>([&](auto k) {
        if (const int j = begin + k * step; j < piece.values) {
          of_x[k] = read_vector<width>(x + j);
          of_dy[k] = read_vector<width>(dy + j);
        }
      });
      unrolled<loads>([&](auto k) {
        const int j = begin + k * step;
        if (j >= piece.values) return;
        compute_t<T> value[width], gradient[width];
        double weight[width];
        unpack(of_x[k], value);
        unpack(of_dy[k], gradient);
        rows::load_parameter<width>(call.weight, piece.column + j, weight);
        for (int i = 0; i < width; ++i) {
          const double g = weight[i] * static_cast<double>(gradient[i]);
          sum.a += g;
          sum.b = fma(g, static_cast<double>(value[i]) - center, sum.b);
        }
      });
    }
  }
  sum = team_sum(sum, team);
  if (team.lane() != 0 || unit >= pieces.units) return;
  sum_g[unit] = sum.a;
  sum_gx[unit] = sum.b;
}

/// Rows whose pieces had teams of their own: (2, rows * per_row) to (rows) each, in order.
__global__ void __launch_bounds__(step_threads)
    add_pieces_kernel(const double* sums, const Pieces pieces, std::int64_t rows, double* sum_g, double* sum_gx) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * step_threads + threadIdx.x;
  if (row >= rows) return;
  SumPair sum;
  for (std::int64_t u = row * pieces.per_row; u < (row + 1) * pieces.per_row; ++u) {
    sum.a += sums[u];
    sum.b += sums[pieces.units + u];
  }
  sum_g[row] = sum.a;
  sum_gx[row] = sum.b;
}

void sum_rows(const RowsCall& call, Queue& queue) {
  const RowsArgs& args = call.args;
  if (args.rows == 0) return;
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    visit_width<T>(call, [&](auto width) {
      const Pieces pieces(args, width);
      const TeamShape team = team_for(pieces.length, width);
      const std::int64_t blocks = blocks_for(pieces.units, team.teams);
      if (pieces.per_row == 1)
        return launch(queue, blocks, team.block_threads(), 0, moments_grad_rows_kernel<T, width()>, call, pieces, team,
                      args.sum_g, args.sum_gx);
      Buffer<double> sums(static_cast<std::size_t>(2 * pieces.units), queue, Fill::none);
      launch(queue, blocks, team.block_threads(), 0, moments_grad_rows_kernel<T, width()>, call, pieces, team,
             sums.data(), sums.data() + pieces.units);
      launch(queue, blocks_for(args.rows, step_threads), step_threads, 0, add_pieces_kernel,
             static_cast<const double*>(sums.data()), pieces, args.rows, args.sum_g, args.sum_gx);
    });
  });
}

// ---- sums over columns ---------------------------------------------------------------------------------------------

/// How columns are cut: tiles of a warp's vectors, in parts of the rows.
struct ColumnParts {
  std::int64_t tiles = 0, parts = 1, rows = 0;

  ColumnParts(const RowsArgs& a, int width, int multiprocessors) {
    tiles = ceil_div(a.columns, warp_threads * width);
    parts = std::max<std::int64_t>(1, std::min(ceil_div(4 * multiprocessors, tiles), ceil_div(a.rows, part_rows)));
    rows = ceil_div(a.rows, parts);
  }
};

/// sums: (2, parts, columns).
template <class T, int width>
__global__ void __launch_bounds__(warp_threads* row_lanes)
    affine_grad_rows_kernel(const RowsArgs args, const ColumnParts grid, double* sums) {
  const int lane = static_cast<int>(threadIdx.x) % warp_threads,
            row_lane = static_cast<int>(threadIdx.x) / warp_threads;
  const std::int64_t part = blockIdx.x / grid.tiles, tile = blockIdx.x % grid.tiles;
  const std::int64_t column = (tile * warp_threads + lane) * width;
  const std::int64_t begin = part * grid.rows, end = begin + grid.rows < args.rows ? begin + grid.rows : args.rows;
  double of_weight[width] = {}, of_bias[width] = {};
  if (column < args.columns) {
    const T* x = static_cast<const T*>(args.x) + column;
    const T* dy = static_cast<const T*>(args.dy) + column;
    for (std::int64_t row = begin + row_lane; row < end; row += loads * row_lanes) {
      Vector<T, width> of_x[loads], of_dy[loads];
      unrolled<loads>([&](auto k) {
        if (const std::int64_t r = row + k * row_lanes; r < end) {
          of_x[k] = read_vector<width>(x + r * args.columns);
          of_dy[k] = read_vector<width>(dy + r * args.columns);
        }
      });
      unrolled<loads>([&](auto k) {
        const std::int64_t r = row + k * row_lanes;
        if (r >= end) return;
        compute_t<T> value[width], gradient[width];
        unpack(of_x[k], value);
        unpack(of_dy[k], gradient);
        const double center = args.center[r], scale = args.scale[r];
        for (int i = 0; i < width; ++i) {
          const auto g = static_cast<double>(gradient[i]);
          of_weight[i] = fma(g, (static_cast<double>(value[i]) - center) * scale, of_weight[i]);
          of_bias[i] += g;
        }
      });
    }
  }
  // (row_lanes, 2, tile's columns)
  auto* of_lanes = dynamic_shared<double>();
  constexpr int columns = warp_threads * width;
  for (int i = 0; i < width; ++i) {
    double* at = of_lanes + row_lane * 2 * columns + lane * width + i;
    at[0] = of_weight[i];
    at[columns] = of_bias[i];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 2 * columns; i += warp_threads * row_lanes) {
    double sum = 0;
    for (int l = 0; l < row_lanes; ++l) sum += of_lanes[l * 2 * columns + i];
    const std::int64_t at = tile * columns + i % columns;
    if (at < args.columns) sums[(i / columns * grid.parts + part) * args.columns + at] = sum;
  }
}

void sum_columns(const RowsCall& call, Queue& queue) {
  const RowsArgs& args = call.args;
  if (args.columns == 0) return;
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    visit_width<T>(call, [&](auto width) {
      const ColumnParts grid(args, width, properties_of(queue).multiProcessorCount);
      Buffer<double> sums(static_cast<std::size_t>(2 * grid.parts * args.columns), queue, Fill::none);
      launch(queue, grid.tiles * grid.parts, warp_threads * row_lanes,
             sizeof(double) * row_lanes * 2 * warp_threads * width, affine_grad_rows_kernel<T, width()>, args, grid,
             sums.data());
      add_fine(sums.data(), grid.parts * args.columns, {1, args.columns}, args.columns, call.dweight, call.dbias,
               queue);
    });
  });
}

// ---- steps of the halves -------------------------------------------------------------------------------------------

/// Frame and state of a forward call: a thread per row. Where the ranks disagree every frame is NaN, which makes y NaN,
/// and the state stays.
__global__ void __launch_bounds__(step_threads) row_frames_kernel(const ForwardArgs args, const Gathered gathered) {
  const std::int64_t rows = args.norm.groups();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * step_threads + threadIdx.x;
  const bool fails = rows::heads_differ({gathered, args.record}, args.reporter, blockIdx.x == 0);
  const bool alone = args.record == nullptr;
  const double count = alone ? static_cast<double>(args.norm.group_size()) : steps::summed(gathered, 0);
  if (row < rows) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    const steps::Layout layout{rows};
    const auto current = fails   ? formulas::Moments{nan, nan}
                         : alone ? steps::moments_of(count, args.mean[row], args.m2[row])
                                 : steps::moments_of(gathered, layout, row);
    args.frame.set(row, steps::frame_of(args.rules, args.state, Turn{}, row, current, rows::NoLane{}, false));
  }
  if (row == 0) rows::advance_call(args, count, fails);
}

/// Backward's coefficients: a thread per row. (4, rows): gain, slope, offset, power; NaN where the ranks disagree.
__global__ void __launch_bounds__(step_threads)
    row_gradients_kernel(const BackwardArgs args, const Gathered gathered, double* coefficients) {
  const std::int64_t rows = args.norm.groups();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * step_threads + threadIdx.x;
  const bool fails = rows::heads_differ({gathered, args.record}, args.reporter, blockIdx.x == 0);
  if (row >= rows) return;
  const auto frame = args.frame.get(row);
  auto k = steps::grad_of(args, gathered, frame, 1, row);
  if (fails) k.gain = k.slope = k.offset = std::numeric_limits<double>::quiet_NaN();
  coefficients[row] = k.gain;
  coefficients[rows + row] = k.slope;
  coefficients[2 * rows + row] = k.offset;
  coefficients[3 * rows + row] = k.power;
}

__global__ void row_gradients_record_kernel(const BackwardRecord record) { record.write_head(); }

/// What both directions share.
template <class Args>
RowsCall rows_of(const Args& args) {
  RowsCall call;
  call.args.x = args.x;
  call.args.dtype = args.dtype;
  call.args.rows = args.norm.groups();
  call.args.columns = args.norm.group_size();
  call.args.center = args.frame.mean;
  call.args.scale = args.frame.rstd;
  call.weight = args.weight;
  return call;
}

}  // namespace

void apply_rows(const RowsArgs& args, Queue& queue) {
  RowsCall call(args);
  call.args.dy = call.args.dx = nullptr;  // whose alignment does not matter
  map_rows<false>(call, queue);
}

void moments_grad_rows(const RowsArgs& args, Queue& queue) {
  RowsCall call(args);
  call.args.y = call.args.dx = nullptr;
  call.bias.data = nullptr;
  sum_rows(call, queue);
}

void affine_grad_rows(const RowsArgs& args, Queue& queue) {
  RowsCall call(args);
  call.args.y = call.args.dx = nullptr;
  call.weight.data = call.bias.data = nullptr;
  sum_columns(call, queue);
}

void apply_grad_rows(const RowsArgs& args, Queue& queue) {
  RowsCall call(args);
  call.args.y = nullptr;
  call.bias.data = nullptr;
  map_rows<true>(call, queue);
}

void affine_grad_of_rows(const BackwardArgs& args, Queue& queue) {
  RowsCall call = rows_of(args);
  call.weight.data = nullptr;  // whose alignment does not matter
  call.args.dy = args.dy;
  call.dweight = args.dweight;
  call.dbias = args.dbias;
  sum_columns(call, queue);
}

void forward_finish_rows(const ForwardArgs& args, const Gathered& gathered, Queue& queue) {
  if (args.source == FrameSource::call)
    launch(queue, blocks_for(args.norm.groups(), step_threads), step_threads, 0, row_frames_kernel, args, gathered);
  RowsCall call = rows_of(args);
  call.args.y = args.y;
  call.bias = args.bias;
  map_rows<false>(call, queue);
}

void backward_local_rows(const BackwardArgs& args, Queue& queue) {
  RowsCall call = rows_of(args);
  call.args.dy = args.dy;
  call.args.sum_g = args.sums;
  call.args.sum_gx = args.sums + args.norm.groups();
  sum_rows(call, queue);
  if (args.wants_weight) affine_grad_of_rows(args, queue);
  if (args.record != nullptr) launch(queue, 1, 1, 0, row_gradients_record_kernel, BackwardRecord(args));
}

void backward_finish_rows(const BackwardArgs& args, const Gathered& gathered, Queue& queue) {
  const std::int64_t rows = args.norm.groups();
  launch(queue, blocks_for(rows, step_threads), step_threads, 0, row_gradients_kernel, args, gathered, args.scratch);
  if (args.dx == nullptr) return;
  RowsCall call = rows_of(args);
  call.args.dy = args.dy;
  call.args.dx = args.dx;
  call.args.gain = args.scratch;
  call.args.slope = args.scratch + rows;
  call.args.offset = args.scratch + 2 * rows;
  call.args.power = args.scratch + 3 * rows;
  map_rows<true>(call, queue);
}

}  // namespace allnorm::cuda
