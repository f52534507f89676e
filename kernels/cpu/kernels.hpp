// The CPU backend's functions: what kernels/cpu/ops.cpp puts in the table, and stages of its halves.
#pragma once

#include "kernels/ops.hpp"

namespace allnorm::cpu {

/// ForwardArgs::mask of y, for i < elements.
struct SignMaskArgs {
  const void* y = nullptr;
  DType dtype{};
  std::int64_t elements = 0;
  std::uint8_t* mask = nullptr;
};

void moments(const MomentsArgs& args, Queue& queue);
void apply(const ApplyArgs& args, Queue& queue);
/// One of the parts of a map that has `whole` values in all: results of large maps bypass the caches.
void apply_part(const ApplyArgs& args, std::int64_t whole, Queue& queue);
void sign_mask(const SignMaskArgs& args, Queue& queue);
void moments_grad(const MomentsGradArgs& args, Queue& queue);
void affine_grad(const AffineGradArgs& args, Queue& queue);
/// The same to where a layer's caller wants it, if every value has a gamma of its own and gradients are of the type
/// that the input is computed in; otherwise false, and nothing is done. A map, where sums take a pass over arrays of
/// doubles as long as the input.
bool affine_grad_values(const AffineGradArgs& args, const ParameterGrad& dweight, const ParameterGrad& dbias,
                        std::int64_t whole, Queue& queue);
/// The same over rows of one gamma and beta per column, added to `sums`, (2, columns), by one thread.
void affine_grad_rows(const AffineGradArgs& args, double* sums);
/// The same and moments_grad of the groups in one read, where groups are rows: `sum_g` and `sum_gx`, (groups).
/// Otherwise false, and nothing is done.
bool rows_grad(const AffineGradArgs& args, double* sum_g, double* sum_gx, double* sums);
void apply_grad(const ApplyGradArgs& args, Queue& queue);
void apply_grad_part(const ApplyGradArgs& args, std::int64_t whole, Queue& queue);
void patch_sums(const PatchSumsArgs& args, Queue& queue);
void neighbours(const NeighboursArgs& args, Queue& queue);
void neighbours_grad(const NeighboursGradArgs& args, Queue& queue);
void matrix_product(const MatrixProductArgs& args, Queue& queue);
void channel_products(const ChannelProductsArgs& args, Queue& queue);
void channel_map(const ChannelMapArgs& args, Queue& queue);
void each(const GroupSteps& steps, std::int64_t groups, Queue& queue);
void forward_local(ForwardArgs& args, Queue& queue);
void forward_finish(const ForwardArgs& args, const Gathered& gathered, Queue& queue);
void backward_local(BackwardArgs& args, Queue& queue);
void backward_finish(const BackwardArgs& args, const Gathered& gathered, Queue& queue);
void products(const ProductsArgs& args, Queue& queue);
void derivatives(const DerivativesArgs& args, Queue& queue);
void begin_batch(const Rules& rules, const LayerState& state, Queue& queue);

}  // namespace allnorm::cpu
