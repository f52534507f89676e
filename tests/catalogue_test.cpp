// Every row of the catalogue, and rows that it lacks, against the oracle's set model: which elements share a mean and a
// variance, and which a gamma and a beta.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "harness.hpp"
#include "norm_cases.hpp"

namespace catalogue_test {
namespace {

using namespace allnorm;
using cases::Extents;
using cases::Random;
using reference::Array;
using reference::Doubles;

constexpr std::int64_t group_count = 2;

// The number of what an element takes part in, counted over the axes in the order N, C, space; and how many there are.
struct Numbers {
  std::vector<std::int64_t> of;  // (elements)
  std::int64_t count = 1;
};
Numbers numbers(Axes axes, const Extents& shape) {
  const std::int64_t N = shape[0], C = shape[1], S = reference::elements({shape.begin() + 2, shape.end()});
  const bool by_trailing = axes.has(Axis::leading) || axes.has(Axis::trailing);
  const std::int64_t C_or_G = axes.has(Axis::channel) ? C : group_count;
  const bool channels = axes.has(Axis::channel) || axes.has(Axis::group);
  Numbers made;
  if (by_trailing)
    made.count = axes.has(Axis::leading) ? N : C * S;  // normalized_shape: all axes but the first
  else
    made.count = (axes.has(Axis::sample) ? N : 1) * (channels ? C_or_G : 1) * (axes.has(Axis::space) ? S : 1);
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t c = 0; c < C; ++c)
      for (std::int64_t s = 0; s < S; ++s) {
        std::int64_t number = 0;
        if (axes.has(Axis::sample) || axes.has(Axis::leading)) number = n;
        if (channels) number = number * C_or_G + c / (C / C_or_G);
        if (axes.has(Axis::space)) number = number * S + s;
        if (axes.has(Axis::trailing)) number = c * S + s;
        made.of.push_back(number);
      }
  return made;
}

// Where the part of `axis` that is a rank's lies, the last rank's the longest, and that part.
std::vector<std::size_t> places(const Extents& shape, int axis, int rank, int ranks) {
  const std::int64_t extent = shape[static_cast<std::size_t>(axis)];
  const std::int64_t begin = extent * rank / ranks, end = extent * (rank + 1) / ranks;
  const std::int64_t inner = reference::elements({shape.begin() + axis + 1, shape.end()});
  std::vector<std::size_t> made;
  for (std::int64_t i = 0; i < reference::elements(shape); ++i)
    if (const std::int64_t at = i / inner % extent; at >= begin && at < end)
      made.push_back(static_cast<std::size_t>(i));
  return made;
}
Array cut(const Array& whole, int axis, int rank, int ranks) {
  Array made{whole.shape, {}};
  const std::int64_t extent = whole.shape[static_cast<std::size_t>(axis)];
  made.shape[static_cast<std::size_t>(axis)] = extent * (rank + 1) / ranks - extent * rank / ranks;
  for (const std::size_t at : places(whole.shape, axis, rank, ranks)) made.v.push_back(whole.v[at]);
  return made;
}

struct Given {
  bool weight, bias, residual;
};

// A training call of a layer without history or correction, forward and backward, on ranks that hold parts of `axis`.
template <class T>
void check(const Layer& layer, const Extents& shape, Order order, const Given& given, int ranks, int axis) {
  const Row& row = *layer.row;
  const TensorSpec* spec = row.tensor("weight");
  const Numbers sets = numbers(row.statistics, shape), affines = numbers(spec ? spec->axes : Axes{}, shape);
  const reference::Sets model{sets.of, affines.of, sets.count, affines.count};
  Random random(5);
  const auto rounded = [](Array a) {
    for (double& v : a.v) v = static_cast<double>(load(store<T>(static_cast<compute_t<T>>(v))));
    return a;
  };
  const Array x = rounded(cases::channelwise(random, shape, 0.5, 1)), residual = rounded(cases::normal(random, shape));
  Array dy = rounded(cases::normal(random, shape));
  Doubles gamma, beta;
  if (given.weight) gamma = cases::gammas(random, affines.count);
  if (given.bias) beta = cases::betas(random, affines.count);
  const double eps = layer.options.eps;
  auto expected = row.centred ? reference::rows_forward(x, model, gamma, beta, eps)
                              : reference::rms_forward(x, model, gamma, eps, beta);
  Array gated = dy;
  const Activation& activation = layer.options.activation;
  for (std::size_t i = 0; i < dy.v.size(); ++i) {
    double& y = expected.y.v[i];
    if (given.residual) y += residual.v[i];
    if (activation.kind == ActivationKind::identity) continue;
    if (std::abs(y) < 0.1) dy.v[i] = 0;  // rounding decides which side of the corner it is on
    const double slope = y > 0 ? 1 : activation.kind == ActivationKind::relu ? 0 : activation.slope;
    gated.v[i] = dy.v[i] * slope;
    y *= slope;
  }
  const auto gradients = row.centred ? reference::rows_backward(x, model, gamma, gated, eps)
                                     : reference::rms_backward(x, model, gamma, gated, eps);

  std::vector<Doubles> y(static_cast<std::size_t>(ranks)), dx(y.size()), dresidual(y.size()), dgamma(y.size()),
      dbeta(y.size());
  harness::run(ranks, [&](const harness::World& world, Queue& queue) {
    const auto rank = static_cast<std::size_t>(world->rank());
    const auto part = [&](const Array& whole) { return cut(whole, axis, world->rank(), ranks); };
    const Extents extents = part(x).shape;
    const Shape own_shape(std::span<const std::int64_t>(extents.data(), extents.size()));
    const auto typed = [&](const Array& a) {
      const Doubles values = norm_cases::to_order(a, order);
      backend::Array<T> made(values.size());
      for (std::size_t i = 0; i < made.size(); ++i) made[i] = store<T>(static_cast<compute_t<T>>(values[i]));
      return made;
    };
    const auto plain = [&](const auto& values) {
      Doubles made(values.size());
      for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<double>(load(values[i]));
      return norm_cases::from_order(made, extents, order).v;
    };
    const backend::Array<T> tx = typed(part(x)), tdy = typed(part(dy)), added = typed(part(residual));
    backend::Array<T> ty(tx.size()), tdx(tx.size()), tdresidual(tx.size());
    const Shape parameter = spec ? layer.shape_of(spec->axes, own_shape) : Shape{};
    // A parameter over channel and space lies in memory as the input does.
    const Order parameter_order =
        spec && spec->axes.has(Axis::channel) && spec->axes.has(Axis::space) ? order : Order::channels_first;
    const Extents of_parameter(parameter.begin(), parameter.end());
    const auto laid = [&](const Doubles& values) {
      const Doubles made = values.empty() ? values : norm_cases::to_order({of_parameter, values}, parameter_order);
      return backend::Array<double>(made.begin(), made.end());
    };
    const backend::Array<double> weight = laid(gamma), bias = laid(beta);
    backend::Array<double> dweight(gamma.size()), dbias(beta.size());
    Norm norm(layer, extents[1], world, queue);
    ForwardInputs in;
    in.input = backend::view(tx.data(), own_shape, order);
    if (given.weight) in.weight = backend::view(weight.data(), parameter);
    if (given.bias) in.bias = backend::view(bias.data(), parameter);
    if (given.residual) in.residual = backend::view(added.data(), own_shape, order);
    const Saved saved = norm.forward(in, backend::view(ty.data(), own_shape, order), queue);
    BackwardOutputs out;
    out.input = backend::view(tdx.data(), own_shape, order);
    if (given.weight) out.weight = backend::view(dweight.data(), parameter);
    if (given.bias) out.bias = backend::view(dbias.data(), parameter);
    if (given.residual) out.residual = backend::view(tdresidual.data(), own_shape, order);
    norm.backward(saved, backend::view(tdy.data(), own_shape, order), out, queue);
    queue.wait();
    y[rank] = plain(ty);
    dx[rank] = plain(tdx);
    if (given.residual) dresidual[rank] = plain(tdresidual);
    const auto of_order = [&](const backend::Array<double>& values) {
      return norm_cases::from_order(Doubles(values.begin(), values.end()), of_parameter, parameter_order).v;
    };
    if (given.weight) dgamma[rank] = of_order(dweight);
    if (given.bias) dbeta[rank] = of_order(dbias);
  });

  // Values are rounded once to T after a few roundings of its compute type; dx of a set with few values cancels, and is
  // held to the size of its terms. Sums are of doubles.
  const double unit = std::is_same_v<T, double>  ? 0x1p-53
                      : std::is_same_v<T, float> ? 0x1p-24
                      : std::is_same_v<T, f16>   ? 0x1p-11
                                                 : 0x1p-8;
  const double map = (std::is_same_v<T, double> ? 1000 : 8) * unit;
  const double statistics = 1e-12 + backend::statistics_unit(dtype_of<T>());
  double largest_rstd = 0;
  for (const double r : expected.rstd) largest_rstd = std::max(largest_rstd, r);
  const auto near = [](const char* what, const Doubles& got, const Doubles& want, double bound, double least) {
    double largest = least, error = 0;
    ASSERT_EQ(got.size(), want.size()) << what;
    for (std::size_t i = 0; i < got.size(); ++i) {
      largest = std::max(largest, std::abs(want[i]));
      error = std::max(error, std::isfinite(got[i]) ? std::abs(got[i] - want[i]) : HUGE_VAL);
    }
    EXPECT_LE(error, bound * largest) << what;
  };
  const auto joined = [&](const std::vector<Doubles>& parts) {
    Doubles all(x.v.size());
    for (int r = 0; r < ranks; ++r) {
      std::size_t from = 0;
      for (const std::size_t to : places(shape, axis, r, ranks)) all[to] = parts[static_cast<std::size_t>(r)][from++];
    }
    return all;
  };
  const auto summed = [](const std::vector<Doubles>& parts) {
    Doubles sum = parts[0];
    for (std::size_t r = 1; r < parts.size(); ++r)
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += parts[r][i];
    return sum;
  };
  near("y", joined(y), expected.y.v, map, 1);
  near("dx", joined(dx), gradients.dx.v, map, 6 * largest_rstd);
  const double terms = std::sqrt(static_cast<double>(x.v.size()));  // of sums that cancel
  if (given.weight) near("dgamma", summed(dgamma), gradients.dgamma, statistics, terms);
  if (given.bias) near("dbeta", summed(dbeta), gradients.dbeta, statistics, terms);
  if (given.residual) near("dresidual", joined(dresidual), gated.v, unit, 0);
}

template <class T>
void check_all(const Layer& layer, const std::string& name) {
  const Row& row = *layer.row;
  for (const Extents& shape : {Extents{3, 4}, Extents{3, 6, 5}, Extents{2, 4, 3, 7}, Extents{2, 4, 3, 2, 3}})
    for (const Order order : {Order::channels_first, Order::channels_last}) {
      if (row.by_trailing() && order == Order::channels_last) continue;
      if (row.statistics.has(Axis::space) && shape.size() == 2) continue;
      if (backend::takes_some && shape.size() != 4) continue;
      const bool has_weight = row.tensor("weight") != nullptr, has_bias = row.tensor("bias") != nullptr,
                 has_residual = row.tensor("residual") != nullptr;
      for (const bool affine : {false, true})
        for (const bool with_residual : {false, true}) {
          if ((affine && !has_weight) || (with_residual && !has_residual)) continue;
          if (backend::takes_some && (affine != has_weight || with_residual != has_residual)) continue;
          const Given given{affine, affine && has_bias, with_residual};
          SCOPED_TRACE(name + ", " + std::to_string(shape.size()) + "-D, " +
                       (order == Order::channels_first ? "channels first" : "channels last") +
                       (affine ? ", affine" : "") + (with_residual ? ", residual" : ""));
          check<T>(layer, shape, order, given, 1, 0);
          // Ranks that hold parts of the same sets; parameters along the cut would be cut as well.
          const bool batch = !row.statistics.has(Axis::sample) && !row.statistics.has(Axis::leading);
          const bool space = !row.by_trailing() && !row.statistics.has(Axis::space) && shape.size() > 2;
          if (batch && (row.tensor("weight") == nullptr || !row.tensor("weight")->axes.has(Axis::sample)))
            check<T>(layer, shape, order, given, 2, 0);
          if (space && (row.tensor("weight") == nullptr || !row.tensor("weight")->axes.has(Axis::space)))
            check<T>(layer, shape, order, given, 3, 2);
        }
    }
}

Layer prepared(const Row& row) {
  Layer layer(row);
  if (row.attribute("groups") != nullptr) layer.set("groups", std::to_string(group_count));
  if (row.attribute("renorm") != nullptr) layer.set("renorm", "false");  // what a first call alone does
  if (row.attribute("compensate") != nullptr) layer.set("compensate", "false");
  if (row.attribute("activation") != nullptr) layer.set("activation", "relu");
  return layer;
}

template <class T>
class Catalogue : public testing::Test {};
using Types = testing::Types<double, float, f16, bf16>;
TYPED_TEST_SUITE(Catalogue, Types);

TYPED_TEST(Catalogue, EveryRowEqualsTheOracle) {
  for (const Row& row : catalogue()) {
    if (row.operation != OperationKind::norm || row.statistics.has(Axis::row) || !row.scaled)
      continue;  // in tests of their own
    check_all<TypeParam>(prepared(row), std::string(row.name));
  }
}

// Any statistics with any affine, centred or not: gamma is folded into the coefficients of a group, or read along it.
TYPED_TEST(Catalogue, SoDoRowsThatItLacks) {
  if (backend::takes_some && !std::is_same_v<TypeParam, float>)
    GTEST_SKIP() << "what a type changes is in the kernels, which the rows of the catalogue run in every type";
  const Axis axes[] = {Axis::sample, Axis::channel, Axis::space};
  const auto subset = [&](unsigned bits) {
    Axes made;
    for (unsigned i = 0; i < 3; ++i)
      if ((bits >> i & 1) != 0) made = made | Axes{axes[i]};
    return made;
  };
  const Row& group_norm = *Layer("group_norm").row;
  for (const bool centred : {true, false})
    for (unsigned statistics = 0; statistics < 8; ++statistics)
      for (unsigned affine = 0; affine < 8; ++affine) {
        const TensorSpec tensors[] = {{"weight", TensorRole::parameter, subset(affine), ""},
                                      {"bias", TensorRole::parameter, subset(affine), ""},
                                      {"residual", TensorRole::activation, every_axis, ""}};
        const Row row{"a row of a test", "", "", subset(statistics), tensors, group_norm.attributes, {}, {}, centred};
        Layer layer(row);
        layer.set("groups", "1").set("activation", "relu");
        check_all<TypeParam>(layer, "statistics " + std::to_string(statistics) + ", affine " + std::to_string(affine) +
                                        (centred ? "" : ", about 0"));
      }
}

}  // namespace
}  // namespace catalogue_test
