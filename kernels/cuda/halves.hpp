// What halves of a call are made of: halves.cu chooses among these, each of which is in the file that its name says.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/ops.hpp"

namespace allnorm::cuda {

// ---- moments.cu, moments_grad.cu: the reductions of the first halves
// --------------------------------------------------

/// Moments of x, to args.mean and args.m2 of a lone rank, or to the rank's record.
void reduce_moments(const ForwardArgs& args, Queue& queue);
/// s1, s2, dweight and dbias, and the record's head.
void reduce_gradient(const BackwardArgs& args, Queue& queue);
/// dweight and dbias of a gamma that is read along.
void reduce_affine_gradient(const BackwardArgs& args, Queue& queue);

/// Two terms of every fine group, summed over those of each coarse group in a fixed order.
struct CoarseSums {
  const double *first = nullptr, *second = nullptr;  // (fine groups)
  std::int64_t fine = 0;
  Coarsening to{};
  std::int64_t groups = 0;              // coarse ones
  double *s1 = nullptr, *s2 = nullptr;  // (groups), optional
  ParameterGrad dweight{}, dbias{};
  Direct direct{};  // joins s1 and s2, with the rstd of the frame
  const double* rstd = nullptr;
};
/// In one launch; either may have no groups.
void coarsen(const CoarseSums& over_norm, const CoarseSums& over_affine, Queue& queue);
/// What level and learned eps have in the fifth and sixth row of args.scratch, of every fine group, summed into their
/// gradients.
void coarsen_more(const BackwardArgs& args, Queue& queue);

// ---- groupwise*.cu: a lone rank's groups that fit on the chip
// ----------------------------------------------------------

/// True where one launch does a forward call of a lone rank: groups that fit on chip, statistics of this call, and no
/// state but the number of calls.
bool groupwise_fits(const ForwardArgs& args, const cudaDeviceProp& device);
/// Reads x once: moments in two passes on chip, frame, y.
void groupwise_forward(const ForwardArgs& args, Queue& queue);

/// The same for backward: x and dy are read once for dx and the gradients of parameters that are folded.
bool groupwise_fits(const BackwardArgs& args, const cudaDeviceProp& device);
void groupwise_backward(const BackwardArgs& args, Queue& queue);

// ---- rows_grad.cu
// ------------------------------------------------------------------------------------------------------

/// Backward of a lone rank over rows, one gamma per column, with dweight and dbias in the same pass: where rows are
/// whole vectors and threads have room for the sums.
bool rows_grad_fits(const BackwardArgs& args);
void rows_grad(const BackwardArgs& args, Queue& queue);

// ---- patch_sums.cu
// -----------------------------------------------------------------------------------------------------

/// The sums, where turn->derives holds when the kernels run; without `turn`, always.
void patch_sums(const PatchSumsArgs& args, const Turn* turn, Queue& queue);

}  // namespace allnorm::cuda
