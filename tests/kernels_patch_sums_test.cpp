// Patch sums of convolutions against plain loops: every type, layout, geometry, and the same bits on any number of
// threads.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "allnorm/device.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "kernels/ops.hpp"
#include "launch/reference/reference.hpp"
#include "norm_cases.hpp"

namespace kernels_patch_sums_test {
namespace {

using namespace allnorm;
using reference::Array;
using reference::Doubles;

struct Geometry {
  const char* edge;
  cases::Extents in;      // (N, Ci, D, H, W)
  cases::Extents weight;  // (C, Ci/groups, kd, kh, kw)
  reference::Conv conv;
};

const std::vector<Geometry>& geometries() {
  static const std::vector<Geometry> all{
      {"one position", {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}, {}},
      {"more positions than a block lays out", {2, 3, 1, 9, 11}, {7, 3, 1, 3, 3}, {{1}, {0, 1, 1}, {1}, 1}},
      {"groups, and a fan-in over several vectors", {2, 12, 1, 5, 6}, {9, 4, 1, 3, 3}, {{1}, {0, 1, 1}, {1}, 3}},
      {"stride and dilation", {1, 2, 1, 9, 12}, {5, 2, 1, 2, 3}, {{1, 2, 3}, {0, 2, 1}, {1, 2, 1}, 1}},
      {"three axes", {2, 2, 4, 3, 5}, {3, 2, 2, 3, 2}, {{1}, {1, 1, 0}, {1}, 1}},
      {"positions in parts, beyond a tile of channels and of fan-in",
       {2, 9, 1, 20, 19},
       {35, 9, 1, 3, 3},
       {{1}, {0, 1, 1}, {1}, 1}},
      {"one channel per group", {1, 6, 1, 40, 41}, {6, 1, 1, 3, 3}, {{1}, {0, 1, 1}, {1}, 6}},
      {"no sample", {0, 2, 1, 4, 4}, {3, 2, 1, 3, 3}, {{1}, {0, 1, 1}, {1}, 1}},
      {"padding wider than the input", {1, 1, 1, 1, 2}, {2, 1, 1, 3, 3}, {{1}, {0, 2, 2}, {1}, 1}},
  };
  return all;
}

class PatchSums : public testing::TestWithParam<DType> {};

TEST_P(PatchSums, EqualTheDefinition) {
  visit(GetParam(), [&]<class T>(std::type_identity<T>) {
    for (const Geometry& geometry : geometries())
      for (const Order order : {Order::channels_first, Order::channels_last}) {
        cases::Random random(21);
        const auto typed = [](const Doubles& values) {
          backend::Array<T> made(values.size());
          for (std::size_t i = 0; i < made.size(); ++i) made[i] = store<T>(static_cast<compute_t<T>>(values[i]));
          return made;
        };
        const auto rounded = [](Array a) {
          for (double& v : a.v) v = static_cast<double>(load(store<T>(static_cast<compute_t<T>>(v))));
          return a;
        };
        const Array input = rounded(cases::normal(random, geometry.in));
        const Array weight = cases::normal(random, geometry.weight);
        const Array x = rounded(reference::convolve(input, weight, geometry.conv));
        const std::int64_t C = geometry.weight[0], groups = geometry.conv.groups;
        const auto fan_in = static_cast<std::size_t>(reference::elements(geometry.weight) / C);
        const Doubles drawn = cases::betas(random, C);
        const backend::Array<double> center(drawn.begin(), drawn.end());

        // From the definition: sums about 0, moved to the centers.
        reference::Reals sum(static_cast<std::size_t>(C) * fan_in), product(sum.size());
        reference::add_patch_sums(input, x, geometry.weight, geometry.conv, sum, product);
        Doubles want(sum.size()), want_sum(static_cast<std::size_t>(groups) * fan_in);
        for (std::size_t i = 0; i < sum.size(); ++i) {
          want[i] = static_cast<double>(product[i] - static_cast<reference::Real>(center[i / fan_in]) * sum[i]);
          want_sum[i / fan_in * static_cast<std::size_t>(groups) / static_cast<std::size_t>(C) * fan_in + i % fan_in] =
              static_cast<double>(sum[i]);
        }

        const auto tx = typed(norm_cases::to_order(x, order)), tin = typed(norm_cases::to_order(input, order));
        PatchSumsArgs args;
        args.conv_input = tin.data();
        args.x = tx.data();
        args.dtype = GetParam();
        args.order = order;
        args.samples = geometry.in[0];
        args.in_channels = geometry.in[1];
        args.channels = C;
        args.groups = groups;
        for (std::size_t axis = 0; axis < 3; ++axis) {
          const auto at = [axis](const std::vector<std::int64_t>& v) { return v[v.size() == 1 ? 0 : axis]; };
          args.in[axis] = geometry.in[2 + axis];
          args.out[axis] = x.shape[2 + axis];
          args.kernel[axis] = geometry.weight[2 + axis];
          args.stride[axis] = at(geometry.conv.stride);
          args.padding[axis] = at(geometry.conv.padding);
          args.dilation[axis] = at(geometry.conv.dilation);
        }
        args.center = center.data();
        backend::Array<double> first;
        for (const int threads : {1, 2, 3}) {
          Queue queue = backend::queue(threads);
          backend::Array<double> patch_sum(want_sum.size()), products(want.size());
          args.patch_sum = patch_sum.data();
          args.product = products.data();
          backend::patch_sums(args, queue);
          queue.wait();
          // Up to 64 products are added in the compute type, so each block is right to 64 of its roundings of the
          // largest term; the blocks are added in double.
          const double unit = std::is_same_v<T, double> ? 0x1p-53 : 0x1p-24;
          const double terms = static_cast<double>(x.v.size()) / static_cast<double>(C) * 16;
          for (std::size_t i = 0; i < want.size(); ++i)
            ASSERT_NEAR(products[i], want[i], 64 * unit * terms + 1e-12) << geometry.edge << ", " << i;
          for (std::size_t i = 0; i < want_sum.size(); ++i)
            ASSERT_NEAR(patch_sum[i], want_sum[i], 1e-13 * (terms + 1)) << geometry.edge << ", " << i;
          if (threads == 1) first = products;
          EXPECT_EQ(products, first) << geometry.edge;
        }
      }
  });
}

INSTANTIATE_TEST_SUITE_P(Types, PatchSums, testing::Values(DType::f64, DType::f32, DType::f16, DType::bf16),
                         [](const auto& dtype) { return std::string(to_string(dtype.param)); });

}  // namespace
}  // namespace kernels_patch_sums_test
