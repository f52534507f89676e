// Calls of one layer, numbered: what a rank makes of fixed tensors, and the bytes of its state, for tests that break
// single calls. Everything that a call needs is there before it, so that only the library asks for memory in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "allnorm/operation.hpp"
#include "harness.hpp"
#include "launch/reference/reference.hpp"

namespace calls {

struct Subject {
  std::string layer;                                           ///< as parse_layer reads it
  std::map<std::string, std::vector<std::int64_t>> tensors{};  ///< beside the input: name -> shape
};
/// Layers with every kind of state, and one without; their input is (2, 4, 3).
const std::vector<Subject>& subjects();

class Calls {
 public:
  Calls(const Subject& subject, const harness::World& world, allnorm::Queue& queue);

  /// The tensors of call number `call`: a forward call where it is even, its backward call where it is odd. Those of a
  /// convolution's weights are the same on all ranks and within a batch.
  void prepare(std::uint64_t call);
  /// The first value of the input, or of the gradient.
  void poison(double value);
  /// Makes it. Throws what the operation throws.
  void make();
  /// What it wrote: output or gradients.
  reference::Doubles results() const;
  std::vector<std::byte> state() const;
  allnorm::NonFiniteCalls nonfinite() const { return operation_->nonfinite(); }

 private:
  reference::Doubles& values(const std::string& name, const std::vector<std::int64_t>& shape, std::uint64_t seed);

  const Subject subject_;
  const harness::World world_;
  allnorm::Queue& queue_;
  std::unique_ptr<allnorm::Operation> operation_;
  std::map<std::string, reference::Doubles> values_;  // by the slot's name; a call's own
  std::unique_ptr<allnorm::SavedCall> saved_;
  bool forward_ = true;
  allnorm::InputSlots inputs_;
  allnorm::OutputSlots outputs_;
};

}  // namespace calls
