// One operation of the library under test, called with tensors of doubles.
#pragma once

#include <memory>
#include <string>

#include "allnorm/operation.hpp"
#include "launch/verify/script.hpp"

namespace allnorm::launch::verify {

/// What a call made, under the names of outputs, in logical order.
using Made = std::map<std::string, Array, std::less<>>;

class Subject {
 public:
  Subject(const Layer& layer, std::int64_t channels, DType dtype, Order order, std::shared_ptr<Communicator> group,
          Queue& queue);

  /// Forward and backward: the output, statistics, state and gradients of all that is given.
  Made call(const Tensors& given, bool training);

 private:
  const Row& row_;
  DType dtype_;
  Order order_;
  Queue& queue_;
  std::unique_ptr<Operation> operation_;
};

}  // namespace allnorm::launch::verify
