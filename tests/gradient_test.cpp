// The library's own backward against central differences of its own forward, in f64: one rank, whole calls. What a
// layer holds constant in backward (past mini-batches and iterations) comes from a saved state; r and d are held by
// clipping.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "cases.hpp"
#include "differences.hpp"
#include "launch/reference/reference.hpp"

namespace gradient_test {
namespace {

using namespace allnorm;
using reference::Array;
using reference::Doubles;

struct Case {
  std::string layer;
  bool residual = false;
  Order order = Order::channels_first;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.layer; }

class Gradient : public testing::TestWithParam<Case> {};

TEST_P(Gradient, IsThatOfForward) {
  const Case& c = GetParam();
  cases::Random random(31);
  Queue queue = Queue::cpu();
  const Layer layer = parse_layer(c.layer);
  const bool rows = layer.row->by_trailing();
  const Shape shape{3, 4, 5};
  const Shape parameter = rows ? Shape{4, 5} : Shape{4};
  const auto count = static_cast<std::int64_t>(parameter.elements());
  Doubles gamma = cases::gammas(random, count), beta = cases::betas(random, count);
  // With this seed no pre-activation lies within the differences' steps of the activation's corner.
  Array x = cases::channelwise(random, {3, 4, 5}, 0.4, 1.0);
  const Array dy = cases::normal(random, x.shape), residual = cases::normal(random, x.shape);

  Norm before(layer, 4, nullptr, queue);  // one earlier call: a mini-batch, an iteration, running statistics
  Doubles y(x.v.size());
  ForwardInputs earlier;
  earlier.input = view(dy.v.data(), shape, c.order);
  before.forward(earlier, view(y.data(), shape, c.order), queue);
  const State state = before.save(queue);

  const auto inputs = [&] {
    ForwardInputs in;
    in.input = view(x.v.data(), shape, c.order);
    in.weight = view(gamma.data(), parameter);
    in.bias = view(beta.data(), parameter);
    if (c.residual) in.residual = view(residual.v.data(), shape, c.order);
    return in;
  };
  const auto loss = [&] {
    Norm norm(layer, 4, nullptr, queue);
    norm.load(state, queue);
    norm.forward(inputs(), view(y.data(), shape, c.order), queue);
    reference::Real sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += static_cast<reference::Real>(y[i]) * dy.v[i];
    return sum;
  };
  const auto differences = [&](Doubles& values) {
    const Doubles at = values;
    const Doubles gradient = cases::central_difference(
        [&](const Doubles& moved) {
          values = moved;
          return loss();
        },
        at, 1e-4);
    values = at;
    return gradient;
  };

  Norm norm(layer, 4, nullptr, queue);
  norm.load(state, queue);
  const Saved saved = norm.forward(inputs(), view(y.data(), shape, c.order), queue);
  Doubles dx(x.v.size()), dgamma(gamma.size()), dbeta(beta.size());
  BackwardOutputs out;
  out.input = view(dx.data(), shape, c.order);
  out.weight = view(dgamma.data(), parameter);
  out.bias = view(dbeta.data(), parameter);
  norm.backward(saved, view(dy.v.data(), shape, c.order), out, queue);

  // Fourth-order differences: h^4 = 1e-16 of the fifth derivative, and eps/h = 2e-12 of the loss.
  EXPECT_LE(cases::relative_error(dx, differences(x.v)), 1e-9);
  EXPECT_LE(cases::relative_error(dgamma, differences(gamma)), 1e-9);
  EXPECT_LE(cases::relative_error(dbeta, differences(beta)), 1e-9);
}

INSTANTIATE_TEST_SUITE_P(Layers, Gradient,
                         testing::Values(Case{"batch_norm"}, Case{"batch_norm", false, Order::channels_last},
                                         Case{"batch_norm:training=false"},
                                         Case{"batch_norm:activation=leaky_relu:slope=0.3", true},
                                         Case{"batch_norm:activation=relu"}, Case{"batch_renorm:r_max=1:d_max=0"},
                                         Case{"batch_norm:eps=0.1:eps_place=outside"},
                                         Case{"batch_renorm:r_max=1:d_max=0:eps=0.1:eps_place=outside"},
                                         Case{"cross_mini_batch_norm:minibatches=3:eps=0.1:eps_place=outside"},
                                         Case{"cross_mini_batch_norm:minibatches=3"},
                                         Case{"cross_mini_batch_norm:minibatches=3:weighting=count"},
                                         Case{"cross_iteration_batch_norm:compensate=false"},
                                         Case{"batch_norm:window=3:compensate=false:minibatches=1:activation=relu"},
                                         Case{"layer_norm"}, Case{"group_norm:groups=2"},
                                         Case{"group_norm:groups=2", false, Order::channels_last},
                                         Case{"group_norm:groups=2:activation=leaky_relu:slope=0.3", true},
                                         Case{"group_norm:groups=2:activation=relu"}));

}  // namespace
}  // namespace gradient_test
