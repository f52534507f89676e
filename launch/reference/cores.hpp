// The norms of layers that have a gamma and a beta: z = x normalized, and back.
#pragma once

#include <cstdint>
#include <memory>

#include "launch/reference/definitions.hpp"

namespace reference {

class Core {
 public:
  virtual ~Core() = default;
  /// z, with what it goes by; statistics and state go to `out`.
  virtual Values forward(const Tensors& given, bool training, Answers& out) = 0;
  /// dx from dz, of the last forward call; `sizes`: of the terms of each dz. Gradients of tensors of the core's own go
  /// to `out`.
  virtual Values backward(const Array& dz, const Doubles& sizes, const Tensors& given, Answers& out) = 0;
  /// How exact its statistics are, and what follows from them: an answer without values.
  virtual Answer accuracy() const { return {}; }
};

std::unique_ptr<Core> batch_core(const NormOptions& o, std::int64_t channels);
std::unique_ptr<Core> mean_only_core(const NormOptions& o, std::int64_t channels);
std::unique_ptr<Core> layer_core(const NormOptions& o, bool centred);
std::unique_ptr<Core> group_core(const NormOptions& o);
std::unique_ptr<Core> instance_core(const NormOptions& o, std::int64_t channels);
std::unique_ptr<Core> positional_core(const NormOptions& o);
std::unique_ptr<Core> response_core(const NormOptions& o);
std::unique_ptr<Core> switchable_core(const NormOptions& o, std::int64_t channels);
std::unique_ptr<Core> whitening_core(const NormOptions& o, std::int64_t channels, std::int64_t iterations);
/// z = x.
std::unique_ptr<Core> no_core();

}  // namespace reference
