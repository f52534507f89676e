// Teams of threads that share a group: a warp, of which a block has several, or a whole block. Sums over a team have
// one order, whatever runs first.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sums.cuh"

namespace allnorm::cuda {

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

/// A warp per group of `values` values, `width` of them a load, while that leaves each thread few loads; else a block.
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

/// All threads of a team have come here, and see what the others wrote.
__device__ inline void team_sync(const TeamShape& team) {
  if (team.threads == warp_threads)
    __syncwarp();
  else
    __syncthreads();
}

/// The sums over the team's threads, in every thread. All threads of the block call it together.
__device__ inline Sums team_sum(Sums own, const TeamShape& team) {
  own = {warp_sum(own.sum), warp_sum(own.second)};
  ALLNORM_SHARED(of_warps, double[2 * warp_threads]);
  if (team.threads == warp_threads) return own;
  const int warp = static_cast<int>(threadIdx.x) / warp_threads, warps = team.threads / warp_threads;
  const int first = warp / warps * warps;  // of the team
  if (threadIdx.x % warp_threads == 0) {
    of_warps[2 * warp] = own.sum;
    of_warps[2 * warp + 1] = own.second;
  }
  __syncthreads();
  own = {};
  for (int w = first; w < first + warps; ++w) own.add(Sums{of_warps[2 * w], of_warps[2 * w + 1]});
  __syncthreads();  // the next sum may overwrite them
  return own;
}
__device__ inline double team_sum(double sum, const TeamShape& team) { return team_sum(Sums{sum, 0}, team).sum; }

}  // namespace allnorm::cuda
