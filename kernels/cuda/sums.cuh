// Sums of a Task (reduce.cuh) within a block: over a warp, over a team of threads that read one group, over the tile of
// columns that a block reads; and over the parts of a group.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/vectors.cuh"

namespace allnorm::cuda {

/// What backward adds up: g, and g times a value's distance from its center, or times its z.
template <class S>
__device__ __forceinline__ void add_gradient(S g, S distance, S& sum, S& second) {
  sum += g;
  second = std::fma(g, distance, second);
}

/// Of `count` values: their sum about the group's pivot, and of squares about their own mean; or any two sums.
template <class S>
struct TwoSums {
  S sum = 0, second = 0;

  __device__ __forceinline__ void add(S g, S distance) { add_gradient(g, distance, sum, second); }
  template <class R>
  __device__ __forceinline__ void add(const TwoSums<R>& more) {
    sum += static_cast<S>(more.sum);
    second += static_cast<S>(more.second);
  }
};
using Sums = TwoSums<double>;

/// A second sum that must not be negative for rounding; NaN stays.
__device__ inline double not_negative(double value) { return value < 0 ? 0 : value; }

/// The centred second sum of `count` values whose squares about `middle` add up to `squares`.
__device__ inline double about_mean(double squares, double sum, double count, double middle) {
  const double offset = sum / count - middle;
  return not_negative(squares - count * offset * offset);
}

/// Adds the parts of a group `step` apart, from `first` on, several of them under way at once. Squares are joined about
/// the mean of part 0, `middle`; nearly all parts have as many values as part 0, so that one division serves them.
template <bool centred, class CountOf>
__device__ inline Sums joined(const double2* parts, std::int64_t stride, std::int64_t first, std::int64_t step,
                              std::int64_t count, double middle, const CountOf& count_of) {
  constexpr int batch = 8;
  const double usual = centred ? count_of(0) : 1, share = 1 / usual;
  Sums total;
  for (std::int64_t i = first; i < count; i += batch * step) {
    double2 read[batch];
    unrolled<batch>([&](auto u) {
      const std::int64_t at = i + u * step;
      read[u] = at < count ? __ldcg(parts + at * stride) : make_double2(0, 0);
    });
    unrolled<batch>([&](auto u) {
      const std::int64_t at = i + u * step;
      if (at >= count) return;
      total.sum += read[u].x;
      total.second += read[u].y;
      if constexpr (centred) {  // n * (mean - middle)^2
        const double n = count_of(at), offset = fma(-n, middle, read[u].x);
        total.second = fma(offset * offset, n == usual ? share : 1 / n, total.second);
      }
    });
  }
  return total;
}

/// The sum over the threads of a warp, in all of them.
template <class S>
__device__ __forceinline__ S warp_sum(S value) {
  for (int distance = warp_threads / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

/// The sums over `lanes` threads (a warp, or the block): in all threads of the warp; of a block in its first warp.
/// `room`: 2 doubles per warp of shared memory.
__device__ inline Sums lanes_sum(Sums own, int lanes, double* room) {
  own = {warp_sum(own.sum), warp_sum(own.second)};
  if (lanes == warp_threads) return own;
  const int warp = static_cast<int>(threadIdx.x) / warp_threads, lane = static_cast<int>(threadIdx.x) % warp_threads;
  constexpr int warps = block_threads / warp_threads;
  if (lane == 0) {
    room[warp] = own.sum;
    room[warps + warp] = own.second;
  }
  __syncthreads();
  own = lane < warps ? Sums{room[lane], room[warps + lane]} : Sums{};
  __syncthreads();
  return {warp_sum(own.sum), warp_sum(own.second)};
}

/// The same of what the threads of a team have read, each a part of one group: sums about `pivot`; squares, where the
/// task has any, about `middle`, the mean of the first thread's values. `room`: one double more.
template <class Task, class Thread>
__device__ __forceinline__ Sums team_sums(const Thread& thread, double pivot, int lanes, double* room, double& middle) {
  Sums own = thread.run_sums(pivot);
  if constexpr (Task::centred) {
    const double mean = thread.run_mean(own.sum);
    if (lanes == warp_threads) {
      middle = __shfl_sync(0xffffffffu, mean, 0);
    } else {
      double& broadcast = room[2 * block_threads / warp_threads];
      if (threadIdx.x == 0) broadcast = mean;
      __syncthreads();
      middle = broadcast;
    }
    own.second += thread.run_spread(mean - middle);
  }
  return lanes_sum(own, lanes, room);
}

/// The sums over a tile's groups of one value per thread and column, into totals (groups per tile). The lower half of
/// the rows of threads takes what the upper half has, and so on. `values`: doubles of shared memory for the first
/// half, (rows, n, across), so that neighbouring threads use neighbouring banks; later a row leaves its values where
/// itself has read. Begins and ends with a barrier.
template <int n>
__device__ void tile_sum(const ColumnPlan& plan, double (&own)[n], int row, std::int64_t column, double* values,
                         double* totals) {
  const std::int64_t tile = plan.tile(), groups = plan.tile_groups;
  const auto thread = static_cast<int>(threadIdx.x);
  const auto place = [&](int slot) { return values + slot * tile + column / n; };
  const auto of_column = [&](std::int64_t q) { return values[q % n * plan.across + q / n]; };  // in the first row
  __syncthreads();
  for (int rows = plan.down; rows > 1;) {
    const int half = (rows + 1) / 2, first = rows == plan.down ? half : 0;
    if (row >= half && row < rows)
      for (int j = 0; j < n; ++j) place(row - first)[j * plan.across] = own[j];
    __syncthreads();
    if (row + half < rows)
      for (int j = 0; j < n; ++j) own[j] += place(row + half - first)[j * plan.across];
    rows = half;
  }
  if (row == 0)
    for (int j = 0; j < n; ++j) place(0)[j * plan.across] = own[j];
  __syncthreads();
  if (plan.group_width == 1) {
    for (std::int64_t g = thread; g < groups; g += block_threads) totals[g] = of_column(g);
  } else {
    for (std::int64_t g = thread / warp_threads; g < groups; g += block_threads / warp_threads) {
      double sum = 0;
      for (std::int64_t j = thread % warp_threads; j < plan.group_width; j += warp_threads)
        sum += of_column(g * plan.group_width + j);
      sum = warp_sum(sum);
      if (thread % warp_threads == 0) totals[g] = sum;
    }
  }
  __syncthreads();
}

/// Shared memory of a block that sums a tile of columns.
struct TileRoom {
  double* values;   // value_doubles()
  double* totals;   // (columns of a tile), of a group its first
  double* seconds;  // likewise
  double* middles;  // (columns of a tile)
  double* pivots;   // (groups of a tile)

  __device__ TileRoom(double* shared, const ColumnPlan& plan)
      : values(shared),
        totals(values + plan.value_doubles()),
        seconds(totals + plan.tile()),
        middles(seconds + plan.tile()),
        pivots(middles + plan.tile()) {}
};

/// Adds up what the block's threads have read, into room.totals and room.seconds (groups per tile): sums about
/// pivot_of(j) of a thread's column j; squares, where the task has any, about the mean of the group's first column in
/// the first row of threads, in room.middles.
template <class Task, int n, class Thread, class PivotOf>
__device__ __forceinline__ void tile_sums(const Thread& thread, const ColumnPlan& plan, int row, std::int64_t column,
                                          const PivotOf& pivot_of, const TileRoom& room) {
  double sum[n], second[n];
  for (int j = 0; j < n; ++j) {
    const Sums own = thread.column_sums(j, pivot_of(j));
    sum[j] = own.sum;
    second[j] = own.second;
  }
  if constexpr (Task::centred) {
    if (row == 0)
      for (int j = 0; j < n; ++j) room.middles[column + j] = thread.column_mean(sum[j]);
    __syncthreads();
    for (int j = 0; j < n; ++j)
      second[j] += thread.column_spread(thread.column_mean(sum[j]) - room.middles[plan.first_column(column + j)]);
  }
  tile_sum(plan, sum, row, column, room.values, room.totals);
  tile_sum(plan, second, row, column, room.values, room.seconds);
}

}  // namespace allnorm::cuda
