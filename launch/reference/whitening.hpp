// The oracle of layers that whiten: from their definitions, in plain loops, sharing no code with the library.
#pragma once

#include "launch/reference/reference.hpp"

namespace reference {

struct WhiteningOptions {
  std::int64_t group_size = 1;
  std::int64_t iterations = 0;  ///< steps of Newton's method; 0: the inverse root itself
  double eps = 1e-3, momentum = 0.3;
  bool training = true;
};

/// Of one call of all ranks.
struct Whitening {
  Ranks y{}, dx{};
  Doubles mean{}, whitening{};                  ///< (C), (C, g): what the call whitened with
  Doubles running_mean{}, running_whitening{};  ///< after it
  double condition = 1;         ///< the largest of a group's covariance, eps included: |S| |S^-1|, in Frobenius' norm
  Ranks y_sizes{}, dx_sizes{};  ///< of the products that each value of y, of dx is the sum of, together
  double y_terms = 0, dx_terms = 0;  ///< the largest of them
};

/// `running`: of (C) and (C, g), before the call.
Whitening whiten(const Ranks& x, const Ranks& dy, const WhiteningOptions& options, const Doubles& running_mean,
                 const Doubles& running_whitening);

/// (C, g): an identity for every group.
Doubles identities(std::int64_t channels, std::int64_t group_size);

}  // namespace reference
