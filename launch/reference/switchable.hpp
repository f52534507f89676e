// Switchable Normalization as plain loops, statistic by statistic.
#pragma once

#include <vector>

#include "launch/reference/reference.hpp"

namespace reference {

struct SwitchableParameters {
  Doubles gamma, beta, mean_logits, var_logits, running_mean, running_var;
  double furthest = 0;  ///< the largest |x| of the calls that the running statistics are of
};
/// Per part: those of the input's shape, and gradients of parameters, of this part alone.
struct Switchable {
  std::vector<Values> y, dx, dmean_logits, dvar_logits;
  std::vector<Doubles> dgamma, dbeta;
  Doubles running_mean, running_var, batch_mean, batch_var, rstd;
};

/// The definition over parts (N, C, space...) that may have other samples and other space; options eps, momentum,
/// training and unbiased_instance_var.
Switchable switchable(const std::vector<Array>& x, const std::vector<Array>& dy, const SwitchableParameters& p,
                      const NormOptions& o);

}  // namespace reference
