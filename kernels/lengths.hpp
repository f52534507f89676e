// A weight whose rows are divided by their lengths, w = g v / |v|: its steps between the kernels, for one row, in
// double, host and device. Section 10 of docs/equations.md.
#pragma once

#include "kernels/arrays.hpp"
#include "kernels/formulas.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm::steps {

/// Forward: the row's length from its moments, and w = v * scale. A length of 0 makes its weights NaN.
struct LengthForward {
  double count = 0;                                             // values of a row
  const double *mean = nullptr, *m2 = nullptr;                  // (rows)
  Parameter g{};                                                // (rows); not given: the lengths
  double *length = nullptr, *of_g = nullptr, *scale = nullptr;  // (rows); of_g: g in double

  ALLNORM_HOST_DEVICE void operator()(std::int64_t r) const {
    length[r] = std::sqrt(m2[r] + count * mean[r] * mean[r]);
    of_g[r] = g.data != nullptr ? g[r] : length[r];
    scale[r] = of_g[r] / length[r];
  }
};

/// Backward, from the sums of dw * v. With the root mean square of a row, |v| / sqrt(n), in place of its length, it is
/// a layer about 0 whose gamma is g / sqrt(n).
struct LengthBackward {
  double count = 0;
  const double *length = nullptr, *of_g = nullptr, *sum_v = nullptr;  // (rows)
  ParameterGrad dg{};
  GradArrays made{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t r) const {
    dg.set(r, sum_v[r] / length[r]);
    if (!made.given()) return;
    const double gamma = of_g[r] / std::sqrt(count), rstd = std::sqrt(count) / length[r];
    made.set(r, formulas::apply_grad(rstd, 1, gamma, 1, false, count, 0, gamma * sum_v[r]));
  }
};

}  // namespace allnorm::steps
