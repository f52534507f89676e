// The two ways in which a grid walks a tensor, for reductions and for fused calls. A layout cuts it into units, each
// summed by a team: a block, or a warp of it. Its members say where a thread's vectors lie, how a team sums up a unit,
// which is a part of one group or of several, how the parts of a group are joined, and which coefficients a thread's
// values take.
#pragma once

#include <cstdint>

#include "kernels/cuda/sums.cuh"

namespace allnorm::cuda {

/// Reads all of a walk, `batch` vectors at a time, and lets the thread add them; items beyond a count add nothing.
/// seen.hint(batch) says what the caches are told of the next batch, and seen(items, count) gets it.
template <int n, int batch, bool whole, class Walk, class Thread, class Task, class Seen>
__device__ __forceinline__ void read_all(Walk& walk, Thread& thread, const Task& task, Seen& seen) {
  using Item = typename Task::template Item<n>;
  std::int64_t left = walk.count;
  if constexpr (Walk::straight) {
    for (; left >= batch; left -= batch) {
      const Hint hint = seen.hint(batch);
      Item items[batch];
      unrolled<batch>([&](auto u) {
        items[u] = task.template read<n, whole>(walk.at, hint);
        walk.next();
      });
      seen(items, batch);
      thread.template add<batch>(task, items, batch);
    }
  }
  const auto filler = thread.filler();
  for (; left > 0; left -= batch) {
    const int some = left < batch ? static_cast<int>(left) : batch;
    const Hint hint = seen.hint(batch);
    Item items[batch];
    unrolled<batch>([&](auto u) {
      items[u] = u < some ? task.template read<n, whole>(walk.at, hint) : filler;
      walk.next();
    });
    seen(items, some);
    thread.template add<batch>(task, items, some);
  }
}

// ---- run by run ----------------------------------------------------------------------------------------------------

template <int width>
struct Runs {
  static constexpr int n = width;
  template <class Task>
  static constexpr int batch = runs_batch;
  RunPlan plan{};

  static Runs of(const Partition& p, std::int64_t wanted) { return {plan_runs(p, n, wanted)}; }
  std::int64_t shared_doubles() const { return 2 * block_threads / warp_threads + 2; }
  /// Sets of blocks that sum the same groups, and a unit's.
  std::int64_t sets() const { return groups(); }
  __device__ std::int64_t set_of(std::int64_t unit) const { return unit / plan.parts; }
  ALLNORM_HOST_DEVICE int teams() const { return block_threads / plan.lanes; }
  ALLNORM_HOST_DEVICE std::int64_t units() const { return plan.units(); }
  ALLNORM_HOST_DEVICE std::int64_t groups() const { return plan.p.groups(); }
  ALLNORM_HOST_DEVICE double group_count() const { return static_cast<double>(plan.p.group_size()); }
  __device__ std::int64_t first_of(std::int64_t group) const { return plan.first_of(group); }
  /// Values of a group in one of its parts.
  __device__ double count_of(std::int64_t part) const { return static_cast<double>(plan.values_of(part)); }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % plan.lanes; }
  __device__ RunWalk walk(std::int64_t unit) const {
    return plan.walk(plan.part(unit / plan.parts, unit % plan.parts), lane());
  }

  /// emit(group, part, sums, pivot) by one thread. `room`: shared_doubles() doubles.
  template <int batch, bool whole, class Task, class Seen, class Emit>
  __device__ __forceinline__ void sum_up(const Task& task, std::int64_t unit, double* room, Seen& seen,
                                         const Emit& emit) const {
    const std::int64_t group = unit / plan.parts, index = unit % plan.parts;
    const RunPlan::Part part = plan.part(group, index);
    const double pivot = part.values() > 0 ? task.pivot(group, plan.first_of(group)) : 0;
    typename Task::template Thread<n> thread;
    if (RunWalk walk = plan.walk(part, lane()); walk.count > 0) {
      thread.begin_run(task, group, walk.at);
      read_all<n, batch, whole>(walk, thread, task, seen);
    }
    double middle = 0;
    Sums own = team_sums<Task>(thread, pivot, plan.lanes, room, middle);
    if constexpr (Task::centred)
      if (part.values() > 0) own.second = about_mean(own.second, own.sum, static_cast<double>(part.values()), middle);
    if (lane() == 0) emit(group, index, own, pivot);
  }
  /// Joins the parts of the unit's group, by all threads of a block: emit(group, sums, pivot) by one.
  template <class Task, class Emit>
  __device__ void join(const Task& task, std::int64_t unit, const double2* sums, double* room, const Emit& emit) const {
    const std::int64_t group = unit / plan.parts;
    const auto of_part = [this](std::int64_t i) { return count_of(i); };
    const double middle = __ldcg(sums + group).x / of_part(0);
    Sums own = joined<Task::centred>(sums + group, groups(), lane(), block_threads, plan.parts, middle, of_part);
    own = lanes_sum(own, block_threads, room);
    if constexpr (Task::centred) own.second = about_mean(own.second, own.sum, group_count(), middle);
    if (lane() == 0) emit(group, own, task.pivot(group, plan.first_of(group)));
  }
  /// Calls f(k) with k(e) the coefficients of value e of this thread's vectors.
  template <class K, class F>
  __device__ __forceinline__ void with_coefficients(const K* table, std::int64_t unit, const F& f) const {
    const K k = table[unit / plan.parts];
    f([&](int) { return k; });
  }
};

// ---- column by column ----------------------------------------------------------------------------------------------

template <int width>
struct Columns {
  static constexpr int n = width;
  template <class Task>
  static constexpr int batch = Task::columns_batch;
  ColumnPlan plan{};

  static Columns of(const Partition& p, std::int64_t wanted) { return {plan_columns(p, n, wanted)}; }
  std::int64_t shared_doubles() const { return plan.shared_doubles(); }
  std::int64_t sets() const { return plan.matrices * plan.tiles; }
  __device__ std::int64_t set_of(std::int64_t unit) const {
    return unit / plan.tiles / plan.parts * plan.tiles + unit % plan.tiles;
  }
  ALLNORM_HOST_DEVICE int teams() const { return 1; }
  ALLNORM_HOST_DEVICE std::int64_t units() const { return plan.blocks; }
  ALLNORM_HOST_DEVICE std::int64_t groups() const { return plan.matrices * plan.matrix_groups; }
  ALLNORM_HOST_DEVICE double group_count() const { return static_cast<double>(plan.rows * plan.group_width); }
  __device__ std::int64_t first_of(std::int64_t group) const {
    return plan.first_of(group / plan.matrix_groups, group % plan.matrix_groups * plan.group_width);
  }
  __device__ double count_of(std::int64_t part) const {
    return static_cast<double>(plan.rows_of(part) * plan.group_width);
  }
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ ColumnWalk walk(std::int64_t unit) const { return plan.walk(plan.unit(unit), thread()); }

  /// For every group of the unit's tile; begins and ends with a barrier, as units may follow each other.
  template <int batch, bool whole, class Task, class Seen, class Emit>
  __device__ __forceinline__ void sum_up(const Task& task, std::int64_t index, double* shared, Seen& seen,
                                         const Emit& emit) const {
    const TileRoom room(shared, plan);
    const ColumnPlan::Unit unit = plan.unit(index);
    const std::int64_t column = plan.column(thread()), in_tile = plan.group_of(unit.columns),
                       first_group = plan.group_of(unit.matrix, unit.column);
    // the groups' pivots: under way while the rows are read, then in shared memory
    constexpr auto pivots_each = static_cast<int>(ceil_div(n * tile_maximum, block_threads));
    double own_pivots[pivots_each];
    unrolled<pivots_each>([&](auto k) {
      const std::int64_t g = thread() + k * block_threads;
      own_pivots[k] =
          g < in_tile ? task.pivot(first_group + g, plan.first_of(unit.matrix, unit.column + g * plan.group_width)) : 0;
    });
    typename Task::template Thread<n> sums;
    if (ColumnWalk walk = plan.walk(unit, thread()); walk.count > 0) {
      sums.template begin_columns<whole>(task, plan, unit.matrix, unit.column + column, walk.at);
      read_all<n, batch, whole>(walk, sums, task, seen);
    }
    __syncthreads();
    unrolled<pivots_each>([&](auto k) {
      if (const std::int64_t g = thread() + k * block_threads; g < in_tile) room.pivots[g] = own_pivots[k];
    });
    __syncthreads();
    const bool works = plan.works(unit, thread());
    const auto pivot_of = [&](int j) { return works ? room.pivots[plan.group_of(column + j)] : 0; };
    tile_sums<Task, n>(sums, plan, plan.row(thread()), column, pivot_of, room);
    for (std::int64_t g = thread(); g < in_tile; g += block_threads) {
      Sums total{room.totals[g], room.seconds[g]};
      if constexpr (Task::centred)
        total.second = about_mean(total.second, total.sum, count_of(unit.part), room.middles[g * plan.group_width]);
      emit(first_group + g, unit.part, total, room.pivots[g]);
    }
  }
  /// As many threads per group as there are, each for some of the parts.
  template <class Task, class Emit>
  __device__ void join(const Task&, std::int64_t index, const double2* all, double* shared, const Emit& emit) const {
    const TileRoom room(shared, plan);
    const ColumnPlan::Unit unit = plan.unit(index);
    const std::int64_t in_tile = plan.group_of(unit.columns), first_group = plan.group_of(unit.matrix, unit.column);
    const auto of_part = [this](std::int64_t i) { return count_of(i); };
    for (std::int64_t begin = 0; begin < in_tile; begin += block_threads) {
      const std::int64_t some = min_of(block_threads, in_tile - begin),
                         lanes = min_of(block_threads / some, plan.parts);
      const std::int64_t g = begin + thread() % some, lane = thread() / some;
      const double2* sums = all + first_group + g;
      const double center = Task::centred ? __ldcg(sums).x / of_part(0) : 0;
      double *const first = room.values + thread(), *const second = first + block_threads;
      __syncthreads();
      if (lane < lanes) {
        const Sums own = joined<Task::centred>(sums, groups(), lane, lanes, plan.parts, center, of_part);
        *first = own.sum;
        *second = own.second;
      }
      __syncthreads();
      for (std::int64_t rest = lanes; rest > 1;) {
        const std::int64_t half = (rest + 1) / 2;
        if (lane + half < rest) {
          *first += first[half * some];
          *second += second[half * some];
        }
        rest = half;
        __syncthreads();
      }
      if (lane != 0) continue;
      Sums total{*first, *second};
      if constexpr (Task::centred) total.second = about_mean(total.second, total.sum, group_count(), center);
      emit(first_group + g, total, room.pivots[g]);
    }
  }
  template <class K, class F>
  __device__ __forceinline__ void with_coefficients(const K* table, std::int64_t index, const F& f) const {
    const ColumnPlan::Unit unit = plan.unit(index);
    const std::int64_t column = plan.column(thread());
    K k[n] = {};
    if (column < unit.columns)
      for (int e = 0; e < n; ++e) k[e] = table[plan.group_of(unit.matrix, unit.column + column + e)];
    f([&](int e) { return k[e]; });
  }
};

}  // namespace allnorm::cuda
