// AdaIN, whose channels take mean and deviation of another tensor's: its formulas for one channel of a sample, in
// double, host and device. Section 9 of docs/equations.md.
#pragma once

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
