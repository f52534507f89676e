// Every reduction over a partition. A Task says what a thread adds up per value (two sums, in double)
// and what becomes of a group's sums; parts of a group that several blocks have summed are joined by the last of them,
// in the order of the parts.
//
// A Task has the element type T and
//   centred                  whether the second sum is of squares about the first's mean: parts join by Chan's formula
//   Thread<n>                a thread's sums over n adjacent columns
//   Item<n>                  n adjacent values as read; a Thread's add() takes some, and ignores what exceeds `count`
//   read<n, whole>(at)       those at memory offset `at`; `whole`: in whole words
//   pivot(group, at)         what the sums of the group are about, whose first value is at `at`
//   finish(group, count, sums, pivot)   called by one thread per group
//   extra()                  called by one block more, where has_extra()
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/layouts.cuh"

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

/// A reduction keeps nothing of what it reads.
struct NothingSeen {
  __device__ Hint hint(int) const { return Hint::keep; }
  template <class Items>
  __device__ void operator()(const Items&, int) const {}
};

template <class Task, class Layout, bool whole>
__global__ void __launch_bounds__(block_threads)
    reduce_kernel(const __grid_constant__ Task task, const __grid_constant__ Layout layout, const Parts parts) {
  double* room = dynamic_shared<double>();
  std::int64_t block = blockIdx.x;
  if (task.has_extra()) {
    if (block == 0) return task.extra();
    --block;
  }
  const int teams = layout.teams();
  const std::int64_t unit = block * teams + static_cast<int>(threadIdx.x) / (block_threads / teams);
  if (unit >= layout.units()) return;  // the whole warp: a block holds more than one unit only where warps are units
  const NothingSeen nothing;
  layout.template sum_up<Layout::template batch<Task>, whole>(
      task, unit, room, nothing, [&](std::int64_t group, std::int64_t part, const Sums& sums, double pivot) {
        if (layout.plan.parts == 1)
          task.finish(group, layout.group_count(), sums, pivot);
        else
          parts.sums[part * layout.groups() + group] = make_double2(sums.sum, sums.second);
      });
  if (layout.plan.parts == 1) return;
  if (!last_to_come(parts.tickets + layout.set_of(unit), layout.plan.parts)) return;
  layout.join(task, unit, parts.sums, room, [&](std::int64_t group, const Sums& sums, double pivot) {
    task.finish(group, layout.group_count(), sums, pivot);
  });
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

template <bool whole, class Layout, class Task>
void reduce_by(const Task& task, const Partition& p, Queue& queue) {
  const auto kernel = reduce_kernel<Task, Layout, whole>;
  static const std::int64_t wanted = resident_blocks(kernel, block_threads, queue);
  // the task's extra block must not begin a second wave
  const Layout layout = Layout::of(p, max_of(1, wanted - task.has_extra()));
  const PartsRoom room(layout.plan.parts, layout.groups(), layout.sets(), queue);
  launch(queue, layout.plan.blocks + task.has_extra(), block_threads,
         static_cast<std::size_t>(layout.shared_doubles()) * sizeof(double), kernel, task, layout, room.parts);
}

/// Reduces a canonical partition. `task.aligned()`: its arrays can be read in vectors.
template <class Task>
void reduce(const Task& task, const Partition& p, Queue& queue) {
  constexpr int width = vector_width<typename Task::T>;
  const bool whole = p.elements() > 0 && task.aligned() && in_vectors(p, width);
  if (by_columns(p))
    whole ? reduce_by<true, Columns<width>>(task, p, queue) : reduce_by<false, Columns<1>>(task, p, queue);
  else
    whole ? reduce_by<true, Runs<width>>(task, p, queue) : reduce_by<false, Runs<1>>(task, p, queue);
}

}  // namespace allnorm::cuda
