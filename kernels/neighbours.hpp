// Local Response Normalization: y = x * P^-beta with P = k + a * (sum of squares over a window of channels), in parts
// that the kernels share, host and device. Section 12 of docs/equations.md.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/formulas.hpp"

namespace allnorm {

/// A window of channels, and what is made of its squares.
struct Neighbours {
  double a = 0, beta = 0.75, k = 1;    ///< a, beta >= 0; k >= 1, so that P is too
  std::int64_t behind = 0, ahead = 0;  ///< channels before and after its own, fewer than there are

  ALLNORM_HOST_DEVICE std::int64_t size() const { return behind + 1 + ahead; }
};

namespace formulas {

/// The exponent of most networks, for which roots do: in any type they are quicker than a power and as exact.
ALLNORM_HOST_DEVICE inline bool is_of_roots(double beta) { return beta == 0.75; }

/// P^beta.
template <class C>
ALLNORM_HOST_DEVICE C raised(C p, double beta) {
  if (is_of_roots(beta)) {
    const C root = std::sqrt(p);
    return root * std::sqrt(root);
  }
  return static_cast<C>(std::pow(static_cast<double>(p), beta));
}

/// Up to which P everything that is made of it is well within the range of f32, products in backward too. Beyond, what
/// is of a narrower type is computed in double.
ALLNORM_HOST_DEVICE inline double narrow_power(const Neighbours& w) {
  return w.a > 0x1p60 ? 0 : std::pow(2, 64 / (w.beta > 1 ? w.beta : 1));
}
/// The same as a limit of the window's squares.
ALLNORM_HOST_DEVICE inline double narrow_square(const Neighbours& w) {
  const double terms = static_cast<double>(w.size()), most = 0x1p100 / terms;
  const double limit = (narrow_power(w) - w.k) / (w.a * terms);
  return limit < most || limit != limit ? limit : most;
}

}  // namespace formulas
}  // namespace allnorm
