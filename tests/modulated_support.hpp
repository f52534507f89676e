// Layers whose gamma and beta are each sample's or each value's own: their definition in plain loops, and a call by
// slots in any type and order.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "allnorm/operation.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "harness.hpp"
#include "norm_cases.hpp"

namespace modulated {

using namespace allnorm;
using cases::Extents;
using cases::Random;
using reference::Doubles;

struct Extent3 {
  std::int64_t N, C, S;
  explicit Extent3(const Extents& shape)
      : N(shape[0]), C(shape[1]), S(reference::elements({shape.begin() + 2, shape.end()})) {}
  std::size_t at(std::int64_t n, std::int64_t c, std::int64_t s) const {
    return static_cast<std::size_t>((n * C + c) * S + s);
  }
  std::size_t size() const { return static_cast<std::size_t>(N * C * S); }
};

/// y = gamma xh + beta with a gamma and a beta of every value, and its gradients; everything in the order N, C, space.
struct Answer {
  Doubles y, dx, dgamma, dbeta;
};
inline Answer solve(const Extents& shape, bool by_instance, double eps, const Doubles& x, const Doubles& gamma,
                    const Doubles& beta, const Doubles& dy) {
  const Extent3 e(shape);
  Answer a{Doubles(e.size()), Doubles(e.size()), Doubles(e.size()), Doubles(e.size())};
  for (std::int64_t set = 0; set < (by_instance ? e.N * e.C : e.C); ++set) {
    const std::int64_t c = set % e.C, first = by_instance ? set / e.C : 0, last = by_instance ? first + 1 : e.N;
    const auto each = [&](const auto& f) {
      for (std::int64_t n = first; n < last; ++n)
        for (std::int64_t s = 0; s < e.S; ++s) f(e.at(n, c, s));
    };
    const auto m = static_cast<long double>((last - first) * e.S);
    long double mean = 0, var = 0, mean_g = 0, mean_gx = 0;
    each([&](std::size_t i) { mean += x[i] / m; });
    each([&](std::size_t i) { var += (x[i] - mean) * (x[i] - mean) / m; });
    const long double sigma = std::sqrt(var + eps);
    each([&](std::size_t i) {
      const long double xh = (x[i] - mean) / sigma;
      a.y[i] = static_cast<double>(gamma[i] * xh + beta[i]);
      a.dgamma[i] = static_cast<double>(dy[i] * xh);
      a.dbeta[i] = dy[i];
      mean_g += gamma[i] * dy[i] / m;
      mean_gx += gamma[i] * dy[i] * xh / m;
    });
    each([&](std::size_t i) {
      const long double xh = (x[i] - mean) / sigma;
      a.dx[i] = m == 1 ? 0 : static_cast<double>((gamma[i] * dy[i] - mean_g - xh * mean_gx) / sigma);
    });
  }
  return a;
}

/// A call of an operation: tensors given as doubles in the order N, C, space.
template <class T>
class Call {
 public:
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;  // of parameters

  Call(const Layer& layer, Extents shape, Order order, harness::World world, Queue& queue)
      : shape_(std::move(shape)),
        order_(order),
        queue_(&queue),
        operation_(make_operation(layer, shape_[1], std::move(world), queue)) {}

  Operation& operation() { return *operation_; }

  /// Shaped like the input, or like it but in space.
  void give(std::string_view slot, const Doubles& values, const Extents& shape) {
    backend::Array<T>& made = activations_.emplace_back(typed<T>(norm_cases::to_order({shape, values}, order_)));
    inputs_.add(slot, backend::view(std::as_const(made).data(), Shape(std::span(shape)), order_));
    room<T>(slot, shape, activation_gradients_, order_);
  }
  void give(std::string_view slot, const Doubles& values) { give(slot, values, shape_); }
  void give_parameter(std::string_view slot, const Doubles& values, const Extents& shape) {
    backend::Array<P>& made = parameters_.emplace_back(typed<P>(values));
    inputs_.add(slot, backend::view(std::as_const(made).data(), Shape(std::span(shape))));
    if (operation_->layer().row->output("grad_" + std::string(slot)) != nullptr)
      room<double>(slot, shape, parameter_gradients_, Order::channels_first);
  }
  void give_labels(std::string_view slot, const std::vector<std::int64_t>& values) {
    const auto& made = labels_.emplace_back(values.begin(), values.end());
    inputs_.add(slot, backend::view(made.data(), Shape{static_cast<std::int64_t>(values.size())}));
  }

  Doubles forward() {
    output_.assign(static_cast<std::size_t>(reference::elements(shape_)), T{});
    saved_ = operation_->forward(inputs_, output(), *queue_);
    return result();
  }
  /// The output of the last call, and of others that are given output().
  OutputSlots output() { return {{"output", backend::view(output_.data(), Shape(std::span(shape_)), order_)}}; }
  void clear() { std::fill(output_.begin(), output_.end(), T{}); }
  Doubles result() const {
    queue_->wait();
    return plain(output_, shape_, order_);
  }
  void backward(const Doubles& dy) {
    const backend::Array<T> made = typed<T>(norm_cases::to_order({shape_, dy}, order_));
    operation_->backward(*saved_, {{"grad_output", backend::view(made.data(), Shape(std::span(shape_)), order_)}},
                         gradients_, *queue_);
    queue_->wait();
  }
  Doubles gradient(const std::string& slot) const {
    if (const auto found = activation_gradients_.find(slot); found != activation_gradients_.end())
      return plain(found->second, extents_.at(slot), order_);
    const auto& values = parameter_gradients_.at(slot);
    return Doubles(values.begin(), values.end());
  }
  const SavedCall& saved() const { return *saved_; }
  Doubles statistic(std::string_view name) const { return to_host(saved_->statistic(name), *queue_); }
  const InputSlots& inputs() const { return inputs_; }

 private:
  template <class To>
  static backend::Array<To> typed(const Doubles& values) {
    backend::Array<To> made(values.size());
    for (std::size_t i = 0; i < made.size(); ++i) made[i] = store<To>(static_cast<compute_t<To>>(values[i]));
    return made;
  }
  static Doubles plain(const backend::Array<T>& values, const Extents& shape, Order order) {
    Doubles made(values.size());
    for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<double>(load(values[i]));
    return norm_cases::from_order(made, shape, order).v;
  }
  template <class To>
  void room(std::string_view slot, const Extents& shape, std::map<std::string, backend::Array<To>>& rooms,
            Order order) {
    constexpr double untouched = 777;
    auto& made = rooms[std::string(slot)];
    made.assign(static_cast<std::size_t>(reference::elements(shape)), store<To>(static_cast<compute_t<To>>(untouched)));
    const std::string& name = names_.emplace_back("grad_" + std::string(slot));
    gradients_.add(name, backend::view(made.data(), Shape(std::span(shape)), order));
    extents_[std::string(slot)] = shape;
  }

  Extents shape_;
  Order order_;
  Queue* queue_;
  std::unique_ptr<Operation> operation_;
  std::deque<backend::Array<T>> activations_;
  std::deque<backend::Array<P>> parameters_;
  std::deque<backend::Array<std::int64_t>> labels_;
  std::deque<std::string> names_;
  std::map<std::string, backend::Array<T>> activation_gradients_;
  std::map<std::string, backend::Array<double>> parameter_gradients_;
  std::map<std::string, Extents> extents_;
  InputSlots inputs_;
  OutputSlots gradients_;
  backend::Array<T> output_;
  std::unique_ptr<SavedCall> saved_;
};

template <class T>
Doubles rounded(Doubles values) {
  for (double& v : values) v = static_cast<double>(load(store<T>(static_cast<compute_t<T>>(v))));
  return values;
}

/// How far a map's results may be off: a few roundings of its compute type, and one of T.
template <class T>
constexpr double map_bound = std::is_same_v<T, double>  ? 1000 * 0x1p-53
                             : std::is_same_v<T, float> ? 8 * 0x1p-24
                             : std::is_same_v<T, f16>   ? 8 * 0x1p-11
                                                        : 8 * 0x1p-8;
/// Sums are of doubles, of what was read.
template <class T>
const double sum_bound = 1e-12 + (std::is_same_v<T, double> ? 0 : backend::statistics_unit);

/// Within `bound` of the largest value, or of `least` where that is larger.
inline void expect_near(const char* what, const Doubles& got, const Doubles& want, double bound, double least) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = least, error = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(want[i]));
    error = std::max(error, std::isfinite(got[i]) ? std::abs(got[i] - want[i]) : HUGE_VAL);
  }
  EXPECT_LE(error, bound * largest) << what;
}

inline Doubles normals(Random& random, std::size_t size, double mean = 0, double std = 1) {
  Doubles made(size);
  for (double& v : made) v = mean + std * random.normal();
  return made;
}

/// The derivative of f at values[i], by central differences.
template <class F>
double slope(Doubles values, std::size_t i, const F& f) {
  const double step = 1e-5, at = values[i];
  values[i] = at + step;
  const double above = f(values);
  values[i] = at - step;
  return (above - f(values)) / (2 * step);
}

inline double dot(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace modulated
