#include "differences.hpp"

namespace cases {

using reference::Doubles;
using reference::Ranks;
using reference::Real;

Doubles central_difference(const std::function<Real(const Doubles&)>& f, const Doubles& x, double h) {
  Doubles gradient(x.size()), at = x;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto moved = [&](double by) {
      at[i] = x[i] + by;
      return f(at);
    };
    const Real near = moved(h) - moved(-h), far = moved(2 * h) - moved(-2 * h);
    at[i] = x[i];
    gradient[i] = static_cast<double>((8 * near - far) / (12 * Real(h)));
  }
  return gradient;
}

Real inner_product(const Ranks& a, const Ranks& b) {
  Real sum = 0;
  for (std::size_t k = 0; k < a.size(); ++k)
    for (std::size_t i = 0; i < a[k].v.size(); ++i) sum += Real(a[k].v[i]) * b.at(k).v.at(i);
  return sum;
}

}  // namespace cases
