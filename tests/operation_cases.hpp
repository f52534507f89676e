// One operation whose tensors and results are plain doubles in the order N, C, space: for tests that compare a layer
// with loops of their own.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "allnorm/operation.hpp"
#include "cases.hpp"
#include "reference.hpp"

namespace operation_cases {

using Arrays = std::map<std::string, reference::Array, std::less<>>;

/// As a type holds them.
reference::Array rounded(reference::Array values, allnorm::DType dtype);
/// Half a unit in the last place of values near 1.
double unit_of(allnorm::DType dtype);
/// What output and dx may be off, of their largest terms: a few roundings of the compute type, then one to the type.
double tolerance_of(allnorm::DType dtype);
/// What sums over values of the type may be off, of their largest terms.
double statistics_tolerance_of(allnorm::DType dtype);

/// What a call made: "output", gradients under the names of the row's outputs, statistics under theirs.
struct Subject {
  /// Activation-like tensors are converted to `dtype` and put in `order`; parameters are f64.
  explicit Subject(const allnorm::Layer& of, std::int64_t channels = 1, allnorm::DType type = allnorm::DType::f64,
                   allnorm::Order layout = allnorm::Order::channels_first,
                   std::shared_ptr<allnorm::Communicator> group = nullptr);

  /// Forward with "input" and the row's tensors; backward too where "grad_output" is among them, with gradients of all
  /// that are given.
  Arrays operator()(const Arrays& tensors);
  /// The values of a state.
  reference::Doubles state(const std::string& name);

  allnorm::Layer layer;
  allnorm::DType dtype;
  allnorm::Order order;
  allnorm::Queue queue;
  std::unique_ptr<allnorm::Operation> operation;
};

/// Compares the gradients of sum(grad_output * output) by every value of `tensors` (but grad_output) with central
/// differences of fourth order, each within `tolerance` of the largest. `make`: a layer object as it is before the
/// call.
void expect_gradients(const std::function<Subject()>& make, const Arrays& tensors, double tolerance = 1e-9);

/// Every value within `bound` of the largest one, or of `least` where all are smaller.
void expect_near(const char* what, const reference::Doubles& got, const reference::Doubles& want, double bound,
                 double least = 0);

}  // namespace operation_cases
