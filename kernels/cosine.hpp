// Cosine Normalization: rows of the input and vectors, each divided by its length, and their products. Its formulas and
// its steps between the kernels, for one row, in double, host and device. Section 13 of docs/equations.md.
#pragma once

#include "allnorm/options.hpp"
#include "kernels/arrays.hpp"
#include "kernels/formulas.hpp"

namespace allnorm::formulas {

/// What a vector of this length is divided by.
ALLNORM_HOST_DEVICE inline double cosine_norm_of(EpsMode mode, double eps, double length) {
  if (mode == EpsMode::sq) return std::sqrt(length * length + eps);
  if (mode == EpsMode::max) return length < eps ? eps : length;
  return length + eps;
}
/// How it follows the length, as a share of norm / length: 1 without eps. A vector of zeros, whose length has no
/// derivative, leaves its norm as it is.
ALLNORM_HOST_DEVICE inline double cosine_steepness(EpsMode mode, double eps, double length) {
  if (mode == EpsMode::sq || eps == 0) return 1;
  if (mode == EpsMode::max) return length > eps ? 1 : 0;
  return length > 0 ? (length + eps) / length : 0;
}

}  // namespace allnorm::formulas

namespace allnorm::steps {

/// Forward, of one row: what its values are shifted and divided by, from its moments.
struct CosineForward {
  EpsMode mode{};
  double eps = 0;
  bool centred = false;
  double count = 0;                                                  // values of a row
  const double *mean = nullptr, *m2 = nullptr;                       // (rows)
  double *center = nullptr, *scale = nullptr, *steepness = nullptr;  // (rows); center may be mean, scale m2

  ALLNORM_HOST_DEVICE void operator()(std::int64_t r) const {
    const double square = centred ? m2[r] : m2[r] + count * mean[r] * mean[r], length = std::sqrt(square);
    center[r] = centred ? mean[r] : 0;
    scale[r] = 1 / formulas::cosine_norm_of(mode, eps, length);
    steepness[r] = formulas::cosine_steepness(mode, eps, length);
  }
};

/// Backward, of one row u of unit vectors: with the gradient g by u and the sum of g * u over the row,
/// dx = (g - steepness * sum * u) * scale.
struct CosineBackward {
  const double *scale = nullptr, *steepness = nullptr, *sum = nullptr;  // (rows)
  GradArrays made{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t r) const {
    const auto [power, rest] = formulas::split(scale[r]);
    made.set(r, {scale[r], -(steepness[r] * sum[r]) * rest, 0, power});
  }
};

}  // namespace allnorm::steps
