// Teams of threads that share a row: a warp, of which a block has several, or a whole block. Sums over a team have one
// order, whatever runs first.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/launch.cuh"

namespace allnorm::cuda {

constexpr unsigned all_lanes = 0xffffffffu;

/// Two sums that are taken together.
struct SumPair {
  double a = 0, b = 0;
};

/// How a block is cut into teams, and a thread's place in them.
struct TeamShape {
  int threads = warp_threads, teams = 1;  // of a team, of a block

  int block_threads() const { return threads * teams; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % threads; }
  /// The team's place among all teams of the grid.
  __device__ std::int64_t place() const {
    return static_cast<std::int64_t>(blockIdx.x) * teams + static_cast<int>(threadIdx.x) / threads;
  }
};

/// A warp per row of `values` values, `width` of them a load, while that leaves each thread few loads; else a block.
inline TeamShape team_for(std::int64_t values, int width, int most_threads = 512) {
  constexpr int loads = 8, warps = 4;
  TeamShape shape;
  if (values <= loads * width * warp_threads) {
    shape.teams = warps;
    return shape;
  }
  while (shape.threads < most_threads && values > loads / 2 * width * shape.threads) shape.threads *= 2;
  return shape;
}

/// The sums over the team's threads, in every thread. All threads of the block call it together.
__device__ inline SumPair team_sum(SumPair sum, const TeamShape& team) {
  for (int lane = warp_threads / 2; lane > 0; lane /= 2) {
    sum.a += __shfl_xor_sync(all_lanes, sum.a, lane);
    sum.b += __shfl_xor_sync(all_lanes, sum.b, lane);
  }
  ALLNORM_SHARED(of_warps, double[2 * warp_threads]);
  if (team.threads == warp_threads) return sum;
  const int warp = static_cast<int>(threadIdx.x) / warp_threads, warps = team.threads / warp_threads;
  const int first = warp / warps * warps;  // of the team
  if (threadIdx.x % warp_threads == 0) {
    of_warps[2 * warp] = sum.a;
    of_warps[2 * warp + 1] = sum.b;
  }
  __syncthreads();
  sum = {};
  for (int w = first; w < first + warps; ++w) {
    sum.a += of_warps[2 * w];
    sum.b += of_warps[2 * w + 1];
  }
  __syncthreads();  // the next sum may overwrite them
  return sum;
}
__device__ inline double team_sum(double sum, const TeamShape& team) { return team_sum(SumPair{sum, 0}, team).a; }

}  // namespace allnorm::cuda
