// The traversals of every reduction over a partition. A Task says what a thread adds up per value (two sums, in double)
// and what becomes of a group's sums; parts of a group that several blocks have summed are joined by the last of them,
// in the order of the parts.
//
// A Task has the element type T and
//   centred                  whether the second sum is of squares about the first's mean: parts join by Chan's formula
//   Thread<n>                a thread's sums over n adjacent columns
//   Item<n>                  n adjacent values as read
//   read<n, whole>(at)       those at memory offset `at`; `whole`: in whole words
//   pivot(group, at)         what the sums of the group are about, whose first value is at `at`
//   finish(group, count, sums, pivot)   called by one thread per group
//   extra()                  called by one block more, where has_extra()
#pragma once

#include <cstdint>

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vectors.cuh"

namespace allnorm::cuda {

/// Of `count` values: their sum about the group's pivot, and of squares about their own mean; or any two sums.
struct Sums {
  double sum = 0, second = 0;
};

/// Where blocks leave the sums of their parts for the last one.
struct Parts {
  double2* sums = nullptr;      // (parts, groups)
  unsigned* tickets = nullptr;  // one per set of blocks that sum the same groups
};

/// True in all threads of the last of `blocks` blocks to come; what the others wrote before is then visible. Leaves the
/// ticket at zero.
__device__ inline bool last_to_come(unsigned* ticket, std::int64_t blocks) {
  __threadfence();
  __syncthreads();
  const auto last = static_cast<unsigned>(blocks - 1);
  const bool is_last = __syncthreads_or(threadIdx.x == 0 && atomicInc(ticket, last) == last) != 0;
  __threadfence();
  return is_last;
}

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
__device__ inline double warp_sum(double value) {
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

// ---- run by run ----------------------------------------------------------------------------------------------------

template <class Task, int n, bool whole>
__global__ void __launch_bounds__(block_threads) reduce_runs(Task task, RunPlan plan, Parts parts) {
  double* room = dynamic_shared<double>();  // 2 doubles per warp, and one
  double& broadcast = room[2 * block_threads / warp_threads];
  std::int64_t block = blockIdx.x;
  if (task.has_extra()) {
    if (block == 0) return task.extra();
    --block;
  }
  const int lane = static_cast<int>(threadIdx.x) % plan.lanes;
  const std::int64_t unit = block * (block_threads / plan.lanes) + static_cast<int>(threadIdx.x) / plan.lanes;
  if (unit >= plan.units()) return;  // the whole warp: a block holds more than one unit only where warps are units
  const std::int64_t group = unit / plan.parts, index = unit % plan.parts;
  const RunPlan::Part part = plan.part(group, index);
  const bool any = part.values() > 0;
  const std::int64_t first = plan.first_of(group);
  const double pivot = any ? task.pivot(group, first) : 0;

  typename Task::template Thread<n> thread;
  RunWalk walk = plan.walk(part, lane);
  if (walk.more()) {
    thread.begin_run(task, group, walk.at);
    const auto filler = thread.filler();
    while (walk.more()) {
      typename Task::template Item<n> items[runs_batch];
      int count = 0;
      unrolled<runs_batch>([&](auto u) {
        const bool inside = walk.more();
        items[u] = inside ? task.template read<n, whole>(walk.at) : filler;
        count += inside;
        walk.advance();
      });
      thread.template add<runs_batch>(items, count);
    }
  }
  Sums own = thread.run_sums(pivot);
  const double mean = thread.run_mean(own.sum);
  double middle = 0;  // the mean of the first thread's values
  if constexpr (Task::centred) {
    if (plan.lanes == warp_threads) {
      middle = __shfl_sync(0xffffffffu, mean, 0);
    } else {
      if (lane == 0) broadcast = mean;
      __syncthreads();
      middle = broadcast;
    }
    own.second += thread.run_spread(mean - middle);
  }
  own = lanes_sum(own, plan.lanes, room);
  auto count = static_cast<double>(part.values());
  if constexpr (Task::centred)
    if (any) own.second = about_mean(own.second, own.sum, count, middle);
  if (plan.parts > 1) {
    double2* sums = parts.sums + group;
    const std::int64_t stride = plan.p.groups();
    if (lane == 0) sums[index * stride] = make_double2(own.sum, own.second);
    if (!last_to_come(parts.tickets + group, plan.parts)) return;
    const auto count_of = [&](std::int64_t i) { return static_cast<double>(plan.values_of(i)); };
    middle = __ldcg(sums).x / count_of(0);
    own = joined<Task::centred>(sums, stride, lane, block_threads, plan.parts, middle, count_of);
    own = lanes_sum(own, block_threads, room);
    count = static_cast<double>(plan.p.group_size());
    if constexpr (Task::centred) own.second = about_mean(own.second, own.sum, count, middle);
  }
  if (lane == 0) task.finish(group, count, own, pivot);
}

// ---- column by column ----------------------------------------------------------------------------------------------

/// The sums over a tile's groups of one value per thread and column, into totals (groups per tile). `values`: a double
/// per thread and column of shared memory. Begins and ends with a barrier.
template <int n>
__device__ void tile_sum(const ColumnPlan& plan, const double (&own)[n], int row, std::int64_t column, double* values,
                         double* totals) {
  const std::int64_t tile = plan.tile(), groups = plan.tile_groups;
  const auto thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (row < plan.down)
    for (int j = 0; j < n; ++j) values[row * tile + column + j] = own[j];
  __syncthreads();
  for (int rows = plan.down; rows > 1;) {
    const int half = (rows + 1) / 2;
    if (row + half < rows)
      for (int j = 0; j < n; ++j) values[row * tile + column + j] += values[(row + half) * tile + column + j];
    rows = half;
    __syncthreads();
  }
  if (plan.group_width == 1) {
    for (std::int64_t g = thread; g < groups; g += block_threads) totals[g] = values[g];
  } else {
    for (std::int64_t g = thread / warp_threads; g < groups; g += block_threads / warp_threads) {
      double sum = 0;
      for (std::int64_t j = thread % warp_threads; j < plan.group_width; j += warp_threads)
        sum += values[g * plan.group_width + j];
      sum = warp_sum(sum);
      if (thread % warp_threads == 0) totals[g] = sum;
    }
  }
  __syncthreads();
}

template <class Task, int n, bool whole>
__global__ void __launch_bounds__(block_threads) reduce_columns(Task task, ColumnPlan plan, Parts parts) {
  double* values = dynamic_shared<double>();               // (threads, max(2, n))
  double* totals = values + max_of(2, n) * block_threads;  // (columns of a tile), of a group its first
  double* seconds = totals + plan.tile();                  // likewise
  double* middles = seconds + plan.tile();                 // (columns of a tile)
  double* pivots = middles + plan.tile();                  // (groups of a tile)
  std::int64_t block = blockIdx.x;
  if (task.has_extra()) {
    if (block == 0) return task.extra();
    --block;
  }
  const ColumnPlan::Unit unit = plan.unit(block);
  const int t = static_cast<int>(threadIdx.x), row = t / plan.across;
  const std::int64_t column = static_cast<std::int64_t>(t % plan.across) * n;  // in the tile
  const bool works = row < plan.down && column < unit.columns;
  const std::int64_t width = plan.width, start = unit.column + column;
  const std::int64_t groups = plan.group_of(unit.columns);  // of this tile
  const std::int64_t first_group = plan.group_of(unit.matrix, unit.column);
  // the groups' pivots: under way while the rows are read, then in shared memory
  constexpr auto pivots_each = static_cast<int>(ceil_div(n * tile_maximum, block_threads));
  double own_pivots[pivots_each];
  unrolled<pivots_each>([&](auto k) {
    const std::int64_t g = t + k * block_threads;
    const bool there = g < groups;
    own_pivots[k] =
        there ? task.pivot(first_group + g, plan.first_of(unit.matrix, unit.column + g * plan.group_width)) : 0;
  });

  typename Task::template Thread<n> thread;
  if (works && row < unit.rows) {
    constexpr int batch = Task::columns_batch;
    std::int64_t at = (unit.matrix * plan.rows + unit.row + row) * width + start;
    const std::int64_t step = plan.down * width;
    thread.template begin_columns<whole>(task, plan, unit.matrix, start, at);
    std::int64_t left = (unit.rows - row + plan.down - 1) / plan.down;
    for (; left >= batch; left -= batch) {
      typename Task::template Item<n> items[batch];
      unrolled<batch>([&](auto u) { items[u] = task.template read<n, whole>(at + u * step); });
      at += batch * step;
      thread.template add<batch>(items, batch);
    }
    if (left > 0) {  // all the rows left at once
      const auto filler = thread.filler();
      typename Task::template Item<n> items[batch];
      unrolled<batch>([&](auto u) { items[u] = u < left ? task.template read<n, whole>(at + u * step) : filler; });
      thread.template add<batch>(items, static_cast<int>(left));
    }
  }
  unrolled<pivots_each>([&](auto k) {
    const std::int64_t g = t + k * block_threads;
    if (g < groups) pivots[g] = own_pivots[k];
  });
  __syncthreads();
  // all sums of a group about its first value
  double sum[n], second[n];
  for (int j = 0; j < n; ++j) {
    const double pivot = works ? pivots[plan.group_of(column + j)] : 0;
    const Sums own = thread.column_sums(j, pivot);
    sum[j] = own.sum;
    second[j] = own.second;
  }
  if constexpr (Task::centred) {  // squares about the mean of the group's first column in the first row of threads
    if (row == 0)
      for (int j = 0; j < n; ++j) middles[column + j] = thread.column_mean(sum[j]);
    __syncthreads();
    for (int j = 0; j < n; ++j)
      second[j] += thread.column_spread(thread.column_mean(sum[j]) - middles[plan.first_column(column + j)]);
  }
  tile_sum(plan, sum, row, column, values, totals);
  tile_sum(plan, second, row, column, values, seconds);
  auto count = static_cast<double>(unit.rows * plan.group_width);
  const auto finish = [&](std::int64_t g, const Sums& total) { task.finish(first_group + g, count, total, pivots[g]); };
  const std::int64_t stride = plan.matrices * plan.matrix_groups;
  for (std::int64_t g = t; g < groups; g += block_threads) {
    Sums total{totals[g], seconds[g]};
    if constexpr (Task::centred)
      total.second = about_mean(total.second, total.sum, count, middles[g * plan.group_width]);
    if (plan.parts == 1)
      finish(g, total);
    else
      parts.sums[unit.part * stride + first_group + g] = make_double2(total.sum, total.second);
  }
  if (plan.parts == 1) return;
  if (!last_to_come(parts.tickets + (unit.matrix * plan.tiles + block % plan.tiles), plan.parts)) return;
  // as many threads per group as there are, each for some of the parts
  count = static_cast<double>(plan.rows * plan.group_width);
  for (std::int64_t begin = 0; begin < groups; begin += block_threads) {
    const std::int64_t some = min_of(block_threads, groups - begin), lanes = min_of(block_threads / some, plan.parts);
    const std::int64_t g = begin + t % some, lane = t / some;
    const double2* sums = parts.sums + first_group + g;
    const auto count_of = [&](std::int64_t i) { return static_cast<double>(plan.rows_of(i) * plan.group_width); };
    const double center = Task::centred ? __ldcg(sums).x / count_of(0) : 0;
    __syncthreads();
    if (lane < lanes) {
      const Sums own = joined<Task::centred>(sums, stride, lane, lanes, plan.parts, center, count_of);
      values[t] = own.sum;
      values[block_threads + t] = own.second;
    }
    __syncthreads();
    for (std::int64_t rest = lanes; rest > 1;) {
      const std::int64_t half = (rest + 1) / 2;
      if (lane + half < rest) {
        values[t] += values[half * some + t];
        values[block_threads + t] += values[block_threads + half * some + t];
      }
      rest = half;
      __syncthreads();
    }
    if (lane == 0) {
      Sums total{values[t], values[block_threads + t]};
      if constexpr (Task::centred) total.second = about_mean(total.second, total.sum, count, center);
      finish(g, total);
    }
  }
}

// ---- the launch ----------------------------------------------------------------------------------------------------

/// Memory for the sums of `count` parts of every group, and tickets for `sets` sets of blocks; none for one part.
struct PartsRoom {
  Buffer<double> sums{};
  Parts parts{};

  PartsRoom(std::int64_t count, std::int64_t groups, std::int64_t sets, Queue& queue) {
    if (count == 1) return;
    sums = Buffer<double>(static_cast<std::size_t>(2 * count * groups), queue, Fill::none);
    parts = {reinterpret_cast<double2*>(sums.data()), tickets(queue, static_cast<std::size_t>(sets))};
  }
};

/// Blocks of a kernel that the queue's GPU runs at once.
template <class... Parameters>
std::int64_t resident_blocks(void (*kernel)(Parameters...), Queue& queue) {
  const DeviceGuard guard(queue.device().index);
  int per_processor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, block_threads, 0),
        "asking for a kernel's occupancy");
  return static_cast<std::int64_t>(per_processor) * properties_of(queue).multiProcessorCount;
}

/// Of `wanted` blocks those that the task's extra block leaves, so that it does not begin a second wave.
template <class Task>
std::int64_t blocks_left(const Task& task, std::int64_t wanted) {
  return max_of(1, wanted - task.has_extra());
}

template <class Task, int n, bool whole>
void reduce_by_columns(const Task& task, const Partition& p, Queue& queue) {
  const auto kernel = reduce_columns<Task, n, whole>;
  static const std::int64_t wanted = resident_blocks(kernel, queue);  // asking takes as long as a small kernel
  const ColumnPlan plan = plan_columns(p, n, blocks_left(task, wanted));
  const PartsRoom room(plan.parts, p.groups(), plan.matrices * plan.tiles, queue);
  launch(queue, plan.blocks + task.has_extra(), block_threads,
         static_cast<std::size_t>(plan.shared_doubles()) * sizeof(double), kernel, task, plan, room.parts);
}

template <class Task, int n, bool whole>
void reduce_by_runs(const Task& task, const Partition& p, Queue& queue) {
  const auto kernel = reduce_runs<Task, n, whole>;
  static const std::int64_t wanted = resident_blocks(kernel, queue);
  const RunPlan plan = plan_runs(p, n, blocks_left(task, wanted));
  const PartsRoom room(plan.parts, p.groups(), p.groups(), queue);
  constexpr std::size_t doubles = 2 * block_threads / warp_threads + 2;
  launch(queue, plan.blocks + task.has_extra(), block_threads, doubles * sizeof(double), kernel, task, plan,
         room.parts);
}

/// Reduces a canonical partition. `task.aligned()`: its arrays can be read in vectors.
template <class Task>
void reduce(const Task& task, const Partition& p, Queue& queue) {
  constexpr int width = vector_width<typename Task::T>;
  if (p.elements() > 0 && by_columns(p)) {
    if (task.aligned() && p.keep1 * p.reduce1 % width == 0)
      reduce_by_columns<Task, width, true>(task, p, queue);
    else
      reduce_by_columns<Task, 1, false>(task, p, queue);
  } else if (p.elements() > 0 && task.aligned() && p.reduce1 % width == 0) {
    reduce_by_runs<Task, width, true>(task, p, queue);
  } else {
    reduce_by_runs<Task, 1, false>(task, p, queue);
  }
}

}  // namespace allnorm::cuda
