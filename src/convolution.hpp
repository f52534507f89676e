// The convolution (or linear layer) before a Cross-Iteration BN: does it fit the tensors, and what are the derivatives
// of its output's statistics by its weights.
#pragma once

#include "allnorm/norm.hpp"
#include "history.hpp"

namespace allnorm {

/// Checks inputs.conv_input and conv_weight (or patch_sum and patch_product) against inputs.input and the options, and
/// binds what computes the sums. Throws invalid_argument where something is missing or the geometry does not fit,
/// invalid_input where the tensors disagree with each other. The source borrows the tensors and the queue.
DerivativeSource derivative_source(const ForwardInputs& inputs, const Convolution& convolution, Queue& queue);

}  // namespace allnorm
