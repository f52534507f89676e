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
  /// Checks what `in` says of the convolution before the layer; throws as derivative_source.
  CrossIteration(const ForwardInputs& in, const Convolution& convolution, const Rules& rules, const Queue& queue);

  /// What the window must have room for; null without compensation.
  const DerivativeSource* source() const noexcept { return source_ ? &*source_ : nullptr; }
  /// Gives the window of `memory` that room. Returns how many of its entries the call's message tells of.
  std::int64_t take_room(LayerMemory& memory, Queue& queue) const;
  /// Takes part in the call of `args`, whose window has that room: its message has products of `entries` of it.
  void join(ForwardArgs& args, std::int64_t entries);

  /// Doubles that lay_out() takes, for weights of that shape.
  static std::int64_t scratch(const WeightShape& shape) noexcept;
  std::int64_t scratch() const noexcept { return source_ ? scratch(source_->shape) : 0; }
  void lay_out(ForwardArgs& args, double* scratch);
  /// Before the first half: products of the window's derivatives with the change of the weights, into the message's
  /// payload. Throws invalid_argument where the host sees that weights have changed within a batch.
  void before(const ForwardArgs& args, double* payload, Queue& queue) const;
  /// Behind the second half: this call's derivatives, into the window's open slot.
  void after(Queue& queue) const;

 private:
  std::optional<DerivativeSource> source_;
};

}  // namespace allnorm
