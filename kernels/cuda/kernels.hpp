// The CUDA backend's functions: what kernels/cuda/ops.cu puts in the table, and stages of its halves.
#pragma once

#include "kernels/ops.hpp"

namespace allnorm {

namespace cuda {

void moments(const MomentsArgs& args, Queue& queue);
void apply(const ApplyArgs& args, Queue& queue);
void moments_grad(const MomentsGradArgs& args, Queue& queue);
void affine_grad(const AffineGradArgs& args, Queue& queue);
void apply_grad(const ApplyGradArgs& args, Queue& queue);
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

/// The ranks' moments where records are added, in two rounds: `weigh` writes what the first one adds, (1 + G) doubles
/// at `round`, which hold the sum from then on; `centre` makes the record what the second adds; `merge` makes of that
/// sum what gathered records would have merged to. G = record.moments.
enum class MergeStep : std::uint8_t { weigh, centre, merge };
void merge_by_adding(MergeStep step, const Record& record, double* round, Queue& queue);

}  // namespace cuda

/// The CUDA backend, on the GPU of `queue`'s device.
const Ops& cuda_ops();

}  // namespace allnorm
