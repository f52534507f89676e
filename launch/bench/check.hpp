// Results of one call against the reference in double.
#pragma once

#include <cstdint>
#include <optional>

#include "launch/bench/plan.hpp"

namespace allnorm::launch::bench {

struct Check {
  double max_error = 0;    ///< of a value, over the largest of its tensor and of what that sums up
  std::int64_t wrong = 0;  ///< values of this rank beyond what rounding may do
};

/// Of a first call of the case, on all ranks, which call it together: the output, the input's gradient, and of a rank
/// whose statistics are its own the parameters' too. Nothing where the ranks have parts of the same samples.
std::optional<Check> check(const Plan& plan, const Case& of, Rank& rank);

}  // namespace allnorm::launch::bench
