// The convolution before a layer with a window: what its weights were, and how the derivatives by them are summed.
#pragma once

#include "allnorm/norm.hpp"
#include "kernels/ops.hpp"
#include "src/layer_memory.hpp"

namespace allnorm {

struct DerivativeSource {
  WeightShape shape{};
  bool wide = false;       // keep f64
  DerivativesArgs args{};  // theta, and the convolution's input
};

/// Checks everything that belongs to it in `in`; throws invalid_argument, invalid_input and device.
DerivativeSource derivative_source(const ForwardInputs& in, const Convolution& convolution, const Queue& queue);

}  // namespace allnorm
