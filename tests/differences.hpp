// Derivatives without a formula, to judge formulas by.
#pragma once

#include <functional>

#include "launch/reference/reference.hpp"

namespace cases {

/// The gradient of f at x by central differences of fourth order.
reference::Doubles central_difference(const std::function<reference::Real(const reference::Doubles&)>& f,
                                      const reference::Doubles& x, double h = 1e-3);
/// Sum of a*b over all ranks: the loss whose derivative with respect to y is dy.
reference::Real inner_product(const reference::Ranks& a, const reference::Ranks& b);

}  // namespace cases
