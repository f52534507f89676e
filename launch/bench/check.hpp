// Results of one call against the reference in double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "launch/bench/plan.hpp"
#include "launch/bench/subject.hpp"
#include "launch/reference/definitions.hpp"

namespace allnorm::launch::bench {

struct Check {
  double max_error = 0;    ///< of a value, over the largest of its tensor and of what that sums up
  std::int64_t wrong = 0;  ///< values of this rank beyond what rounding may do
};

/// What a first call of the case gives in double: the output, the input's gradient, and of a rank whose statistics are
/// its own the parameters' too.
class Truth {
 public:
  /// For this rank of `group`, which has given it the samples of all its ranks. Nothing where these have parts of the
  /// same samples.
  static std::optional<Truth> of(const Plan& plan, const Case& of, const Rank& rank, const Communicator& group);

  /// What a subject's first call has made. Waits for its queue.
  Check compare(const Subject& subject) const;

 private:
  reference::Answers forward_{}, backward_{};
  DType dtype_{};
  std::size_t place_ = 0;  // of this rank in the group
  bool shares_ = false;    // sets with other ranks
};

}  // namespace allnorm::launch::bench
