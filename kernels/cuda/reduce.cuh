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
#include "kernels/cuda/sums.cuh"

namespace allnorm::cuda {

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

// ---- run by run ----------------------------------------------------------------------------------------------------

template <class Task, int n, bool whole>
__global__ void __launch_bounds__(block_threads) reduce_runs(Task task, RunPlan plan, Parts parts) {
  double* room = dynamic_shared<double>();  // 2 doubles per warp, and one
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
  double middle = 0;
  Sums own = team_sums<Task>(thread, pivot, plan.lanes, room, middle);
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

template <class Task, int n, bool whole>
__global__ void __launch_bounds__(block_threads) reduce_columns(Task task, ColumnPlan plan, Parts parts) {
  const TileRoom room(dynamic_shared<double>(), plan, n);
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
    if (g < groups) room.pivots[g] = own_pivots[k];
  });
  __syncthreads();
  const auto pivot_of = [&](int j) { return works ? room.pivots[plan.group_of(column + j)] : 0; };
  tile_sums<Task, n>(thread, plan, row, column, pivot_of, room);
  auto count = static_cast<double>(unit.rows * plan.group_width);
  const auto finish = [&](std::int64_t g, const Sums& total) {
    task.finish(first_group + g, count, total, room.pivots[g]);
  };
  const std::int64_t stride = plan.matrices * plan.matrix_groups;
  for (std::int64_t g = t; g < groups; g += block_threads) {
    Sums total{room.totals[g], room.seconds[g]};
    if constexpr (Task::centred)
      total.second = about_mean(total.second, total.sum, count, room.middles[g * plan.group_width]);
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
      room.values[t] = own.sum;
      room.values[block_threads + t] = own.second;
    }
    __syncthreads();
    for (std::int64_t rest = lanes; rest > 1;) {
      const std::int64_t half = (rest + 1) / 2;
      if (lane + half < rest) {
        room.values[t] += room.values[half * some + t];
        room.values[block_threads + t] += room.values[block_threads + half * some + t];
      }
      rest = half;
      __syncthreads();
    }
    if (lane == 0) {
      Sums total{room.values[t], room.values[block_threads + t]};
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
