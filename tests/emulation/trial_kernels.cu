// Small kernels that the emulation's tests run.
#include "trial_kernels.hpp"

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

namespace trial {
namespace {

#if defined(ALLNORM_CUDA_EMULATED)
#define TRIAL_SHARED ALLNORM_EMULATED_SHARED
#else
#define TRIAL_SHARED(name, ...) __shared__ std::type_identity_t<__VA_ARGS__> name
#endif

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(ALLNORM_CUDA_EMULATED)
  return static_cast<T*>(allnorm_emulated_dynamic_shared());
#else
  extern __shared__ double2 storage[];
  return reinterpret_cast<T*>(storage);
#endif
}

/// Sum over the block, in its first thread.
template <int threads>
__device__ double block_sum(double value) {
  TRIAL_SHARED(warps, double[threads / 32]);
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(step));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x < threads / 32 ? warps[threadIdx.x] : 0.0;
  if (threadIdx.x < 32)
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();
  return value;
}

template <int threads>
__global__ void __launch_bounds__(threads)
    sum_kernel(const float* __restrict__ x, long long n, double* partial, unsigned* ticket, double* out) {
  TRIAL_SHARED(last, bool);
  double value = 0.0;
  const long long stride = static_cast<long long>(gridDim.x) * threads;
  for (long long i = static_cast<long long>(blockIdx.x) * threads + threadIdx.x; i < n; i += stride)
    value += static_cast<double>(__ldg(x + i));
  value = block_sum<threads>(value);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = value;
    __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  value = 0.0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += threads) value += __ldcg(partial + i);
  value = block_sum<threads>(value);
  if (threadIdx.x == 0) *out = value;
}

template <class Map>
__global__ void map_kernel(const Map map, const float4* x, float4* y, long long quads) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= quads) return;
  float4 v = __ldcs(x + i);
  v.x = map(v.x);
  v.y = map(v.y);
  v.z = map(v.z);
  v.w = map(v.w);
  __stcs(y + i, v);
}

struct Scale {
  float a;
  __device__ float operator()(float x) const { return __fmaf_rn(a, x, 0.0f); }
};

__global__ void narrow_kernel(const float* x, unsigned short* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  out[i] = __half_as_ushort(__float2half_rn(x[i]));
  out[n + i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
}

template <bool barriers>
__global__ void rotate_kernel(int* out) {
  int* const values = dynamic_shared<int>();
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if constexpr (barriers) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}

__global__ void reverse_kernel(int* x, int* y) {
  const unsigned n = gridDim.x * blockDim.x;
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  x[i] = static_cast<int>(i);
  cooperative_groups::this_grid().sync();
  y[i] = x[n - 1 - i];
}

__global__ void many_barriers_kernel(int* out, int rounds) {
  int count = 0;
  for (int i = 0; i < rounds; ++i) count += __syncthreads_count(1);
  if (threadIdx.x == 0) *out = count;
}

cudaLaunchConfig_t shape(int blocks, int threads, size_t shared, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return config;
}

}  // namespace

cudaError_t sum(const float* x, long long n, double* partial, unsigned* ticket, double* out, int blocks,
                cudaStream_t stream) {
  const auto config = shape(blocks, 256, 0, stream);
  return cudaLaunchKernelEx(&config, sum_kernel<256>, x, n, partial, ticket, out);
}

cudaError_t scale(float a, const float* x, float* y, long long n, cudaStream_t stream) {
  const long long quads = n / 4;
  const auto config = shape(static_cast<int>((quads + 127) / 128), 128, 0, stream);
  return cudaLaunchKernelEx(&config, map_kernel<Scale>, Scale{a}, reinterpret_cast<const float4*>(x),
                            reinterpret_cast<float4*>(y), quads);
}

cudaError_t narrow(const float* x, unsigned short* out, int n, cudaStream_t stream) {
  const auto config = shape((n + 127) / 128, 128, 0, stream);
  return cudaLaunchKernelEx(&config, narrow_kernel, x, out, n);
}

cudaError_t rotate(int* out, int threads, bool barriers, cudaStream_t stream) {
  const auto config = shape(1, threads, static_cast<size_t>(threads) * sizeof(int), stream);
  return barriers ? cudaLaunchKernelEx(&config, rotate_kernel<true>, out)
                  : cudaLaunchKernelEx(&config, rotate_kernel<false>, out);
}

cudaError_t reverse(int* x, int* y, int blocks, int threads, cudaStream_t stream) {
  auto config = shape(blocks, threads, 0, stream);
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, reverse_kernel, x, y);
}

cudaError_t many_barriers(int* out, int threads, int rounds, cudaStream_t stream) {
  const auto config = shape(1, threads, 0, stream);
  return cudaLaunchKernelEx(&config, many_barriers_kernel, out, rounds);
}

}  // namespace trial
