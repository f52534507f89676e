// Every row of the catalogue on data far from 0. What centres its input gives there what it gives near 0, where its own
// tests have it compared with the oracle; what is about 0 by definition is compared with the oracle there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "backend.hpp"
#include "norm_cases.hpp"
#include "operation_cases.hpp"

namespace far_rows_test {
namespace {

using namespace operation_cases;

/// How far the data lie, and the multiples that a type holds there as near 0: moving them rounds nothing.
struct Distance {
  DType dtype;
  double mean, grid;
};
constexpr Distance distances[] = {{DType::f64, 1e8, 0x1p-20}, {DType::f32, 1e4, 0x1p-8}};
constexpr double least_std = 0.5;  // of the sets below, whose values are drawn with a deviation of 1

const Extents shape{3, 16, 5, 3};
constexpr std::int64_t rows = 2;  // of tables

Array on_grid(Array values, double grid) {
  for (double& v : values.v) v = std::round(v / grid) * grid;
  return values;
}

Extents shape_of(const Layer& layer, const TensorSpec& tensor) {
  if (tensor.role == TensorRole::table) return {rows, shape[1]};
  if (tensor.role == TensorRole::mixture) return {shape[0], rows};
  if (tensor.role == TensorRole::style) return {shape[0], shape[1], 4, 6};
  const Shape made = layer.shape_of(tensor.axes, Shape(std::span(shape)));
  return {made.begin(), made.end()};
}

/// Values for all that the row lists, near 0.
Arrays tensors(Random& random, const Layer& layer, const Distance& distance) {
  Arrays made{{"input", on_grid(cases::normal(random, shape), distance.grid)},
              {"grad_output", drawn(random, shape, distance.dtype)}};
  for (const TensorSpec& tensor : layer.row->tensors) {
    if (tensor.is_state() || !layer.has(tensor)) continue;
    Array values = drawn(random, shape_of(layer, tensor), distance.dtype);
    if (tensor.role == TensorRole::style) values = on_grid(values, distance.grid);
    if (tensor.role == TensorRole::labels)
      for (double& v : values.v) v = v > 0 ? 1 : 0;
    made[std::string(tensor.name)] = values;
  }
  return made;
}

/// Input and style moved; true where the output moves with the style.
bool shift(Arrays& tensors, const Row& row, double by) {
  bool styled = false;
  for (auto& [name, values] : tensors) {
    const bool style = row.tensor(name) != nullptr && row.tensor(name)->role == TensorRole::style;
    styled |= style;
    for (double& v : values.v) v += style || name == "input" ? by : 0;
  }
  return styled;
}
void set_running_mean(Subject& subject, double mean) {
  const TensorSpec* running = subject.layer.row->tensor("running_mean");
  if (running == nullptr || !subject.layer.has(*running)) return;
  State state;
  state.add("running_mean", Doubles(static_cast<std::size_t>(shape[1]), mean).data(), Shape{shape[1]});
  subject.operation->set_state(state, subject.queue);
}

/// What two results of size 1 may differ: both as far as near 0, and one by a mean that is some of its last places off.
double bound_of(const Distance& distance, bool statistic) {
  const double each = statistic ? statistics_tolerance_of(distance.dtype)
                                : tolerance_of(distance.dtype) + 2 * statistics_tolerance_of(distance.dtype);
  return 2 * each + 8 * 0x1p-53 * (1 + distance.mean / least_std);
}

// Moved by one constant, its running mean too, a layer that centres its input gives the same; but for the means.
void expect_same_far(const Layer& layer, const Distance& distance, Order order) {
  const Row& row = *layer.row;
  Subject near(layer, shape[1], distance.dtype, order, self()), far(layer, shape[1], distance.dtype, order, self());
  set_running_mean(far, distance.mean);
  const auto count = static_cast<std::size_t>(reference::elements(shape));
  Random random(17);
  for (int step = 0; step < 2; ++step) {
    Arrays given = tensors(random, layer, distance);
    Arrays want = near(given);
    const bool styled = shift(given, row, distance.mean);
    for (auto& [name, values] : far(given)) {
      const bool statistic = row.output(name) != nullptr && row.gradient(name) == nullptr;
      const bool moves = name == "mean" || (styled && name == "output");
      if (moves)
        for (double& v : values.v) v -= distance.mean;
      const double on_the_way = moves ? 2 * unit_of(statistic ? DType::f64 : distance.dtype) * distance.mean : 0;
      const bool summed = row.gradient(name) != nullptr && values.v.size() < count;  // terms that may cancel
      expect_near(name.c_str(), values.v, want[name].v, bound_of(distance, statistic) + on_the_way,
                  summed ? std::sqrt(static_cast<double>(count)) : 1);
    }
    for (const OutputSpec& output : row.outputs) {
      if (row.state(output.name) == nullptr || !layer.has(output)) continue;
      const std::string name(output.name);
      Doubles moved = far.state(name);
      for (double& v : moved) v -= name == "running_mean" ? distance.mean : 0;
      expect_near(name.c_str(), moved, near.state(name), bound_of(distance, true), 1);
    }
  }
}

/// Attributes that the rows' own tests have beside the defaults.
const std::string variants[] = {"instance_norm:track=true",
                                "adaptive_instance_norm:alpha=0.25",
                                "spade:base=instance_norm",
                                "spade:plus_one=false",
                                "positional_norm:unbiased=true",
                                "weight_standardization:unbiased=true:eps_place=outside",
                                "switchable_norm:unbiased_instance_var=true"};

TEST(FarRows, ThatCentreGiveTheSameAsNear) {
  std::vector<std::string> layers(std::begin(variants), std::end(variants));
  for (const Row& row : catalogue())
    if (row.centred) layers.emplace_back(row.name);
  for (const std::string& text : layers)
    for (const Distance& distance : distances)
      for (const Order order : orders)
        for (const bool training : {true, false}) {
          Layer layer = parse_layer(text);
          if (layer.row->by_trailing() && order == Order::channels_last) continue;
          if (!training && !layer.has_state()) continue;
          SCOPED_TRACE(text + ", " + std::string(to_string(distance.dtype)) + (training ? "" : ", inference") +
                       (order == Order::channels_first ? "" : ", channels last"));
          if (layer.row->attribute("groups") != nullptr) layer.set("groups", "2");
          if (layer.options.compensates()) layer.set("compensate", "false");
          layer.options.training = training;
          expect_same_far(layer, distance, order);
        }
}

/// Sets and parameters of a row whose moments are about 0.
struct AboutZero {
  const char *layer, *gamma;
  reference::Sets sets;
  double eps, gamma_per_root = 0;  // gamma counts this often, divided by the root of a set's values; 0: as it is
};

reference::Sets weight_rows() {
  reference::Sets sets = reference::layer_norm_sets(shape, static_cast<int>(shape.size()) - 1);
  sets.affine = sets.set;
  sets.affines = sets.sets;
  return sets;
}

// These take no mean away: far from 0 every value is about the root mean square, and y about gamma and beta.
TEST(FarRows, ThatAreAboutZeroAreAboutZeroThereToo) {
  const AboutZero layers[] = {
      {"rms_norm", "weight", reference::layer_norm_sets(shape, static_cast<int>(shape.size()) - 1), 1e-5},
      {"filter_response_norm", "weight", reference::instance_norm_sets(shape), 1e-6},
      {"weight_norm", "g", weight_rows(), 0, 1}};
  for (const AboutZero& c : layers)
    for (const Distance& distance : distances)
      for (const Order order : orders) {
        const Layer layer(c.layer);
        if (layer.row->by_trailing() && order == Order::channels_last) continue;
        SCOPED_TRACE(std::string(c.layer) + ", " + std::string(to_string(distance.dtype)));
        Random random(19);
        const Array x = on_grid(cases::normal(random, shape, distance.mean), distance.grid),
                    dy = drawn(random, shape, distance.dtype);
        const Extents affine = shape_of(layer, *layer.row->tensor(c.gamma));
        Arrays given{{"input", x}, {"grad_output", dy}, {c.gamma, {affine, cases::gammas(random, c.sets.affines)}}};
        const bool has_bias = layer.row->tensor("bias") != nullptr;
        if (has_bias) given["bias"] = {affine, cases::betas(random, c.sets.affines)};
        const double size = static_cast<double>(reference::elements(shape)) / static_cast<double>(c.sets.sets);
        const double per = c.gamma_per_root > 0 ? c.gamma_per_root / std::sqrt(size) : 1;
        Doubles gamma = given[c.gamma].v;
        for (double& v : gamma) v *= per;
        const auto want = reference::rms_forward(x, c.sets, gamma, c.eps, has_bias ? given["bias"].v : Doubles{});
        const auto gradients = reference::rms_backward(x, c.sets, gamma, dy, c.eps);
        Arrays got = Subject(layer, shape[1], distance.dtype, order, self())(given);
        const double map = tolerance_of(distance.dtype), sums = statistics_tolerance_of(distance.dtype),
                     terms = std::sqrt(static_cast<double>(x.v.size()));
        expect_near("output", got["output"].v, want.y.v, map, per);
        expect_near("grad_input", got["grad_input"].v, gradients.dx.v, map, 6 * per / distance.mean);
        Doubles dgamma = gradients.dgamma;
        for (double& v : dgamma) v *= per;
        expect_near("gradient of gamma", got["grad_" + std::string(c.gamma)].v, dgamma, sums, terms * per);
        if (has_bias) expect_near("grad_bias", got["grad_bias"].v, gradients.dbeta, sums, terms);
      }
}

}  // namespace
}  // namespace far_rows_test
