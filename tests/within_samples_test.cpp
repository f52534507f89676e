// layer_norm and group_norm against the oracle, on the program's device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "norm_cases.hpp"

namespace within_samples_test {
namespace {

using namespace allnorm;
using cases::Random;
using reference::Array;
using reference::Doubles;

Shape shape_of(const std::vector<std::int64_t>& extents) { return Shape(std::span<const std::int64_t>(extents)); }

struct Variant {
  std::string layer;
  bool residual = false;
};

class WithinSamples : public testing::TestWithParam<DType> {};

TEST_P(WithinSamples, EqualTheOracle) {
  // One rounding of the input is not counted (the oracle reads the rounded values); output and dx are rounded once, and
  // computed with a few roundings of their type before that.
  const DType dtype = GetParam();
  const double eps = dtype == DType::f64   ? 0x1p-53
                     : dtype == DType::f32 ? 0x1p-24
                     : dtype == DType::f16 ? 0x1p-11
                                           : 0x1p-8;
  const double tolerance = (dtype == DType::f64 ? 1000 : 8) * eps;
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    for (const auto& size : cases::sizes()) {
      if (size.shape.size() < 2) continue;
      for (const Variant& variant :
           {Variant{"layer_norm"}, Variant{"group_norm"}, Variant{"group_norm:activation=relu"},
            Variant{"group_norm:activation=leaky_relu:slope=0.25", true}})
        for (const Order order : {Order::channels_first, Order::channels_last}) {
          const auto& extents = size.shape;
          const std::int64_t C = extents[1], G = C % 3 == 0 ? 3 : 1;
          const bool rows = variant.layer == "layer_norm";
          if ((rows && order == Order::channels_last) || C == 0) continue;
          Random random(7);
          const auto rounded = [](Array a) {
            for (double& v : a.v) v = static_cast<double>(load(store<T>(static_cast<compute_t<T>>(v))));
            return a;
          };
          const Array x = rounded(cases::channelwise(random, extents, 0.5, 1));
          Array dy = rounded(cases::normal(random, extents));
          Layer layer = parse_layer(variant.layer);
          if (!rows) layer.set("groups", std::to_string(G));
          const Shape shape = shape_of(extents);
          const auto sets = rows ? reference::layer_norm_sets(extents, static_cast<int>(extents.size()) - 1)
                                 : reference::group_norm_sets(extents, G);
          const auto parameters = static_cast<std::int64_t>(sets.affines);
          const Doubles gamma = cases::gammas(random, parameters), beta = cases::betas(random, parameters);
          auto expected = reference::rows_forward(x, sets, gamma, beta, 1e-5);
          Array residual, gated = dy;
          if (variant.residual) residual = rounded(cases::normal(random, extents));
          if (const auto activation = layer.options.activation; activation.kind != ActivationKind::identity)
            for (std::size_t i = 0; i < dy.v.size(); ++i) {
              double& at = expected.y.v[i];
              if (variant.residual) at += residual.v[i];
              if (std::abs(at) < 0.1) dy.v[i] = 0;  // rounding decides which side of the corner it is on
              const double slope = activation.kind == ActivationKind::relu ? 0 : activation.slope;
              gated.v[i] = dy.v[i] * (at > 0 ? 1 : slope);
              at *= at > 0 ? 1 : slope;
            }
          const auto gradients = reference::rows_backward(x, sets, gamma, gated, 1e-5);

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
          const backend::Array<T> tx = typed(x), tdy = typed(dy);
          backend::Array<T> y(tx.size()), dx(tx.size()), dresidual(tx.size()), added;
          const backend::Array<double> weight(gamma.begin(), gamma.end()), bias(beta.begin(), beta.end());
          backend::Array<double> dgamma(gamma.size()), dbeta(beta.size());
          Queue queue = backend::queue(2);
          const Shape parameter =
              rows ? Shape(std::span(shape.begin() + 1, static_cast<std::size_t>(shape.rank() - 1))) : Shape{C};
          Norm norm(layer, C, nullptr, queue);
          ForwardInputs in;
          in.input = backend::view(tx.data(), shape, order);
          in.weight = backend::view(weight.data(), parameter);
          in.bias = backend::view(bias.data(), parameter);
          if (variant.residual) {
            added = typed(residual);
            in.residual = backend::view(added.data(), shape, order);
          }
          const Saved saved = norm.forward(in, backend::view(y.data(), shape, order), queue);
          BackwardOutputs out;
          out.input = backend::view(dx.data(), shape, order);
          if (variant.residual) out.residual = backend::view(dresidual.data(), shape, order);
          out.weight = backend::view(dgamma.data(), parameter);
          out.bias = backend::view(dbeta.data(), parameter);
          norm.backward(saved, backend::view(tdy.data(), shape, order), out, queue);
          queue.wait();

          const double statistics = 1e-12 + backend::statistics_unit(dtype);
          const std::string where = variant.layer + ", " + size.edge;
          // dx of a set with few values cancels: relative to its terms, gamma / sigma * dy.
          double term = 0;
          for (const double r : expected.rstd) term = std::max(term, 1.5 * r * 4);
          const auto near = [&](const char* what, const Doubles& got, const Doubles& want, double bound, double least) {
            double largest = least, error = 0;
            for (const double v : want) largest = std::max(largest, std::abs(v));
            ASSERT_EQ(got.size(), want.size()) << where;
            for (std::size_t i = 0; i < got.size(); ++i) error = std::max(error, std::abs(got[i] - want[i]));
            EXPECT_LE(error, bound * largest) << what << " of " << where;
          };
          near("output", plain(y), expected.y.v, tolerance, 1);
          near("grad_input", plain(dx), gradients.dx.v, tolerance, term);
          if (variant.residual) near("grad_residual", plain(dresidual), gated.v, tolerance, 1);
          near("grad_weight", {dgamma.begin(), dgamma.end()}, gradients.dgamma, std::max(tolerance, statistics),
               std::sqrt(static_cast<double>(x.v.size()) + 1) * 4);
          near("grad_bias", {dbeta.begin(), dbeta.end()}, gradients.dbeta, statistics, 1);
          near("mean", to_host(saved.frame().mean, queue), expected.mean, statistics, 1);
          near("rstd", to_host(saved.frame().rstd, queue), expected.rstd, 10 * statistics, 0);
        }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Types, WithinSamples, testing::Values(DType::f64, DType::f32, DType::f16, DType::bf16),
                         [](const auto& dtype) { return std::string(to_string(dtype.param)); });

}  // namespace
}  // namespace within_samples_test
