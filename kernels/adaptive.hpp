// AdaIN, whose channels take mean and deviation of another tensor's: its formulas for one channel of a sample, in
// double, host and device, and its steps between the kernels. Section 9 of docs/equations.md.
#pragma once

#include "kernels/arrays.hpp"
#include "kernels/formulas.hpp"

namespace allnorm::formulas {

// The deviation of `count` values with this sum of squares about their mean; unbiased, nothing is known of one value's.
ALLNORM_HOST_DEVICE inline double adaptive_sigma(bool unbiased, double eps, double m2, double count) {
  return std::sqrt((count > 0 ? m2 / (unbiased ? count - 1 : count) : 1) + eps);
}

// alpha * (sigma' * (x - mean) / sigma + mean') + (1 - alpha) * x = (x - mean) * scale + shift
ALLNORM_HOST_DEVICE inline ApplyCoefficients adaptive(double alpha, double mean, double sigma, double style_mean,
                                                      double style_sigma) {
  return {alpha * (style_sigma / sigma) + (1 - alpha), alpha * style_mean + (1 - alpha) * mean};
}

// Of one channel of a sample: the deviations and numbers of values of x and of the style, the sums of dy and
// dy * (x - mean).
struct AdaptiveSums {
  double sigma = 1, style_sigma = 1, count = 0, style_count = 0, sum_g = 0, sum_gx = 0;
};

// dx = dy * gain + (x - mean) * power * slope + offset: section 0 with gamma = alpha * sigma', and x's own part.
ALLNORM_HOST_DEVICE inline GradCoefficients adaptive_grad(double alpha, bool unbiased, const AdaptiveSums& s) {
  const double gamma = alpha * s.style_sigma, rstd = 1 / s.sigma;
  const double steeper = unbiased ? s.count / (s.count - 1) : 1;
  GradCoefficients k = apply_grad(rstd, 1, gamma, 1, true, s.count, gamma * s.sum_g, gamma * s.sum_gx * steeper);
  k.gain = std::isnan(rstd) ? rstd : k.gain + (1 - alpha);
  return k;
}

// The style's: (style - mean') * power * slope + offset, from its mean and its deviation.
ALLNORM_HOST_DEVICE inline GradCoefficients adaptive_style_grad(double alpha, bool unbiased, const AdaptiveSums& s) {
  const auto [power, rest] = split(1 / s.style_sigma);
  const double of_sigma = alpha * (s.sum_gx / s.sigma), free = unbiased ? s.style_count - 1 : s.style_count;
  return {0, rest * of_sigma / free, alpha * s.sum_g / s.style_count, power};
}

}  // namespace allnorm::formulas

namespace allnorm::steps {

/// A tensor's channels of every sample.
struct AdaptiveSets {
  const double* mean = nullptr;  // (N * C)
  double* sigma = nullptr;       // (N * C)
  double count = 0;              // values of each
};

/// Forward, of one channel of a sample: what sigma holds of both tensors, sums of squares about the mean, becomes the
/// deviation, and the map's coefficients follow.
struct AdaptiveForward {
  double alpha = 1, eps = 0;
  bool unbiased = false;
  AdaptiveSets input{}, style{};
  ApplyArrays made{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    for (const AdaptiveSets* sets : {&input, &style})
      sets->sigma[i] = formulas::adaptive_sigma(unbiased, eps, sets->sigma[i], sets->count);
    made.set(i, formulas::adaptive(alpha, input.mean[i], input.sigma[i], style.mean[i], style.sigma[i]));
  }
};

/// Backward: the coefficients of both gradients from the sums of dy and of dy * (x - mean).
struct AdaptiveBackward {
  double alpha = 1;
  bool unbiased = false;
  AdaptiveSets input{}, style{};
  const double *sum_g = nullptr, *sum_gx = nullptr;  // (N * C)
  GradArrays of_input{}, of_style{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const {
    const formulas::AdaptiveSums sums{input.sigma[i], style.sigma[i], input.count, style.count, sum_g[i], sum_gx[i]};
    if (of_input.given()) of_input.set(i, formulas::adaptive_grad(alpha, unbiased, sums));
    if (of_style.given()) of_style.set(i, formulas::adaptive_style_grad(alpha, unbiased, sums));
  }
};

}  // namespace allnorm::steps
