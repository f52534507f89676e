// Layers whose gamma and beta are each sample's or each value's own: their definition in plain loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "operation_cases.hpp"

namespace modulated {

// What such a test speaks of; it says `using namespace modulated`.
using namespace operation_cases;

struct Extent3 {
  std::int64_t N, C, S;
  explicit Extent3(const Extents& shape)
      : N(shape[0]), C(shape[1]), S(reference::elements({shape.begin() + 2, shape.end()})) {}
  std::size_t at(std::int64_t n, std::int64_t c, std::int64_t s) const {
    return static_cast<std::size_t>((n * C + c) * S + s);
  }
  std::size_t size() const { return static_cast<std::size_t>(N * C * S); }
};

/// y = gamma xh + beta with a gamma and a beta of every value, and its gradients; everything in the order N, C, space.
struct Answer {
  Doubles y, dx, dgamma, dbeta;
};
inline Answer solve(const Extents& shape, bool by_instance, double eps, const Doubles& x, const Doubles& gamma,
                    const Doubles& beta, const Doubles& dy) {
  const Extent3 e(shape);
  Answer a{Doubles(e.size()), Doubles(e.size()), Doubles(e.size()), Doubles(e.size())};
  for (std::int64_t set = 0; set < (by_instance ? e.N * e.C : e.C); ++set) {
    const std::int64_t c = set % e.C, first = by_instance ? set / e.C : 0, last = by_instance ? first + 1 : e.N;
    const auto each = [&](const auto& f) {
      for (std::int64_t n = first; n < last; ++n)
        for (std::int64_t s = 0; s < e.S; ++s) f(e.at(n, c, s));
    };
    const auto m = static_cast<long double>((last - first) * e.S);
    long double mean = 0, var = 0, mean_g = 0, mean_gx = 0;
    each([&](std::size_t i) { mean += x[i] / m; });
    each([&](std::size_t i) { var += (x[i] - mean) * (x[i] - mean) / m; });
    const long double sigma = std::sqrt(var + eps);
    each([&](std::size_t i) {
      const long double xh = (x[i] - mean) / sigma;
      a.y[i] = static_cast<double>(gamma[i] * xh + beta[i]);
      a.dgamma[i] = static_cast<double>(dy[i] * xh);
      a.dbeta[i] = dy[i];
      mean_g += gamma[i] * dy[i] / m;
      mean_gx += gamma[i] * dy[i] * xh / m;
    });
    each([&](std::size_t i) {
      const long double xh = (x[i] - mean) / sigma;
      a.dx[i] = m == 1 ? 0 : static_cast<double>((gamma[i] * dy[i] - mean_g - xh * mean_gx) / sigma);
    });
  }
  return a;
}

}  // namespace modulated
