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

#include "kernels/cuda/fused.hpp"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/reduce.cuh"

namespace allnorm::cuda {

// ---- the kernel ----------------------------------------------------------------------------------------------------

/// The vectors that a block keeps: (items, tensors, threads), so that neighbouring threads use neighbouring banks.
template <class T, int n, int tensors>
struct FusedKept {
  Vector<T, n>* vectors;
  int items;  // that each thread may keep

  __device__ Vector<T, n>& place(int item, int tensor) const {
    return vectors[(item * tensors + tensor) * block_threads + static_cast<int>(threadIdx.x)];
  }
  __device__ __forceinline__ void put(int item, int tensor, const Vector<T, n>& v) const { place(item, tensor) = v; }
  __device__ __forceinline__ Vector<T, n> get(int item, int tensor) const {
    return read_vector<n>(reinterpret_cast<const T*>(&place(item, tensor)));
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

/// Keeps what a thread reads, as far as there is room.
template <class Work, class Kept>
struct Keeping {
  const Work& work;
  const Kept& kept;
  int read = 0;  // vectors

  __device__ Hint hint(int batch) const {
    return read + batch <= kept.items ? Hint::last : Hint::keep;  // kept here, it need not stay in caches
  }
  template <class Item, int batch>
  __device__ __forceinline__ void operator()(const Item (&items)[batch], int some) {
    unrolled<batch>([&](auto u) {
      if (u < some && read + u < kept.items) work.keep(items[u], kept, read + u);
    });
    read += some;
  }
};

/// The sums of a group from those of its parts, in every lane of a warp. They are this rank's: in a job of several
/// ranks that reach each other's memory, what follows between this and the group's steps is their exchange.
template <class Task, class Layout>
__device__ Sums group_sums(const Layout& layout, const double2* sums, std::int64_t group) {
  const auto lane = static_cast<std::int64_t>(threadIdx.x % warp_threads);
  const auto count_of = [&](std::int64_t i) { return layout.count_of(i); };
  double middle = 0;
  if constexpr (Task::centred) middle = __ldcg(sums + group).x / count_of(0);
  Sums total =
      joined<Task::centred>(sums + group, layout.groups(), lane, warp_threads, layout.plan.parts, middle, count_of);
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
  constexpr int n = Work::n;
  auto* shared = dynamic_shared<unsigned char>();
  const FusedKept<typename Work::T, n, Work::tensors> kept{
      reinterpret_cast<Vector<typename Work::T, n>*>(shared + room.kept_from), room.items};
  const auto grid = cooperative_groups::this_grid();
  const std::int64_t teams = layout.teams(), team_of_block = threadIdx.x / (block_threads / teams);
  const std::int64_t first_unit = blockIdx.x * teams + team_of_block, stride = gridDim.x * teams;

  std::int64_t unit = first_unit;
  Keeping<Work, decltype(kept)> keeping{work, kept};
  for (; unit < layout.units(); unit += stride)
    layout.template sum_up<Task::columns_batch, true>(
        work.task, unit, reinterpret_cast<double*>(shared), keeping,
        [&](std::int64_t group, std::int64_t part, const Sums& sums, double) {
          room.sums[part * layout.groups() + group] = make_double2(sums.sum, sums.second);
        });
  int read = keeping.read;
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
    auto walk = layout.walk(unit);
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
    const auto even =
        static_cast<double>(plan.plan.blocks) / static_cast<double>(ceil_div(plan.plan.blocks, blocks) * blocks);
    if (even > evenness) {
      best = plan;
      evenness = even;
    }
    if (evenness >= nearly) break;
  }
  return best;
}

template <class Work, class Layout>
void launch_fused(Work work, const Layout& layout, Queue& queue) {
  using Coefficients = typename Work::Coefficients;
  using Kept = Vector<typename Work::T, Work::n>;
  const auto kernel = fused_kernel<Work, Layout>;
  const std::int64_t blocks = std::min(layout.plan.blocks, fused_blocks(queue));
  constexpr auto item = static_cast<std::int64_t>(Work::tensors * block_threads * sizeof(Kept));  // bytes
  FusedRoom<Coefficients> room;
  room.kept_from = ceil_div(layout.shared_doubles(), 2) * 2 * static_cast<std::int64_t>(sizeof(double));
  const auto most_bytes = static_cast<std::int64_t>(most_shared(reinterpret_cast<const void*>(kernel), queue));
  const std::int64_t needed = ceil_div(layout.units(), blocks * layout.teams()) * layout.plan.most_of_unit();
  room.items = static_cast<int>(std::min(needed, (most_bytes - room.kept_from) / item));
  const auto shared = static_cast<std::size_t>(room.kept_from + room.items * item);
  if (room.items < needed) work.map.hint = Hint::last;  // results must not drive out what is to be read again

  const auto sums_bytes = static_cast<std::size_t>(layout.plan.parts * layout.groups()) * sizeof(double2);
  const auto table_bytes = static_cast<std::size_t>(layout.groups()) * sizeof(Coefficients);
  Buffer<std::byte> memory(sums_bytes + table_bytes, queue, Fill::none);
  room.sums = reinterpret_cast<double2*>(memory.data());
  room.table = reinterpret_cast<Coefficients*>(memory.data() + sums_bytes);
  launch<true>(queue, blocks, block_threads, shared, kernel, work, layout, room);
}

/// Runs `work` over a partition that is not empty; Work::n divides its runs, or its rows where they are columns.
template <class Work>
void run_fused(const Work& work, const Partition& p, Queue& queue) {
  constexpr int n = Work::n;
  const std::int64_t blocks = fused_blocks(queue);
  if (by_columns(p))
    launch_fused(work, even_plan(blocks, [&](auto wanted) { return Columns<n>::of(p, wanted); }), queue);
  else
    launch_fused(work, even_plan(blocks, [&](auto wanted) { return Runs<n>::of(p, wanted); }), queue);
}

}  // namespace allnorm::cuda
