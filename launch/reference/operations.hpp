// Layers that are no norm with a gamma and a beta: forward and backward of one call.
#pragma once

#include <cstdint>

#include "launch/reference/reference.hpp"

namespace reference {

struct Cosine {
  Values y, dx, dw;  // (N, M), (N, K), (M, K)
};
/// Cosines of rows x (N, K) and w (M, K); options centred, eps and eps_mode.
Cosine cosine(const NormOptions& o, const Array& x, const Array& w, const Array& dy);

struct Neighbours {
  Values y, dx;
};
/// Values by the squares of the channels around; options size, alpha, beta, k and convention.
Neighbours neighbours(const NormOptions& o, const Array& x, const Array& dy);

struct Adapted {
  Values y, dx, dstyle;
};
/// Every channel of a sample with mean and deviation of the style's, (N, C, any space); options eps, alpha, unbiased.
Adapted adapt(const NormOptions& o, const Array& x, const Array& style, const Array& dy);

struct WeightNorm {
  Values w, dv, dg;
};
/// The rows of v along axis `dim` (negative: from the end) with lengths g; empty: their own, which are constants.
WeightNorm weight_norm(std::int64_t dim, const Array& v, const Doubles& g, const Array& dw);

struct Standardized {
  Values y, dw, dgain;
};
/// The rows of w (O, ...) less their mean, over their deviation, times gain (O; empty: 1); options eps, eps_place and
/// unbiased.
Standardized standardize(const NormOptions& o, const Array& w, const Doubles& gain, const Array& dy);

}  // namespace reference
