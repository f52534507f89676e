// Small kernels that the emulation's tests run. The same source compiles with nvcc against CUDA's own headers.
#pragma once

#include <cuda_runtime.h>

namespace trial {

/// out[0] = sum of x[0..n), by warp shuffles, shared memory and the ticket of the last block. `partial`: one double a
/// block; `ticket`: 0 before and after.
cudaError_t sum(const float* x, long long n, double* partial, unsigned* ticket, double* out, int blocks,
                cudaStream_t stream);
/// y = a * x, four values a thread; n must be a multiple of 4.
cudaError_t scale(float a, const float* x, float* y, long long n, cudaStream_t stream);
/// out[i] = f16 of x[i], out[n + i] = bf16 of x[i], as bits.
cudaError_t narrow(const float* x, unsigned short* out, int n, cudaStream_t stream);
/// Each thread hands its value to the next in dynamic shared memory; `barriers` false leaves the barrier out.
cudaError_t rotate(int* out, int threads, bool barriers, cudaStream_t stream);
/// One cooperative kernel: x[i] = i, grid barrier, y[i] = x[n - 1 - i].
cudaError_t reverse(int* x, int* y, int blocks, int threads, cudaStream_t stream);
/// `rounds` barriers in a block of `threads`.
cudaError_t many_barriers(int* out, int threads, int rounds, cudaStream_t stream);

}  // namespace trial
