// One cooperative launch for a whole call: every block sums its share of the tensor and keeps what it can of it on
// chip, the grid waits, the groups' steps are taken, the grid waits again, and every block maps its share. A thread
// reads the same vectors in both walks, so what it keeps needs no barrier; the second walk goes backwards, so that what
// was not kept is still in the L2 cache as far as possible.
//
// A Work says what is summed and mapped:
//   T, n, tensors          element, adjacent values per vector, tensors that are kept
//   task                   of reduce.cuh: what a thread sums, and what becomes of a group's sums
//   map                    of maps.cuh
//   keep(item, kept, i)    keeps what the task has read as the thread's item i
//   restored(at, kept, i)  what map.load(at) gives, from the kept item i
//   Coefficients           of the map, for one group
//   step(group)            takes the group's steps from what task.finish left, by one thread of the grid
//   end()                  called by one thread of the grid, after all steps
#pragma once

#include <cooperative_groups.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/map.cuh"
#include "kernels/cuda/reduce.cuh"

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

// ---- the two layouts -----------------------------------------------------------------------------------------------

// A layout cuts the tensor into units, each summed by a team: a block, or a warp of it.

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
    double& broadcast = shared[2 * block_threads / warp_threads];
    Sums own = thread.run_sums(task.pivot(group, plan.first_of(group)));
    if constexpr (Task::centred) {  // squares about the mean of the first thread's values
      const double mean = thread.run_mean(own.sum);
      double middle = 0;
      if (plan.lanes == warp_threads) {
        middle = __shfl_sync(0xffffffffu, mean, 0);
      } else {
        if (lane == 0) broadcast = mean;
        __syncthreads();
        middle = broadcast;
      }
      own.second += thread.run_spread(mean - middle);
      own = lanes_sum(own, plan.lanes, shared);
      own.second = about_mean(own.second, own.sum, count_of(group, index), middle);
    } else {
      own = lanes_sum(own, plan.lanes, shared);
    }
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
    double* totals = shared + max_of(2, n) * block_threads;  // (columns of a tile), of a group its first
    double* seconds = totals + plan.tile();                  // likewise
    double* middles = seconds + plan.tile();                 // (columns of a tile)
    const ColumnPlan::Unit u = plan.unit(unit);
    const bool works = row() < plan.down && column() < u.columns;
    double sum[n], second[n];
    for (int j = 0; j < n; ++j) {
      const std::int64_t c = u.column + column() + j;
      const double pivot = works ? task.pivot(plan.group_of(u.matrix, c), plan.first_of(u.matrix, c)) : 0;
      const Sums own = thread.column_sums(j, pivot);
      sum[j] = own.sum;
      second[j] = own.second;
    }
    if constexpr (Task::centred) {  // squares about the mean of the group's first column in the first row of threads
      if (row() == 0)
        for (int j = 0; j < n; ++j) middles[column() + j] = thread.column_mean(sum[j]);
      __syncthreads();
      for (int j = 0; j < n; ++j)
        second[j] += thread.column_spread(thread.column_mean(sum[j]) - middles[plan.first_column(column() + j)]);
    }
    tile_sum(plan, sum, row(), column(), shared, totals);
    tile_sum(plan, second, row(), column(), shared, seconds);
    const std::int64_t first_group = plan.group_of(u.matrix, u.column), in_tile = plan.group_of(u.columns);
    for (std::int64_t g = threadIdx.x; g < in_tile; g += block_threads) {
      Sums total{totals[g], seconds[g]};
      if constexpr (Task::centred)
        total.second =
            about_mean(total.second, total.sum, count_of(first_group + g, u.part), middles[g * plan.group_width]);
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

// ---- the kernel ----------------------------------------------------------------------------------------------------

/// The vectors that a block keeps: (items, tensors, threads), so that neighbouring threads use neighbouring banks.
template <class T, int n, int tensors>
struct FusedKept {
  Vector<T, n>* vectors;
  int items;  // that each thread may keep

  __device__ T* place(int item, int tensor) const {
    return reinterpret_cast<T*>(vectors + (item * tensors + tensor) * block_threads + static_cast<int>(threadIdx.x));
  }
  __device__ __forceinline__ void put(int item, int tensor, const Vector<T, n>& v) const {
    write_vector(place(item, tensor), v);
  }
  __device__ __forceinline__ Vector<T, n> get(int item, int tensor) const {
    return read_vector<n>(place(item, tensor));
  }
};

/// What the blocks share in global memory, and how the block's own memory is cut.
template <class Coefficients>
struct FusedRoom {
  double2* sums = nullptr;        // (parts, groups)
  Coefficients* table = nullptr;  // (groups)
  std::int64_t kept_from = 0;     // bytes
  int items = 0;                  // kept by every thread
};

/// The sums of a group from those of its parts, in every lane of a warp. They are this rank's: in a job of several
/// ranks that reach each other's memory, what follows between this and the group's steps is their exchange.
template <class Task, class Layout>
__device__ Sums group_sums(const Layout& layout, const double2* sums, std::int64_t group) {
  const auto lane = static_cast<std::int64_t>(threadIdx.x % warp_threads);
  const auto count_of = [&](std::int64_t i) { return layout.count_of(group, i); };
  double middle = 0;
  if constexpr (Task::centred) middle = __ldcg(sums + group).x / count_of(0);
  Sums total =
      joined<Task::centred>(sums + group, layout.groups(), lane, warp_threads, layout.parts(), middle, count_of);
  total = {warp_sum(total.sum), warp_sum(total.second)};
  if constexpr (Task::centred) total.second = about_mean(total.second, total.sum, layout.group_count(), middle);
  return total;
}

template <class Work, class Layout>
__global__ void __launch_bounds__(block_threads, 1)
    fused_kernel(const __grid_constant__ Work work, const __grid_constant__ Layout layout,
                 const FusedRoom<typename Work::Coefficients> room) {
  using Task = typename Work::Task;
  using Map = typename Work::Map;
  constexpr int n = Work::n, batch = Task::columns_batch;
  auto* shared = dynamic_shared<unsigned char>();
  const FusedKept<typename Work::T, n, Work::tensors> kept{
      reinterpret_cast<Vector<typename Work::T, n>*>(shared + room.kept_from), room.items};
  const auto grid = cooperative_groups::this_grid();
  const std::int64_t teams = layout.teams(), team_of_block = threadIdx.x / (block_threads / teams);
  const std::int64_t first_unit = blockIdx.x * teams + team_of_block, stride = gridDim.x * teams;

  std::int64_t unit = first_unit;
  int read = 0;  // vectors that this thread has read
  for (; unit < layout.units(); unit += stride) {
    typename Task::template Thread<n> thread;
    FusedWalk walk = layout.walk(unit);
    if (walk.count > 0) {
      layout.begin(thread, work.task, unit, walk.at);
      const auto filler = thread.filler();
      for (std::int64_t left = walk.count; left > 0; left -= batch) {
        const int some = static_cast<int>(min(left, static_cast<std::int64_t>(batch)));
        const Hint hint =
            read + batch <= kept.items ? Hint::last : Hint::keep;  // kept here, it need not stay in caches
        typename Task::template Item<n> items[batch];
        unrolled<batch>([&](auto u) {
          items[u] = u < some ? work.task.template read<n, true>(walk.at, hint) : filler;
          walk.next();
        });
        unrolled<batch>([&](auto u) {
          if (u < some && read + u < kept.items) work.keep(items[u], kept, read + u);
        });
        thread.template add<batch>(items, some);
        read += some;
      }
    }
    layout.leave(thread, work.task, unit, reinterpret_cast<double*>(shared), room.sums);
  }
  grid.sync();

  constexpr int warps = block_threads / warp_threads;
  const std::int64_t first = std::int64_t{threadIdx.x / warp_threads} * gridDim.x + blockIdx.x;
  for (std::int64_t group = first; group < layout.groups(); group += std::int64_t{warps} * gridDim.x) {
    const Sums sums = group_sums<Task>(layout, room.sums, group);
    if (threadIdx.x % warp_threads != 0) continue;
    work.task.finish(group, layout.group_count(), sums, work.task.pivot(group, layout.first_of(group)));
    room.table[group] = work.step(group);
  }
  grid.sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) work.end();

  for (unit -= stride; unit >= 0; unit -= stride) {
    FusedWalk walk = layout.walk(unit);
    if (walk.count == 0) continue;
    walk.to_last();
    layout.with_coefficients(room.table, unit, [&](const auto& k) {
      for (std::int64_t left = walk.count; left > 0; left -= map_unroll) {
        typename Map::Loaded loaded[map_unroll] = {};
        std::int64_t at[map_unroll] = {};
        unrolled<map_unroll>([&](auto u) {
          if (u >= left) return;
          at[u] = walk.at;
          const int item = read - 1 - u;
          loaded[u] = item < kept.items ? work.restored(walk.at, kept, item) : work.map.load(walk.at, n);
          walk.back();
        });
        unrolled<map_unroll>([&](auto u) {
          if (u < left) work.map.store(loaded[u], at[u], n, k);
        });
        read -= static_cast<int>(min(left, static_cast<std::int64_t>(map_unroll)));
      }
    });
  }
}

// ---- the launch ----------------------------------------------------------------------------------------------------

/// A plan for `blocks` blocks that leaves few of them idle in the last round: of some multiples of the blocks, the
/// first number of units that is nearly even (the bound is not measured), or else the most even one. make(wanted)
/// plans.
template <class Make>
auto even_plan(std::int64_t blocks, const Make& make) {
  constexpr double nearly = 0.94;
  auto best = make(blocks);
  double evenness = 0;
  for (const std::int64_t rounds : {1, 2, 4, 8}) {
    const auto plan = make(rounds * blocks);
    const auto even = static_cast<double>(plan.blocks) / static_cast<double>(ceil_div(plan.blocks, blocks) * blocks);
    if (even > evenness) {
      best = plan;
      evenness = even;
    }
    if (evenness >= nearly) break;
  }
  return best;
}

/// Blocks of a fused kernel that the GPU holds at once, each with all the shared memory that one may have.
template <class... Parameters>
std::int64_t cooperative_blocks(void (*kernel)(Parameters...), Queue& queue) {
  const DeviceGuard guard(queue.device().index);
  const cudaDeviceProp& device = properties_of(queue);
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(device.sharedMemPerBlockOptin)),
        "asking for shared memory");
  int per_processor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, block_threads,
                                                      device.sharedMemPerBlockOptin),
        "asking for a kernel's occupancy");
  return std::int64_t{per_processor} * device.multiProcessorCount;
}

/// As launch(), for a grid whose blocks wait for each other.
template <class... Parameters, class... Args>
void launch_cooperative(Queue& queue, std::int64_t blocks, int threads, std::size_t shared_bytes,
                        void (*kernel)(Parameters...), const Args&... args) {
  const DeviceGuard guard(queue.device().index);
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(properties_of(queue).sharedMemPerBlockOptin)),
        "asking for shared memory");
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_of(queue);
  config.attrs = &cooperative;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), "launching a cooperative kernel");
}

template <class Work, class Layout>
void launch_fused(Work work, const Layout& layout, std::int64_t most_blocks, Queue& queue) {
  using Coefficients = typename Work::Coefficients;
  using Kept = Vector<typename Work::T, Work::n>;
  const std::int64_t blocks = std::min(layout.blocks(), most_blocks);
  constexpr auto item = static_cast<std::int64_t>(Work::tensors * block_threads * sizeof(Kept));  // bytes
  FusedRoom<Coefficients> room;
  room.kept_from = ceil_div(layout.shared_doubles(), 2) * 2 * static_cast<std::int64_t>(sizeof(double));
  const auto most_bytes = static_cast<std::int64_t>(properties_of(queue).sharedMemPerBlockOptin);
  const std::int64_t needed = ceil_div(layout.units(), blocks * layout.teams()) * layout.most_of_unit();
  room.items = static_cast<int>(std::min(needed, (most_bytes - room.kept_from) / item));
  const auto shared = static_cast<std::size_t>(room.kept_from + room.items * item);
  if (room.items < needed) work.map.hint = Hint::last;  // results must not drive out what is to be read again

  const auto sums_bytes = static_cast<std::size_t>(layout.parts() * layout.groups()) * sizeof(double2);
  const auto table_bytes = static_cast<std::size_t>(layout.groups()) * sizeof(Coefficients);
  Buffer<std::byte> memory(sums_bytes + table_bytes, queue, Fill::none);
  room.sums = reinterpret_cast<double2*>(memory.data());
  room.table = reinterpret_cast<Coefficients*>(memory.data() + sums_bytes);
  launch_cooperative(queue, blocks, block_threads, shared, fused_kernel<Work, Layout>, work, layout, room);
}

/// Runs `work` over a partition that is not empty; Work::n divides its runs, or its rows where they are columns.
template <class Work>
void run_fused(const Work& work, const Partition& p, Queue& queue) {
  constexpr int n = Work::n;
  if (by_columns(p)) {
    static const std::int64_t blocks = cooperative_blocks(fused_kernel<Work, FusedColumns<n>>, queue);
    launch_fused(work, FusedColumns<n>{even_plan(blocks, [&](auto wanted) { return plan_columns(p, n, wanted); })},
                 blocks, queue);
  } else {
    static const std::int64_t blocks = cooperative_blocks(fused_kernel<Work, FusedRuns<n>>, queue);
    launch_fused(work, FusedRuns<n>{even_plan(blocks, [&](auto wanted) { return plan_runs(p, n, wanted); })}, blocks,
                 queue);
  }
}

/// Whether n adjacent values of a canonical partition are read at once.
constexpr bool in_vectors(const Partition& p, int n) noexcept {
  return by_columns(p) ? p.keep1 * p.reduce1 % n == 0 : p.reduce1 % n == 0;
}

}  // namespace allnorm::cuda
