// Products and maps of the channels of a group against plain loops: every type, both orders, the same bits on any
// number of threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "allnorm/device.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "kernels/ops.hpp"
#include "norm_cases.hpp"
#include "operation_cases.hpp"

namespace kernels_channel_groups_test {
namespace {

using namespace allnorm;
using reference::Array;
using reference::Doubles;
using reference::Real;

struct Size {
  const char* edge;
  cases::Extents shape;
  std::int64_t width;
};
const std::vector<Size>& sizes() {
  static const std::vector<Size> all{
      {"one value", {1, 1}, 1},
      {"no space", {150, 6}, 3},
      {"short runs", {40, 6, 3}, 2},
      {"runs over blocks", {2, 5, 300}, 5},
      {"a block to the end", {1, 8, 128}, 4},
      {"several parts", {3, 4, 61, 50}, 2},
      {"more channels than a tile", {2, 70, 5}, 35},
      {"odd groups of many", {1, 34, 130}, 17},
      {"no sample", {0, 4, 3}, 2},
      {"no position", {2, 4, 0}, 2},
      {"no channel", {2, 0, 3}, 2},
  };
  return all;
}

// One call of both kernels, and what they must make.
template <class T>
struct Case {
  Case(const Size& size, Order order_, int threads)
      : order(order_), queue(backend::queue(threads)), x(filled(size.shape, 0.5)), dy(filled(size.shape, 0)) {
    const auto C = size.shape[1], S = reference::elements({size.shape.begin() + 2, size.shape.end()});
    groups = {size.shape[0], C, S, size.width, order};
    center = values(C);
    matrix = values(C * size.width);
    of_dy = values(C * size.width);
    shift = values(C);
    power.assign(static_cast<std::size_t>(groups.groups()), 2);
    products.assign(matrix.size(), -1);
    sums.assign(center.size(), -1);
  }

  void multiply(bool with_dy) {
    const auto tx = typed(x), tdy = typed(dy);
    queue.ops().channel_products({tx.data(), with_dy ? tdy.data() : nullptr, dtype_of<T>(), groups, center.data(),
                                  products.data(), with_dy ? sums.data() : nullptr},
                                 queue);
    queue.wait();
  }
  Doubles map(bool with_dy, bool in_place) {
    auto tx = typed(x), ty = in_place ? backend::Array<T>() : typed(x);
    const auto tdy = typed(dy);
    T* const y = in_place ? tx.data() : ty.data();
    queue.ops().channel_map({.x = tx.data(),
                             .dy = with_dy ? tdy.data() : nullptr,
                             .y = y,
                             .dtype = dtype_of<T>(),
                             .groups = groups,
                             .center = center.data(),
                             .power = power.data(),
                             .matrix = matrix.data(),
                             .of_dy = with_dy ? of_dy.data() : nullptr,
                             .shift = with_dy ? shift.data() : nullptr},
                            queue);
    queue.wait();
    Doubles made(x.v.size());
    for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<double>(load(y[i]));
    return norm_cases::from_order(made, x.shape, order).v;
  }

  /// Calls body(p -> (c -> index)) ... for every position and channel c of a group: the group's first channel, c, and
  /// where channel j of it is.
  template <class Body>
  void for_all(const Body& body) const {
    const auto w = static_cast<std::size_t>(groups.width), C = static_cast<std::size_t>(groups.channels);
    const auto N = static_cast<std::size_t>(groups.samples), S = static_cast<std::size_t>(groups.space);
    for (std::size_t n = 0; n < N; ++n)
      for (std::size_t c = 0; c < C; ++c)
        for (std::size_t s = 0; s < S; ++s) {
          const std::size_t first = c / w * w;
          body(c, first, [=](std::size_t j) { return (n * C + j) * S + s; });
        }
  }

  Array filled(const cases::Extents& shape, double mean) {
    return operation_cases::rounded(cases::normal(random, shape, mean), dtype_of<T>());
  }
  backend::Array<double> values(std::int64_t size) {
    backend::Array<double> made(static_cast<std::size_t>(size));
    for (double& v : made) v = random.normal();
    return made;
  }
  backend::Array<T> typed(const Array& a) const {
    const Doubles laid = norm_cases::to_order(a, order);
    backend::Array<T> made(laid.size());
    for (std::size_t i = 0; i < made.size(); ++i) made[i] = store<T>(static_cast<compute_t<T>>(laid[i]));
    return made;
  }

  cases::Random random{21};
  Order order;
  Queue queue;
  Array x, dy;
  ChannelGroups groups;
  backend::Array<double> center, matrix, of_dy, shift, power, products, sums;
};

template <class T>
class ChannelGroupKernels : public testing::Test {};
using Types = testing::Types<double, float, f16, bf16>;
TYPED_TEST_SUITE(ChannelGroupKernels, Types);

template <class Check>
void for_sizes(const Check& check) {
  for (const Size& size : sizes())
    for (const Order order : {Order::channels_first, Order::channels_last})
      for (const bool with_dy : {false, true}) {
        SCOPED_TRACE(std::string(size.edge) + (order == Order::channels_first ? "" : ", channels last") +
                     (with_dy ? ", dy" : ""));
        check(size, order, with_dy);
      }
}

TYPED_TEST(ChannelGroupKernels, ProductsEqualTheDefinition) {
  for_sizes([](const Size& size, Order order, bool with_dy) {
    Case<TypeParam> own(size, order, 1);
    own.multiply(with_dy);
    const auto w = static_cast<std::size_t>(size.width);
    std::vector<Real> products(own.products.size()), sums(own.sums.size()), sizes_of_terms(products.size());
    own.for_all([&](std::size_t c, std::size_t first, auto at) {
      const Real left = with_dy ? own.dy.v[at(c)] : own.x.v[at(c)] - static_cast<Real>(own.center[c]);
      for (std::size_t j = 0; j < w; ++j) {
        const Real term = left * (own.x.v[at(first + j)] - static_cast<Real>(own.center[first + j]));
        products[c * w + j] += term;
        sizes_of_terms[c * w + j] += std::abs(term);
      }
      sums[c] += left;
    });
    const double bound = 1e-14 + backend::statistics_unit(dtype_of<TypeParam>());  // of the sum of sizes
    for (std::size_t i = 0; i < products.size(); ++i)
      EXPECT_NEAR(own.products[i], static_cast<double>(products[i]), bound * static_cast<double>(sizes_of_terms[i]))
          << i;
    if (!with_dy) return;
    for (std::size_t c = 0; c < sums.size(); ++c)
      EXPECT_NEAR(own.sums[c], static_cast<double>(sums[c]), bound * static_cast<double>(own.x.v.size())) << c;
  });
}

TYPED_TEST(ChannelGroupKernels, MapsEqualTheDefinition) {
  for_sizes([](const Size& size, Order order, bool with_dy) {
    Case<TypeParam> own(size, order, 1);
    const Doubles y = own.map(with_dy, false);
    const auto w = static_cast<std::size_t>(size.width);
    own.for_all([&](std::size_t c, std::size_t first, auto at) {
      Real sum = with_dy ? static_cast<Real>(own.shift[c]) : 0, terms = std::abs(sum);
      for (std::size_t j = 0; j < w; ++j) {
        const Real of_x =
            own.matrix[c * w + j] * 2 * (own.x.v[at(first + j)] - static_cast<Real>(own.center[first + j]));
        const Real of_dy = with_dy ? own.of_dy[c * w + j] * own.dy.v[at(first + j)] : 0;
        sum += of_x + of_dy;
        terms += std::abs(of_x) + std::abs(of_dy);
      }
      EXPECT_NEAR(y[at(c)], static_cast<double>(sum),
                  operation_cases::tolerance_of(dtype_of<TypeParam>()) * static_cast<double>(terms));
    });
    EXPECT_EQ(own.map(with_dy, true), y);
  });
}

TYPED_TEST(ChannelGroupKernels, DoNotDependOnTheNumberOfThreads) {
  for_sizes([](const Size& size, Order order, bool with_dy) {
    Case<TypeParam> one(size, order, 1), three(size, order, 3);
    one.multiply(with_dy);
    three.multiply(with_dy);
    EXPECT_EQ(one.products, three.products);
    EXPECT_EQ(one.sums, three.sums);
    EXPECT_EQ(one.map(with_dy, false), three.map(with_dy, false));
  });
}

}  // namespace
}  // namespace kernels_channel_groups_test
