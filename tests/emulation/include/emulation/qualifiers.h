// CUDA's qualifiers as g++ can read them. They are macros because CUDA's are.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
/// One block at a time runs on an OS thread, all of its threads on that one: so the block's shared variables are the
/// OS thread's.
#define __shared__ static thread_local
