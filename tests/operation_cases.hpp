// One operation whose tensors and results are plain doubles in the order N, C, space: for tests that compare a layer
// with loops of their own.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "allnorm/operation.hpp"
#include "cases.hpp"
#include "launch/reference/reference.hpp"

namespace operation_cases {

// What such a test speaks of; it says `using namespace operation_cases`.
using namespace allnorm;
using cases::Extents;
using cases::Random;
using reference::Array;
using reference::Doubles;

using Arrays = std::map<std::string, reference::Array, std::less<>>;

constexpr DType types[] = {DType::f64, DType::f32, DType::f16, DType::bf16};
constexpr Order orders[] = {Order::channels_first, Order::channels_last};

/// Calls f(dtype, order, shape) for every type, order and shape, which a failure names.
template <class F>
void for_each_kind(const std::vector<Extents>& shapes, const F& f) {
  for (const DType dtype : types)
    for (const Order order : orders)
      for (const Extents& shape : shapes) {
        SCOPED_TRACE(std::string(to_string(dtype)) + " " + to_string(Shape(std::span(shape))) +
                     (order == Order::channels_first ? "" : ", channels last"));
        f(dtype, order, shape);
      }
}

/// As a type holds them.
Array rounded(Array values, DType dtype);
/// Normally distributed values that the type holds.
Array drawn(Random& random, const Extents& shape, DType dtype, double mean = 0, double std = 1);
/// The indices from `begin` to `end` of an axis.
Array part_of(const Array& whole, int axis, std::int64_t begin, std::int64_t end);
/// Half a unit in the last place of values near 1.
double unit_of(DType dtype);
/// What output and dx may be off, of their largest terms: a few roundings of the compute type, then one to the type.
double tolerance_of(DType dtype);
/// What sums over values of the type may be off, of their largest terms.
double statistics_tolerance_of(DType dtype);

/// What a call made: "output", gradients under the names of the row's outputs, statistics under theirs.
struct Subject {
  /// Activation-like tensors are converted to `dtype` and put in `order`; labels, and a mixture of one
  /// axis, to integers; parameters are f64, or of type `parameters`.
  explicit Subject(const Layer& of, std::int64_t channels = 1, DType type = DType::f64,
                   Order layout = Order::channels_first, std::shared_ptr<Communicator> group = nullptr);

  /// Forward with "input" and the row's tensors; backward too where "grad_output", or the gradient of a statistic, is
  /// among them, with gradients of all that are given.
  Arrays operator()(const Arrays& tensors);
  /// The output again, by a replay of a forward call.
  Doubles replayed(const Arrays& tensors);
  /// The output of inference.
  Doubles inferred(const Arrays& tensors);
  /// The values of a state.
  Doubles state(const std::string& name);

  Layer layer;
  DType dtype;
  Order order;
  DType parameters = DType::f64;
  Queue queue;
  std::unique_ptr<Operation> operation;
};

/// Compares the gradients of sum(grad_output * output), and of as much of statistics whose gradients are given, by
/// every value of the other `tensors` with central differences of fourth order, each within `tolerance` of the largest.
/// `make`: a layer object as it is before the call.
void expect_gradients(const std::function<Subject()>& make, const Arrays& tensors, double tolerance = 1e-9);

/// Every value within `bound` of the largest one, or of `least` where all are smaller.
void expect_near(const char* what, const Doubles& got, const Doubles& want, double bound, double least = 0);

}  // namespace operation_cases
