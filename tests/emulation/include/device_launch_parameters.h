// threadIdx, blockIdx, blockDim, gridDim and warpSize, set by the emulation for each thread of a kernel.
#pragma once

#include "vector_types.h"

extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local uint3 blockDim;  // dim3 on a GPU: x, y and z are what kernels read of either
extern constinit thread_local uint3 gridDim;
inline constexpr int warpSize = 32;
