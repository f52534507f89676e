// How a fused call walks a tensor. A layout cuts it into units, each summed by a team: a block, or a warp of it. Its
// members say where a thread's vectors lie, how a team's sums become those of a part of a group, and which coefficients
// a thread's values take.
#pragma once

#include <cstdint>

#include "kernels/cuda/sums.cuh"

namespace allnorm::cuda {

/// One thread's way over its part of a unit, there and back: runs of `per_run` vectors `step` apart, and `turn` more
/// from one run to the next.
struct FusedWalk {
  std::int64_t at = 0, count = 0;  // offset in memory; vectors in all
  std::int64_t step = 0, turn = 0, per_run = 1, in_run = 0;

  __device__ void next() {
    at += step;
    if (++in_run < per_run) return;
    in_run = 0;
    at += turn;
  }
  __device__ void back() {
    if (in_run == 0) {
      in_run = per_run;
      at -= turn;
    }
    --in_run;
    at -= step;
  }
  /// From the first vector to the last.
  __device__ void to_last() {
    at += (count - 1) * step + (count / per_run - 1) * turn;
    in_run = per_run - 1;
  }
};

template <int n>
struct FusedRuns {
  RunPlan plan{};

  std::int64_t blocks() const { return plan.blocks; }
  std::int64_t shared_doubles() const { return 2 * block_threads / warp_threads + 2; }
  /// The most vectors that a thread has of one unit.
  std::int64_t most_of_unit() const {
    const std::int64_t down = plan.lanes / plan.across;
    return ceil_div(plan.part_length, std::int64_t{plan.across} * n) * ceil_div(plan.part_runs, down);
  }
  ALLNORM_HOST_DEVICE int teams() const { return block_threads / plan.lanes; }
  ALLNORM_HOST_DEVICE std::int64_t units() const { return plan.units(); }
  ALLNORM_HOST_DEVICE std::int64_t groups() const { return plan.p.groups(); }
  ALLNORM_HOST_DEVICE std::int64_t parts() const { return plan.parts; }
  __device__ std::int64_t first_of(std::int64_t group) const { return plan.first_of(group); }
  ALLNORM_HOST_DEVICE double group_count() const { return static_cast<double>(plan.p.group_size()); }
  /// Values of a group in one of its parts.
  __device__ double count_of(std::int64_t group, std::int64_t part) const {
    return static_cast<double>(plan.part(group, part).values());
  }
  __device__ FusedWalk walk(std::int64_t unit) const {
    const RunPlan::Part part = plan.part(unit / plan.parts, unit % plan.parts);
    const int lane = static_cast<int>(threadIdx.x) % plan.lanes, down = plan.lanes / plan.across;
    const std::int64_t first = static_cast<std::int64_t>(lane % plan.across) * n, run = lane / plan.across;
    FusedWalk w;
    w.step = static_cast<std::int64_t>(plan.across) * n;
    w.at = part.offset + run * plan.stride() + first;
    if (first >= part.length || run >= part.runs) return w;
    w.per_run = ceil_div(part.length - first, w.step);
    w.turn = down * plan.stride() - w.per_run * w.step;
    w.count = w.per_run * ceil_div(part.runs - run, down);
    return w;
  }
  template <class Thread, class Task>
  __device__ void begin(Thread& thread, const Task& task, std::int64_t unit, std::int64_t at) const {
    thread.begin_run(task, unit / plan.parts, at);
  }
  /// Adds up the team's sums and leaves them in sums (parts, groups). `shared`: shared_doubles() doubles.
  template <class Thread, class Task>
  __device__ void leave(const Thread& thread, const Task& task, std::int64_t unit, double* shared,
                        double2* sums) const {
    const std::int64_t group = unit / plan.parts, index = unit % plan.parts;
    const int lane = static_cast<int>(threadIdx.x) % plan.lanes;
    double middle = 0;
    Sums own = team_sums<Task>(thread, task.pivot(group, plan.first_of(group)), plan.lanes, shared, middle);
    if constexpr (Task::centred) own.second = about_mean(own.second, own.sum, count_of(group, index), middle);
    if (lane == 0) sums[index * groups() + group] = make_double2(own.sum, own.second);
  }
  /// Calls f(k) with k(e) the coefficients of value e of this thread's vectors.
  template <class K, class F>
  __device__ __forceinline__ void with_coefficients(const K* table, std::int64_t unit, const F& f) const {
    const K k = table[unit / plan.parts];
    f([&](int) { return k; });
  }
};

template <int n>
struct FusedColumns {
  ColumnPlan plan{};

  std::int64_t blocks() const { return plan.blocks; }
  std::int64_t shared_doubles() const { return plan.shared_doubles(); }
  std::int64_t most_of_unit() const { return ceil_div(plan.part_rows, plan.down); }
  ALLNORM_HOST_DEVICE int teams() const { return 1; }
  ALLNORM_HOST_DEVICE std::int64_t units() const { return plan.blocks; }
  ALLNORM_HOST_DEVICE std::int64_t groups() const { return plan.matrices * plan.matrix_groups; }
  ALLNORM_HOST_DEVICE std::int64_t parts() const { return plan.parts; }
  __device__ std::int64_t first_of(std::int64_t group) const {
    return plan.first_of(group / plan.matrix_groups, group % plan.matrix_groups * plan.group_width);
  }
  ALLNORM_HOST_DEVICE double group_count() const { return static_cast<double>(plan.rows * plan.group_width); }
  __device__ double count_of(std::int64_t, std::int64_t part) const {
    return static_cast<double>(plan.rows_of(part) * plan.group_width);
  }
  __device__ int row() const { return static_cast<int>(threadIdx.x) / plan.across; }
  /// This thread's first column in the tile.
  __device__ std::int64_t column() const { return static_cast<std::int64_t>(threadIdx.x % plan.across) * n; }
  __device__ FusedWalk walk(std::int64_t unit) const {
    const ColumnPlan::Unit u = plan.unit(unit);
    FusedWalk w;
    w.step = plan.down * plan.width;
    w.at = (u.matrix * plan.rows + u.row + row()) * plan.width + u.column + column();
    if (row() < plan.down && column() < u.columns && row() < u.rows)
      w.count = w.per_run = ceil_div(u.rows - row(), plan.down);
    return w;
  }
  template <class Thread, class Task>
  __device__ void begin(Thread& thread, const Task& task, std::int64_t unit, std::int64_t at) const {
    const ColumnPlan::Unit u = plan.unit(unit);
    thread.template begin_columns<true>(task, plan, u.matrix, u.column + column(), at);
  }
  template <class Thread, class Task>
  __device__ void leave(const Thread& thread, const Task& task, std::int64_t unit, double* shared,
                        double2* sums) const {
    const TileRoom room(shared, plan, n);
    const ColumnPlan::Unit u = plan.unit(unit);
    const bool works = row() < plan.down && column() < u.columns;
    const auto pivot_of = [&](int j) {
      const std::int64_t c = u.column + column() + j;
      return works ? task.pivot(plan.group_of(u.matrix, c), plan.first_of(u.matrix, c)) : 0;
    };
    tile_sums<Task, n>(thread, plan, row(), column(), pivot_of, room);
    const std::int64_t first_group = plan.group_of(u.matrix, u.column), in_tile = plan.group_of(u.columns);
    for (std::int64_t g = threadIdx.x; g < in_tile; g += block_threads) {
      Sums total{room.totals[g], room.seconds[g]};
      if constexpr (Task::centred)
        total.second =
            about_mean(total.second, total.sum, count_of(first_group + g, u.part), room.middles[g * plan.group_width]);
      sums[u.part * groups() + first_group + g] = make_double2(total.sum, total.second);
    }
    __syncthreads();  // the next unit may overwrite the middles
  }
  template <class K, class F>
  __device__ __forceinline__ void with_coefficients(const K* table, std::int64_t unit, const F& f) const {
    const ColumnPlan::Unit u = plan.unit(unit);
    K k[n] = {};
    if (column() < u.columns)
      for (int e = 0; e < n; ++e) k[e] = table[plan.group_of(u.matrix, u.column + column() + e)];
    f([&](int e) { return k[e]; });
  }
};

}  // namespace allnorm::cuda
