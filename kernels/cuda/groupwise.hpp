// What the group-wise kernels offer to the other CUDA files, beyond the table of functions.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/ops.hpp"

namespace allnorm::cuda {

/// True where one launch does a forward call of a lone rank: groups that fit on chip, statistics of this call, and no
/// state but the number of calls. Then forward_local has nothing to do and forward_finish is groupwise_forward.
bool groupwise_fits(const ForwardArgs& args, const cudaDeviceProp& device);
/// Reads x once: moments in two passes on chip, frame, y.
void groupwise_forward(const ForwardArgs& args, Queue& queue);

/// The same for backward: x and dy are read once, dx and the parameters' gradients follow. backward_local has nothing
/// to do, and backward_finish is groupwise_backward.
bool groupwise_backward_fits(const BackwardArgs& args, const cudaDeviceProp& device);
void groupwise_backward(const BackwardArgs& args, Queue& queue);

/// The halves of calls with args.rows that do not fit: called by forward_finish, backward_local and backward_finish.
void forward_finish_rows(const ForwardArgs& args, const Gathered& gathered, Queue& queue);
void backward_local_rows(const BackwardArgs& args, Queue& queue);
void backward_finish_rows(const BackwardArgs& args, const Gathered& gathered, Queue& queue);

/// dweight and dbias of a call with args.rows.
void affine_grad_of_rows(const BackwardArgs& args, Queue& queue);

/// patch_sums where turn->derives holds when the kernels run; without `turn`, always.
void patch_sums_if(const PatchSumsArgs& args, const Turn* turn, Queue& queue);

}  // namespace allnorm::cuda
