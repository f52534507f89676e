// Layers on data of every scale that their type holds, against the oracle, on the program's device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "norm_cases.hpp"

namespace scales_test {
namespace {

using namespace allnorm;
using cases::Random;
using reference::Array;
using reference::Doubles;

/// What a type can hold: half a unit in the last place, (about) half its least number, and scales of x well inside its
/// range (dx is of their inverse).
struct Range {
  DType dtype;
  double unit, floor;
  std::vector<double> scales;
};
const Range ranges[] = {
    {DType::f64, 0x1p-53, 0x1p-1074, {1e-150, 1e-103, 1e-40, 1, 1e40, 1e103, 1e150}},
    {DType::f32, 0x1p-24, 0x1p-150, {1e-30, 1e-23, 1e-19, 1e-10, 1, 1e6, 1e12, 1e19, 1e25, 1e30}},
    {DType::bf16, 0x1p-8, 0x1p-134, {1e-30, 1e-19, 1e-10, 1, 1e12, 1e19, 1e30}},
    {DType::f16, 0x1p-11, 0x1p-25, {1e-3, 0.1, 1, 1e3, 1e4}},
};

void PrintTo(const Range& range, std::ostream* out) { *out << to_string(range.dtype); }

struct Subject {
  const char* layer;
  cases::Extents shape;
  std::vector<std::pair<const char*, const char*>> attributes{};
  Order order = Order::channels_first;
};
// Sizes that fill vectors and some that do not; groups that a warp holds and larger ones.
const Subject subjects[] = {
    {"batch_norm", {4, 5, 3, 7}},
    {"batch_norm", {6, 8, 4, 4}, {{"activation", "relu"}}},
    {"batch_norm", {4, 16, 3, 5}, {{"activation", "relu"}}, Order::channels_last},
    {"batch_norm", {3, 3, 40, 40}, {}, Order::channels_last},
    {"layer_norm", {5, 64}},
    {"layer_norm", {70, 4, 8}},
    {"layer_norm", {3, 7, 11}},
    {"rms_norm", {5, 64}},
    {"rms_norm", {3, 7, 11}},
    {"group_norm", {3, 6, 4, 8}, {{"groups", "3"}}},
    {"group_norm", {2, 6, 5, 5}, {{"groups", "2"}}, Order::channels_last},
    {"instance_norm", {3, 5, 4, 8}},
    {"instance_norm", {2, 6, 7, 5}, {}, Order::channels_last},
    {"filter_response_norm", {3, 5, 4, 8}},
    {"filter_response_norm", {2, 6, 7, 5}, {}, Order::channels_last},
    {"positional_norm", {2, 6, 4, 8}},
    {"positional_norm", {2, 16, 5}, {}, Order::channels_last},
};

class Scales : public testing::TestWithParam<Range> {};

reference::Sets sets_of(const Subject& s) {
  if (Layer(s.layer).row->by_trailing())
    return reference::layer_norm_sets(s.shape, static_cast<int>(s.shape.size()) - 1);
  if (s.layer == std::string("group_norm"))
    return reference::group_norm_sets(s.shape, std::stoll(s.attributes.front().second));
  if (s.layer == std::string("positional_norm")) return reference::positional_norm_sets(s.shape);
  if (Layer(s.layer).row->statistics == Axes{Axis::sample, Axis::channel})
    return reference::instance_norm_sets(s.shape);
  auto channels = reference::instance_norm_sets(s.shape);
  channels.set = channels.affine;
  channels.sets = channels.affines;
  return channels;
}

TEST_P(Scales, EqualTheOracle) {
  const auto& [dtype, unit, floor, scales] = GetParam();
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    const auto rounded = [](Array a) {
      for (double& v : a.v) v = static_cast<double>(load(store<T>(static_cast<compute_t<T>>(v))));
      return a;
    };
    for (const Subject& s : subjects)
      for (const double scale : scales)
        for (const bool correlated : {false, true})
          for (const char* eps : {"1e-5", "0"}) {
            if (backend::takes_some && correlated == (eps == std::string("0"))) continue;
            SCOPED_TRACE(std::string(s.layer) + " of " + std::to_string(s.shape[1]) + " channels, scale " +
                         std::to_string(std::log10(scale)) + ", eps " + eps + (correlated ? ", correlated" : ""));
            Random random(7);
            const Array plain_x = cases::normal(random, s.shape, 0.5, 1);
            Array x = plain_x, dy = cases::normal(random, s.shape);
            for (std::size_t i = 0; i < x.v.size(); ++i) {
              x.v[i] *= scale;
              if (correlated) dy.v[i] += 2 * plain_x.v[i];
            }
            x = rounded(x), dy = rounded(dy);
            const auto sets = sets_of(s);
            Layer layer(s.layer);
            const bool centred = layer.row->centred, has_bias = layer.row->tensor("bias") != nullptr;
            const Doubles gamma = cases::gammas(random, sets.affines),
                          beta = has_bias ? cases::betas(random, sets.affines) : Doubles{};
            layer.set("eps", eps);
            for (const auto& [name, value] : s.attributes) layer.set(name, value);
            const auto typed = [&](const Array& a) {
              const Doubles values = norm_cases::to_order(a, s.order);
              backend::Array<T> made(values.size());
              for (std::size_t i = 0; i < made.size(); ++i) made[i] = store<T>(static_cast<compute_t<T>>(values[i]));
              return made;
            };
            const auto plain = [&](const auto& values) {
              Doubles made(values.size());
              for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<double>(load(values[i]));
              return norm_cases::from_order(made, s.shape, s.order).v;
            };
            const backend::Array<T> tx = typed(x), tdy = typed(dy);
            backend::Array<T> y(tx.size()), dx(tx.size());
            const backend::Array<double> weight(gamma.begin(), gamma.end()), bias(beta.begin(), beta.end());
            backend::Array<double> dgamma(gamma.size()), dbeta(beta.size());
            Queue queue = backend::queue();
            const Shape shape{std::span<const std::int64_t>(s.shape)};
            const Shape parameter = layer.shape_of(layer.row->tensor("weight")->axes, shape);
            Norm norm(layer, s.shape[1], nullptr, queue);
            ForwardInputs in;
            in.input = backend::view(tx.data(), shape, s.order);
            in.weight = backend::view(weight.data(), parameter);
            if (has_bias) in.bias = backend::view(bias.data(), parameter);
            const Saved saved = norm.forward(in, backend::view(y.data(), shape, s.order), queue);
            BackwardOutputs out;
            out.input = backend::view(dx.data(), shape, s.order);
            out.weight = backend::view(dgamma.data(), parameter);
            if (has_bias) out.bias = backend::view(dbeta.data(), parameter);
            norm.backward(saved, backend::view(tdy.data(), shape, s.order), out, queue);
            queue.wait();

            // Backward must open the gate where forward did: the oracle's gate is y's.
            const bool gated = layer.options.activation.kind == ActivationKind::relu;
            auto expected = centred ? reference::rows_forward(x, sets, gamma, beta, layer.options.eps)
                                    : reference::rms_forward(x, sets, gamma, layer.options.eps, beta);
            const Doubles got_y = plain(y);
            Array g = dy;
            for (std::size_t i = 0; i < g.v.size(); ++i) {
              if (gated && got_y[i] <= 0) g.v[i] = 0;
              if (gated) expected.y.v[i] = std::max(0.0, expected.y.v[i]);
            }
            const auto gradients = centred ? reference::rows_backward(x, sets, gamma, g, layer.options.eps)
                                           : reference::rms_backward(x, sets, gamma, g, layer.options.eps);

            // x and dy are as the oracle reads them. Maps round a few times in the compute type, relative to the terms
            // of their sums: x / sigma (at most sqrt(count), and the mean is half of sigma), gamma and beta; and dx's
            // are gamma / sigma times g, its mean, and x / sigma times the mean of g x / sigma. Then once to T.
            const double compute = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
            // Statistics: sums of n doubles; a GPU's squares are about a first value, which may be 3 sigma from the
            // mean.
            const double statistics = std::max(0x1p-46, 10 * backend::statistics_unit(dtype));
            double largest_g = 0, rstd = 0, terms = 1;
            for (const double v : g.v) largest_g = std::max(largest_g, std::abs(v));
            for (const double r : expected.rstd) rstd = std::max(rstd, r);
            for (std::size_t i = 0; i < x.v.size(); ++i)
              terms = std::max(terms, std::abs(x.v[i]) * expected.rstd[static_cast<std::size_t>(sets.set[i])]);
            const double term = 1.5 * rstd * largest_g;  // gamma is at most 1.5
            const auto near = [&](const char* what, const Doubles& got, const Doubles& want, double bound,
                                  double relative, double least) {
              ASSERT_EQ(got.size(), want.size());
              for (std::size_t i = 0; i < got.size(); ++i)
                ASSERT_TRUE(std::abs(got[i] - want[i]) <= bound + relative * std::abs(want[i]) + least)
                    << what << " " << i << ": " << got[i] << " for " << want[i];
            };
            near("output", got_y, expected.y.v, (8 * compute + 2 * statistics) * (1.5 * terms + 1), unit, floor);
            near("grad_input", plain(dx), gradients.dx.v, (8 * compute + 4 * statistics) * term * (1 + terms * terms),
                 unit, floor);
            const double summed = largest_g * static_cast<double>(x.v.size());
            near("grad_weight", {dgamma.begin(), dgamma.end()}, gradients.dgamma,
                 (8 * compute + 2 * statistics) * terms * summed, 0, 0);
            if (has_bias)
              near("grad_bias", {dbeta.begin(), dbeta.end()}, gradients.dbeta, (compute + statistics) * summed, 0, 0);
            double size = 0;
            for (const double v : x.v) size = std::max(size, std::abs(v));
            near("mean", to_host(saved.frame().mean, queue), expected.mean, statistics * size, 0, 0);
            near("rstd", to_host(saved.frame().rstd, queue), expected.rstd, 0, 2 * statistics, 0);
          }
  });
}

// A value that alone makes the statistics it is normalized with cannot change its output.
TEST_P(Scales, OneValuePerGroupHasNoGradient) {
  const auto& [dtype, unit, floor, scales] = GetParam();
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    for (const char* text :
         {"batch_norm", "batch_norm:activation=relu", "batch_renorm", "cross_iteration_batch_norm:compensate=false",
          "cross_mini_batch_norm", "layer_norm", "group_norm:groups=40"}) {
      for (const double scale : scales) {
        SCOPED_TRACE(std::string(text) + ", scale " + std::to_string(std::log10(scale)));
        const std::int64_t rows = std::string(text) == "layer_norm" ? 40 : 1, channels = 40 / rows;
        Random random(3);
        backend::Array<T> x(40), dy(40), y(40), dx(40);
        for (std::size_t i = 0; i < x.size(); ++i) {
          x[i] = store<T>(static_cast<compute_t<T>>(scale * random.normal()));
          dy[i] = store<T>(static_cast<compute_t<T>>(random.normal()));
        }
        Queue queue = backend::queue();
        Norm norm(parse_layer(text), channels, nullptr, queue);
        const Shape shape{rows, channels};
        ForwardInputs in;
        in.input = backend::view(x.data(), shape);
        const Saved saved = norm.forward(in, backend::view(y.data(), shape), queue);
        BackwardOutputs out;
        out.input = backend::view(dx.data(), shape);
        norm.backward(saved, backend::view(dy.data(), shape), out, queue);
        queue.wait();
        for (const T v : dx) ASSERT_EQ(load(v), 0);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Types, Scales, testing::ValuesIn(ranges),
                         [](const auto& range) { return std::string(to_string(range.param.dtype)); });

}  // namespace
}  // namespace scales_test
