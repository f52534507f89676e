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

/// groupwise_backward over rows with dweight and dbias in the same pass, where rows are whole vectors and threads have
/// room for the sums.
bool rows_grad_fits(const BackwardArgs& args);
void rows_grad(const BackwardArgs& args, Queue& queue);

/// Adds the dweight and dbias of fine groups (2, fine_groups), in a fixed order, to those of the parameters.
void add_fine(const double* of_fine, std::int64_t fine_groups, Coarsening to_affine, std::int64_t parameters,
              ParameterGrad dweight, ParameterGrad dbias, Queue& queue);

/// dweight and dbias of a call with args.rows.
void affine_grad_of_rows(const BackwardArgs& args, Queue& queue);

/// patch_sums where turn->derives holds when the kernels run; without `turn`, always.
void patch_sums_if(const PatchSumsArgs& args, const Turn* turn, Queue& queue);

}  // namespace allnorm::cuda
