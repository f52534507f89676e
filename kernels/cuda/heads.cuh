// The heads of an exchange, looked at by the threads of a block together.
#pragma once

#include <cuda_runtime.h>

#include "kernels/heads.hpp"

namespace allnorm::cuda {

using steps::Heads, steps::Verdict;

/// Whether there is a fault, for all threads of the block, which call it together.
__device__ inline bool any_fault(const Heads& heads) {
  bool fault = false;
  for (int rank = static_cast<int>(threadIdx.x); heads.given() && rank < heads.gathered.ranks;
       rank += static_cast<int>(blockDim.x))
    fault |= heads.is_faulty(rank);
  return __syncthreads_or(fault) != 0;
}

}  // namespace allnorm::cuda
