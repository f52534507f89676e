// Ranks that hold parts of the same sets, on the program's device: layer, RMS, group and instance norm whose j-th group
// is that of all ranks together, against the oracle on the whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "harness.hpp"
#include "norm_cases.hpp"

namespace sets_test {
namespace {

using namespace allnorm;
using cases::Extents;
using cases::Random;
using reference::Array;
using reference::Doubles;

struct Case {
  std::string layer;
  Extents shape;                    // of the whole
  int axis;                         // that is cut,
  std::vector<std::int64_t> parts;  // into these extents, one per rank
  double ratio = 0;                 // |mean| / std
  double scale = 1;                 // std
};

std::int64_t begin_of(const Case& c, int rank) {
  std::int64_t begin = 0;
  for (int r = 0; r < rank; ++r) begin += c.parts[static_cast<std::size_t>(r)];
  return begin;
}

// Where in the whole the values of a rank's part of an array lie, whose axis `axis` is cut.
std::vector<std::size_t> places(const Case& c, const Extents& shape, int axis, int rank) {
  const std::int64_t begin = begin_of(c, rank), end = begin_of(c, rank + 1);
  const std::int64_t inner = reference::elements({shape.begin() + axis + 1, shape.end()});
  std::vector<std::size_t> made;
  for (std::int64_t i = 0; i < reference::elements(shape); ++i)
    if (const std::int64_t at = i / inner % shape[static_cast<std::size_t>(axis)]; at >= begin && at < end)
      made.push_back(static_cast<std::size_t>(i));
  return made;
}
Doubles picked(const Doubles& whole, const std::vector<std::size_t>& from) {
  Doubles made;
  for (const std::size_t i : from) made.push_back(whole[i]);
  return made;
}
Extents part_of(const Case& c, Extents shape, int axis, int rank) {
  shape[static_cast<std::size_t>(axis)] = c.parts[static_cast<std::size_t>(rank)];
  return shape;
}

// The group of every element: that of its number on its rank.
reference::Sets sets_of(const Case& c, const Layer& layer) {
  const std::int64_t N = c.shape[0], C = c.shape[1], S = reference::elements({c.shape.begin() + 2, c.shape.end()});
  const bool rows = layer.row->by_trailing(), grouped = layer.row->statistics.has(Axis::group);
  const std::int64_t G = grouped ? layer.options.groups : C;
  reference::Sets sets;
  sets.sets = rows ? N : N * G;
  sets.affines = rows ? C * S : C;
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t channel = 0; channel < C; ++channel)
      for (std::int64_t s = 0; s < S; ++s) {
        std::int64_t own = channel, channels = C;
        for (int r = 0; c.axis == 1 && r < static_cast<int>(c.parts.size()); ++r)
          if (channel >= begin_of(c, r) && channel < begin_of(c, r + 1))
            own = channel - begin_of(c, r), channels = c.parts[static_cast<std::size_t>(r)];
        sets.set.push_back(rows ? n : n * G + own / (channels / G));
        sets.affine.push_back(rows ? channel * S + s : channel);
      }
  return sets;
}

template <class T>
void check(const Case& c, Order order) {
  Layer layer = parse_layer(c.layer);
  if (c.scale != 1) layer.set("eps", "0");
  const Row& row = *layer.row;
  const bool rows = row.by_trailing(), has_bias = row.tensor("bias") != nullptr;
  const reference::Sets sets = sets_of(c, layer);
  Random random(23);
  const auto rounded = [](Array a) {
    for (double& v : a.v) v = static_cast<double>(load(store<T>(static_cast<compute_t<T>>(v))));
    return a;
  };
  Array x = cases::normal(random, c.shape);
  for (double& v : x.v) v = c.scale * (v + c.ratio);
  x = rounded(x);
  const Array dy = rounded(cases::normal(random, c.shape)), residual = rounded(cases::normal(random, c.shape));
  const Doubles gamma = cases::gammas(random, sets.affines),
                beta = has_bias ? cases::betas(random, sets.affines) : Doubles{};
  auto expected = row.centred ? reference::rows_forward(x, sets, gamma, beta, layer.options.eps)
                              : reference::rms_forward(x, sets, gamma, layer.options.eps);
  for (std::size_t i = 0; i < x.v.size(); ++i) expected.y.v[i] += residual.v[i];
  const auto gradients = row.centred ? reference::rows_backward(x, sets, gamma, dy, layer.options.eps)
                                     : reference::rms_backward(x, sets, gamma, dy, layer.options.eps);

  // gamma and beta are cut where the axis is theirs
  const bool cuts_affine = rows || c.axis == 1;
  Extents affine = rows ? Extents(c.shape.begin() + 1, c.shape.end()) : Extents{c.shape[1]};
  const int ranks = static_cast<int>(c.parts.size());
  Doubles y(x.v.size()), dx(x.v.size()), dresidual(x.v.size()), dgamma(gamma.size()), dbeta(gamma.size());
  std::vector<Doubles> means(c.parts.size()), rstds(c.parts.size());
  std::mutex mutex;
  harness::run(ranks, [&](const harness::World& world, Queue& queue) {
    const int rank = world->rank();
    const Extents extents = part_of(c, c.shape, c.axis, rank);
    const auto own = places(c, c.shape, c.axis, rank);
    const auto of_affine = cuts_affine ? places(c, affine, 0, rank) : std::vector<std::size_t>{};
    const Shape shape(std::span<const std::int64_t>(extents.data(), extents.size()));
    const auto typed = [&](const Array& a) {
      const Doubles values = norm_cases::to_order({extents, picked(a.v, own)}, order);
      backend::Array<T> made(values.size());
      for (std::size_t i = 0; i < made.size(); ++i) made[i] = store<T>(static_cast<compute_t<T>>(values[i]));
      return made;
    };
    const auto parameter = [&](const Doubles& values) {
      const Doubles made = cuts_affine ? picked(values, of_affine) : values;
      return backend::Array<double>(made.begin(), made.end());
    };
    const backend::Array<T> tx = typed(x), tdy = typed(dy), added = typed(residual);
    const backend::Array<double> weight = parameter(gamma), bias = parameter(has_bias ? beta : gamma);
    backend::Array<T> ty(tx.size()), tdx(tx.size()), tdresidual(tx.size());
    backend::Array<double> dweight(weight.size()), dbias(weight.size());
    const Extents of = cuts_affine ? part_of(c, affine, 0, rank) : affine;
    const Shape parameters(std::span<const std::int64_t>(of.data(), of.size()));
    Norm norm(layer, extents[1], world, queue);
    ForwardInputs in{.input = backend::view(tx.data(), shape, order),
                     .weight = backend::view(weight.data(), parameters),
                     .residual = backend::view(added.data(), shape, order)};
    BackwardOutputs out{.input = backend::view(tdx.data(), shape, order),
                        .residual = backend::view(tdresidual.data(), shape, order),
                        .weight = backend::view(dweight.data(), parameters)};
    if (has_bias) in.bias = backend::view(bias.data(), parameters);
    if (has_bias) out.bias = backend::view(dbias.data(), parameters);
    norm.forward(in, backend::view(ty.data(), shape, order), queue);
    // the second call's records stay on GPUs, where a group's first ones pass the host
    const Saved saved = norm.forward(in, backend::view(ty.data(), shape, order), queue);
    norm.backward(saved, backend::view(tdy.data(), shape, order), out, queue);
    backend::Array<T> again(tx.size());
    norm.replay(saved, in, backend::view(again.data(), shape, order), queue);
    const auto at = static_cast<std::size_t>(rank);
    means[at] = to_host(saved.frame().mean, queue);
    rstds[at] = to_host(saved.frame().rstd, queue);
    queue.wait();
    const std::lock_guard lock(mutex);
    for (std::size_t i = 0; i < ty.size(); ++i) EXPECT_EQ(load(again[i]), load(ty[i]));
    const auto put = [&](const backend::Array<T>& values, Doubles& to) {
      Doubles plain(values.size());
      for (std::size_t i = 0; i < plain.size(); ++i) plain[i] = static_cast<double>(load(values[i]));
      plain = norm_cases::from_order(plain, extents, order).v;
      for (std::size_t i = 0; i < plain.size(); ++i) to[own[i]] = plain[i];
    };
    put(ty, y), put(tdx, dx), put(tdresidual, dresidual);
    for (std::size_t i = 0; i < dweight.size(); ++i) {
      dgamma[cuts_affine ? of_affine[i] : i] += dweight[i];
      dbeta[cuts_affine ? of_affine[i] : i] += dbias[i];
    }
  });

  // As in far_cases.cpp: a mean in a double is off by 2^-53 of itself, sums of n values by roundings that add up like
  // noise, and what lies on the way to y and dx is rounded to the type.
  const double unit = std::is_same_v<T, double>  ? 0x1p-53
                      : std::is_same_v<T, float> ? 0x1p-24
                      : std::is_same_v<T, f16>   ? 0x1p-11
                                                 : 0x1p-8;
  const double count = static_cast<double>(x.v.size()) / static_cast<double>(std::max<std::int64_t>(1, sets.sets));
  const double far = 0x1p-53 * (1 + c.ratio), statistics = backend::statistics_unit(dtype_of<T>());
  const double sums = 2 * 0x1p-53 * std::sqrt(count) + statistics, K = ranks;
  for (int r = 0; r < ranks; ++r) {
    const auto at = static_cast<std::size_t>(r);
    ASSERT_EQ(means[at].size(), static_cast<std::size_t>(sets.sets));
    EXPECT_EQ(means[at], means[0]);  // the same bits on every rank
    EXPECT_EQ(rstds[at], rstds[0]);
    for (std::size_t g = 0; g < means[at].size(); ++g) {
      const double mean = row.centred ? expected.mean[g] : 0, rstd = expected.rstd[g];
      EXPECT_LE(std::abs(means[at][g] - mean), 4 * 0x1p-52 * std::abs(mean) + 4 * sums * c.scale);
      EXPECT_LE(std::abs(rstds[at][g] - rstd), ((4 + K) * far + 4 * sums) * rstd);
    }
  }
  const double map = 8 * far + (std::is_same_v<T, double> ? 32 * 0x1p-53 : 8 * 0x1p-24 + 2 * unit) + 4 * statistics;
  double largest_rstd = 0;
  for (const double r : expected.rstd) largest_rstd = std::max(largest_rstd, r);
  const double term = 8 * largest_rstd * (1 + std::sqrt(count));
  for (std::size_t i = 0; i < y.size(); ++i) {
    EXPECT_LE(std::abs(y[i] - expected.y.v[i]), map * 4 * std::max(1.0, std::abs(expected.y.v[i]))) << i;
    EXPECT_LE(std::abs(dx[i] - gradients.dx.v[i]), map * term) << i;
    EXPECT_EQ(dresidual[i], dy.v[i]);
  }
  const double terms = std::sqrt(static_cast<double>(x.v.size())) * 4;
  for (std::size_t p = 0; p < gamma.size(); ++p) {
    EXPECT_NEAR(dgamma[p], gradients.dgamma[p], (1e-12 + 8 * far + 8 * statistics) * terms) << p;
    if (!has_bias) continue;
    EXPECT_NEAR(dbeta[p], gradients.dbeta[p], (1e-12 + 8 * statistics) * terms) << p;
  }
}

template <class T>
void check_both_orders(const Case& c) {
  for (const Order order : {Order::channels_first, Order::channels_last}) {
    if (order == Order::channels_last && parse_layer(c.layer).row->by_trailing()) continue;
    SCOPED_TRACE(c.layer + ", axis " + std::to_string(c.axis) + ", " + std::to_string(c.parts.size()) + " ranks, " +
                 (order == Order::channels_first ? "first" : "last") + ", ratio " + std::to_string(c.ratio) +
                 ", scale " + std::to_string(c.scale));
    check<T>(c, order);
  }
}

// Parts of 6 slices: alone, uneven ones, and ranks without any.
const std::vector<std::vector<std::int64_t>> cuts{{6}, {4, 2}, {0, 4, 2}, {2, 0, 4, 0}};

template <class T>
class Sets : public testing::Test {};
using Types = testing::Types<double, float, f16, bf16>;
TYPED_TEST_SUITE(Sets, Types);

TYPED_TEST(Sets, OfSeveralRanksAreThoseOfTheWhole) {
  for (const auto& parts : cuts) {
    if (backend::takes_some && parts.size() == 2) continue;
    check_both_orders<TypeParam>({"instance_norm", {2, 3, 6, 5}, 2, parts});
    check_both_orders<TypeParam>({"group_norm:groups=2", {3, 4, 6, 3}, 2, parts});
    check_both_orders<TypeParam>({"group_norm:groups=2", {3, 6, 5}, 1, parts});
    check_both_orders<TypeParam>({"group_norm:groups=1", {2, 6}, 1, parts});
    check_both_orders<TypeParam>({"layer_norm", {4, 6, 7}, 1, parts});
    check_both_orders<TypeParam>({"rms_norm", {4, 6, 7}, 1, parts});
  }
}

TYPED_TEST(Sets, MayHaveOneValueOnARank) {
  check_both_orders<TypeParam>({"instance_norm", {2, 3, 2}, 2, {1, 1}});
  check_both_orders<TypeParam>({"layer_norm", {3, 3}, 1, {1, 1, 1}});
  check_both_orders<TypeParam>({"group_norm:groups=1", {3, 3}, 1, {1, 0, 2}});
}

// Rows that are long enough for the fast routes of a lone rank.
TYPED_TEST(Sets, MayBeLongRows) {
  check_both_orders<TypeParam>({"layer_norm", {3, 6, 64}, 1, {2, 4}});
  check_both_orders<TypeParam>({"rms_norm", {3, 6, 64}, 1, {4, 2}});
  check_both_orders<TypeParam>({"group_norm:groups=2", {2, 6, 64}, 1, {4, 2}});
}

TYPED_TEST(Sets, MayLieFarFromZero) {
  const double most = std::is_same_v<TypeParam, double>  ? 1e8
                      : std::is_same_v<TypeParam, float> ? 1e6
                      : std::is_same_v<TypeParam, f16>   ? 40
                                                         : 5;
  for (const double ratio : {std::sqrt(most), most})
    for (const char* layer : {"instance_norm", "group_norm:groups=2", "layer_norm", "rms_norm"}) {
      const bool rows = parse_layer(layer).row->by_trailing();
      check_both_orders<TypeParam>({layer, {2, rows ? 6 : 4, rows ? 5 : 6}, rows ? 1 : 2, {0, 4, 2}, ratio});
    }
}

TYPED_TEST(Sets, MayBeOfAnyScale) {
  if (std::is_same_v<TypeParam, f16>) GTEST_SKIP() << "a type of small range";
  const double large = std::is_same_v<TypeParam, double> ? 1e140 : 1e25;
  for (const double scale : {1 / large, large})
    for (const char* layer : {"instance_norm", "group_norm:groups=2", "layer_norm", "rms_norm"}) {
      const bool rows = parse_layer(layer).row->by_trailing();
      check_both_orders<TypeParam>({layer, {2, rows ? 6 : 4, rows ? 5 : 6}, rows ? 1 : 2, {0, 4, 2}, 0, scale});
    }
}

TEST(SetsOfRanks, WithoutAnyValueHaveNoMeanAndNoGradient) {
  for (const char* layer : {"instance_norm", "group_norm:groups=2", "layer_norm"})
    harness::run(2, [&](const harness::World& world, Queue& queue) {
      const Shape shape{3, 2, 0}, affine = parse_layer(layer).row->by_trailing() ? Shape{2, 0} : Shape{2};
      backend::Array<float> none(1);
      backend::Array<double> weight(2, 2), dweight(2, 7);
      Norm norm(parse_layer(layer), 2, world, queue);
      const ForwardInputs in{.input = backend::view(none.data(), shape),
                             .weight = backend::view(weight.data(), affine)};
      const Saved saved = norm.forward(in, backend::view(none.data(), shape), queue);
      norm.backward(saved, backend::view(none.data(), shape),
                    {.input = backend::view(none.data(), shape), .weight = backend::view(dweight.data(), affine)},
                    queue);
      for (const double mean : to_host(saved.frame().mean, queue)) EXPECT_EQ(mean, 0);
      for (const double rstd : to_host(saved.frame().rstd, queue)) EXPECT_EQ(rstd, 1 / std::sqrt(1e-5));
      for (std::int64_t i = 0; i < affine.elements(); ++i) EXPECT_EQ(dweight[static_cast<std::size_t>(i)], 0);
    });
}

// Ranks that do not have the same groups are told so, by that name.
TEST(SetsOfRanks, MustBeAsMany) {
  struct Unlike {
    const char* layer;
    Shape first, second;
    const char* told;
  };
  const Unlike all[] = {{"layer_norm", {4, 6}, {3, 6}, "number of groups is 3, must be 4 as on rank 0"},
                        {"rms_norm", {4, 0}, {0, 6}, "number of groups is 0, must be 4 as on rank 0"},
                        {"group_norm:groups=2", {4, 6}, {5, 6}, "number of groups is 10, must be 8 as on rank 0"},
                        {"instance_norm", {2, 3, 4}, {2, 4, 4}, "number of groups is 8, must be 6 as on rank 0"},
                        {"batch_norm", {2, 3, 4}, {2, 4, 4}, "number of channels is 4, must be 3 as on rank 0"}};
  for (const Unlike& unlike : all)
    harness::run(2, [&](const harness::World& world, Queue& queue) {
      const Shape& shape = world->rank() == 0 ? unlike.first : unlike.second;
      backend::Array<float> x(64), y(64, 5);
      Norm norm(parse_layer(unlike.layer), shape[1], world, queue);
      EXPECT_EQ(harness::error_of([&] {
                  norm.forward({.input = backend::view(x.data(), shape)}, backend::view(y.data(), shape), queue);
                  queue.wait();
                  world->check();
                }),
                "mismatch: rank 1: " + std::string(parse_layer(unlike.layer).row->name) +
                    ", call 0, forward: " + unlike.told);
      EXPECT_EQ(y[0], 5);
    });
}

}  // namespace
}  // namespace sets_test
