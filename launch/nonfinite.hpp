// `--nonfinite`: what the program says of input that is not finite.
#pragma once

#include <cstdint>
#include <vector>

#include "allnorm/operation.hpp"
#include "launch/ranks.hpp"

namespace allnorm::launch {

/// Sets a layer's attribute to what `--nonfinite` says, where it has one (as all have that keep a state) and `given`
/// does not set it already.
void set_nonfinite(const RankOptions& options, bool given, Layer& layer);

/// Tells the first call of a run whose input is not finite, and every one that costs an update. One rank of each group
/// speaks.
class NonFiniteTeller {
 public:
  /// `number`: the layer's in the run, whose group this is.
  void tell(std::size_t number, const NonFiniteCalls& met, const Layer& layer, const Communicator& group);

 private:
  std::vector<std::int64_t> told_;  // [layer] calls
  bool warned_ = false;
};

/// For a layer without the attribute: throws non_finite where `--nonfinite` is fail and the rank's input, in the host's
/// memory, is not finite; a line says so otherwise. Returns whether it is.
bool is_finite(const RankOptions& options, const Layer& layer, const ConstTensorView& input, std::int64_t call,
               const Rank& rank);

}  // namespace allnorm::launch
