// The CPU backend's functions: what kernels/cpu/ops.cpp puts in the table.
#pragma once

#include "kernels/ops.hpp"

namespace allnorm::cpu {

void moments(const MomentsArgs& args, Queue& queue);
void apply(const ApplyArgs& args, Queue& queue);
void sign_mask(const SignMaskArgs& args, Queue& queue);
void moments_grad(const MomentsGradArgs& args, Queue& queue);
void apply_grad(const ApplyGradArgs& args, Queue& queue);
void apply_rows(const RowsArgs& args, Queue& queue);
void moments_grad_rows(const RowsArgs& args, Queue& queue);
void affine_grad_rows(const RowsArgs& args, Queue& queue);
void apply_grad_rows(const RowsArgs& args, Queue& queue);
void patch_sums(const PatchSumsArgs& args, Queue& queue);

}  // namespace allnorm::cpu
