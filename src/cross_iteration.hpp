// What a layer with a window that compensates adds to a training call (Cross-Iteration BN).
#pragma once

#include <cstdint>
#include <optional>

#include "src/convolution.hpp"

namespace allnorm {

/// Made for one call; without compensation there is nothing in it, and it does nothing.
class CrossIteration {
 public:
  CrossIteration() = default;
  /// Checks what `in` says of the convolution before the layer, and makes `memory` ready for its derivatives. Sets
  /// state, entries and derives of `args`. Throws as derivative_source, and invalid_argument for weights of another
  /// shape than in the window.
  CrossIteration(const ForwardInputs& in, const Convolution& convolution, LayerMemory& memory, ForwardArgs& args,
                 Queue& queue);

  std::int64_t scratch() const noexcept;  ///< doubles that before() and after() share
  /// Before the first half: products of the window's derivatives with the change of the weights, into the message's
  /// payload. Throws invalid_argument where the host sees that weights have changed within a batch.
  void before(ForwardArgs& args, double* scratch, double* payload, Queue& queue);
  /// Behind the second half: this call's derivatives, into the window's open slot.
  void after(Queue& queue) const;

 private:
  std::optional<DerivativeSource> source_;
};

}  // namespace allnorm
