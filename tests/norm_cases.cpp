#include "norm_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <ostream>

#include "backend.hpp"

namespace norm_cases {

using namespace allnorm;
using cases::Random;
using reference::Array;
using reference::Doubles;
using reference::Ranks;

namespace {

// (N, C, space) <-> (N, space, C)
Doubles permuted(const Doubles& from, const std::vector<std::int64_t>& shape, bool to_last) {
  if (shape.size() < 3) return from;
  const std::int64_t N = shape[0], C = shape[1], S = reference::elements({shape.begin() + 2, shape.end()});
  Doubles to(from.size());
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t c = 0; c < C; ++c)
      for (std::int64_t s = 0; s < S; ++s) {
        const auto first = static_cast<std::size_t>((n * C + c) * S + s),
                   last = static_cast<std::size_t>((n * S + s) * C + c);
        to[to_last ? last : first] = from[to_last ? first : last];
      }
  return to;
}

Shape shape_of(const std::vector<std::int64_t>& extents) { return Shape(std::span<const std::int64_t>(extents)); }

struct Step {
  reference::Inputs inputs;
  Ranks dy;
};

Step make_step(const Composition& c, const Layer& layer, bool conv, const Array& weight, int step, int ranks,
               Random& random) {
  Step made;
  const std::int64_t samples = step == c.empty_step ? 0 : random.integer(1, 3 * ranks);
  std::vector<std::int64_t> counts = cases::split(random, samples, ranks);
  cases::Extents shape{samples, c.channels};
  shape.insert(shape.end(), c.space.begin(), c.space.end());
  if (conv) {
    const Convolution& options = layer.options.convolution;
    cases::Extents in{samples, weight.shape[1] * options.groups};
    for (std::size_t axis = 0; axis < c.space.size(); ++axis) {  // the extent that makes c.space
      const auto at = [axis](const std::vector<std::int64_t>& v) { return v[v.size() == 1 ? 0 : axis]; };
      in.push_back((c.space[axis] - 1) * at(options.stride) + at(options.dilation) * (c.kernel[axis] - 1) + 1 -
                   2 * at(options.padding));
    }
    const Array input = cases::normal(random, in, 0.3, 1.0);
    made.inputs.conv_input = cases::cut(input, counts);
    made.inputs.x = cases::cut(reference::convolve(input, weight, options), counts);
    made.inputs.conv_weight = weight;
  } else {
    made.inputs.x = cases::cut(cases::channelwise(random, shape, c.mean, c.std), counts);
  }
  if (c.residual) made.inputs.residual = cases::cut(cases::normal(random, shape), counts);
  made.dy = cases::cut(cases::normal(random, shape), counts);
  return made;
}

}  // namespace

void PrintTo(const Composition& c, std::ostream* out) { *out << c.layer << ", seed " << c.seed; }

Doubles to_order(const Array& array, Order order) {
  return order == Order::channels_last ? permuted(array.v, array.shape, true) : array.v;
}
Array from_order(const Doubles& v, const std::vector<std::int64_t>& shape, Order order) {
  return {shape, order == Order::channels_last ? permuted(v, shape, false) : v};
}

Layer layer_of(const Composition& c) {
  Layer layer(c.layer);
  layer.set("sync", "world");
  for (const auto& [name, value] : c.attributes) layer.set(name, value);
  return layer;
}

namespace {

// Values as the type holds them.
template <class T>
Array rounded(Array array) {
  for (double& v : array.v) v = static_cast<double>(load(store<T>(static_cast<compute_t<T>>(v))));
  return array;
}
template <class T>
backend::Array<T> typed(const Doubles& values) {
  backend::Array<T> made(values.size());
  for (std::size_t i = 0; i < made.size(); ++i) made[i] = store<T>(static_cast<compute_t<T>>(values[i]));
  return made;
}
template <class T>
Doubles plain(const backend::Array<T>& values) {
  Doubles made(values.size());
  for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<double>(load(values[i]));
  return made;
}

template <class T>
Trace check_as(const Composition& c, const harness::World& world, Queue& queue) {
  using Parameter = compute_t<T>;
  // What is computed in double from T's values is right to 1e-12 where nothing was rounded on the way; through a
  // convolution's derivatives kept in f32 to a few roundings of f32. Maps over x round their coefficients and steps in
  // f32, and their result once to T.
  const double unit = std::is_same_v<T, double>  ? 0
                      : std::is_same_v<T, float> ? 0x1p-24
                      : std::is_same_v<T, f16>   ? 0x1p-11
                                                 : 0x1p-8;
  const double map_tolerance = unit == 0 ? 1e-12 : 2 * unit + 16 * 0x1p-24;
  // A mean in one double, rounded a few times by every rank and mini-batch, is that far from what deviations are about.
  const double far = (16 + world->size()) * 0x1p-53 * std::abs(c.mean) / c.std;
  Random random(c.seed);  // the same on every rank: each makes all data and keeps its part
  const int ranks = world->size();
  const auto rank = static_cast<std::size_t>(world->rank());
  const Layer layer = layer_of(c);
  reference::Layer oracle = reference::make_layer(c.channels, layer.options);
  oracle.gamma = rounded<Parameter>({{c.channels}, cases::gammas(random, c.channels)}).v;
  oracle.beta = rounded<Parameter>({{c.channels}, cases::betas(random, c.channels)}).v;
  const backend::Array<Parameter> gamma = typed<Parameter>(oracle.gamma), beta = typed<Parameter>(oracle.beta);

  std::optional<Norm> norm(std::in_place, layer, c.channels, world, queue);
  RunningStatistics running = norm->running(queue);
  for (std::size_t i = 0; i < running.mean.size(); ++i) {
    running.mean[i] = oracle.state.running_mean[i] = random.normal();
    running.spread[i] = random.uniform(0.5, 2.0);
    (layer.keeps_std() ? oracle.state.running_std : oracle.state.running_var)[i] = running.spread[i];
  }
  norm->set_running(running, queue);

  const bool conv = layer.options.compensates();
  const double small_tolerance = (unit == 0 || !conv ? 1e-12 : 64 * 0x1p-24) + backend::statistics_unit(c.dtype) + far;
  // leaky_relu's slope, and its product with dy, are rounded to the compute type.
  const bool leaky = layer.options.activation.kind == ActivationKind::leaky_relu;
  const double gradient_tolerance = small_tolerance + (unit != 0 && leaky ? 2 * 0x1p-24 : 0);
  cases::Extents weight_shape{c.channels, 2};
  weight_shape.insert(weight_shape.end(), c.kernel.begin(), c.kernel.end());
  Array weight = rounded<Parameter>(cases::normal(random, weight_shape, 0, 0.4));
  const Shape channel_shape{c.channels};

  Trace trace;
  std::int64_t minibatch = 0;
  for (int step = 0; step < c.steps; ++step) {
    if (step == c.short_batch_step) {
      minibatch = 0;
      reference::begin_batch(oracle);
      norm->begin_batch(queue);
    }
    if (step == c.resume_step) {
      const State state = norm->save(queue);
      norm.emplace(layer, c.channels, world, queue);
      norm->load(state, queue);
    }
    Step s = make_step(c, layer, conv, weight, step, ranks, random);
    for (Ranks* arrays : {&s.inputs.x, &s.inputs.residual, &s.inputs.conv_input, &s.dy})
      for (Array& array : *arrays) array = rounded<T>(array);
    const auto expected = reference::forward(oracle, s.inputs);
    const auto gradients = reference::backward(oracle, s.inputs, expected, s.dy);

    const auto& extents = s.inputs.x[rank].shape;
    const Shape shape = shape_of(extents);
    const backend::Array<T> x = typed<T>(to_order(s.inputs.x[rank], c.order)),
                            dy = typed<T>(to_order(s.dy[rank], c.order));
    backend::Array<T> y(x.size()), dx(x.size()), dresidual(x.size()), residual, conv_input;
    backend::Array<Parameter> theta;
    backend::Array<double> dgamma(oracle.gamma.size()), dbeta(oracle.gamma.size());
    ForwardInputs in;
    in.input = backend::view(x.data(), shape, c.order);
    in.weight = backend::view(gamma.data(), channel_shape);
    in.bias = backend::view(beta.data(), channel_shape);
    if (c.residual) {
      residual = typed<T>(to_order(s.inputs.residual[rank], c.order));
      in.residual = backend::view(residual.data(), shape, c.order);
    }
    if (conv) {
      conv_input = typed<T>(to_order(s.inputs.conv_input[rank], c.order));
      theta = typed<Parameter>(weight.v);
      in.conv_input = backend::view(conv_input.data(), shape_of(s.inputs.conv_input[rank].shape), c.order);
      in.conv_weight = backend::view(theta.data(), shape_of(weight.shape));
    }
    const Saved saved = norm->forward(in, backend::view(y.data(), shape, c.order), queue);
    BackwardOutputs out;
    out.input = backend::view(dx.data(), shape, c.order);
    if (c.residual) out.residual = backend::view(dresidual.data(), shape, c.order);
    out.weight = backend::view(dgamma.data(), channel_shape);
    out.bias = backend::view(dbeta.data(), channel_shape);
    norm->backward(saved, backend::view(dy.data(), shape, c.order), out, queue);
    queue.wait();
    world->check();

    // Relative to the largest value, or to the largest term of the sums that make it: with one or two values per
    // channel the terms of dx cancel, and what is left is rounding.
    const auto near = [&](const char* what, double tolerance, const Doubles& got, const Doubles& want,
                          double term = 0) {
      double largest = term, error = got.size() == want.size() ? 0 : 1e300;
      for (const double v : want) largest = std::max(largest, std::abs(v));
      for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i)
        error = std::max(error, std::abs(got[i] - want[i]));
      EXPECT_LE(error, tolerance * largest) << what << ", step " << step << ", rank " << rank << " of " << ranks;
      trace.push_back(got);
    };
    double dx_term = 0;  // gamma * r / sigma * dy
    for (std::size_t i = 0; i < oracle.gamma.size(); ++i)
      dx_term = std::max(dx_term, std::abs(oracle.gamma[i] * expected.r[i] * expected.inv[i]));
    double largest_dy = 0;
    for (const double v : s.dy[rank].v) largest_dy = std::max(largest_dy, std::abs(v));
    near("output", map_tolerance + small_tolerance, from_order(plain(y), extents, c.order).v, expected.y[rank].v);
    near("grad_input", map_tolerance + small_tolerance, from_order(plain(dx), extents, c.order).v, gradients.dx[rank].v,
         dx_term * largest_dy);
    if (c.residual)
      near("grad_residual", map_tolerance, from_order(plain(dresidual), extents, c.order).v,
           gradients.dresidual[rank].v);
    // dgamma sums dy * (x - mean) / sigma: with one value per channel x - mean is the rounding of x.
    double largest_x = 0, scale = 0;
    for (const double v : s.inputs.x[rank].v) largest_x = std::max(largest_x, std::abs(v));
    for (std::size_t i = 0; i < oracle.gamma.size(); ++i) scale = std::max(scale, expected.r[i] * expected.inv[i]);
    near("grad_weight", gradient_tolerance, plain(dgamma), gradients.dgamma[rank], scale * largest_x * largest_dy);
    near("grad_bias", gradient_tolerance, plain(dbeta), gradients.dbeta[rank]);
    near("mean", small_tolerance, to_host(saved.frame().mean, queue), expected.mean);
    near("var", small_tolerance, to_host(saved.frame().var, queue), expected.var);
    if (layer.options.renorm) {
      near("r", small_tolerance, to_host(saved.frame().r, queue), expected.r);
      near("d", small_tolerance, to_host(saved.frame().d, queue), expected.d);
    }
    running = norm->running(queue);
    near("running_mean", small_tolerance, running.mean, oracle.state.running_mean);
    near("running spread", small_tolerance, running.spread,
         layer.keeps_std() ? oracle.state.running_std : oracle.state.running_var);
    EXPECT_EQ(running.tracked, oracle.state.num_batches_tracked) << "step " << step;

    if (++minibatch % layer.options.minibatches == 0 ||
        step + 1 == c.short_batch_step)  // weights move between batches only
    {
      for (double& w : weight.v) w += 0.05 * random.normal();
      weight = rounded<Parameter>(weight);
    }
  }
  return trace;
}

}  // namespace

Trace check(const Composition& c, const harness::World& world, Queue& queue) {
  return visit(c.dtype, [&]<class T>(std::type_identity<T>) { return check_as<T>(c, world, queue); });
}

std::vector<std::pair<std::string, Composition>> compositions() {
  const auto last = Order::channels_last;
  std::vector<std::pair<std::string, Composition>> all;
  const auto add = [&](std::string name, Composition c) {
    c.seed = all.size() + 1;
    all.emplace_back(std::move(name), std::move(c));
  };
  using Attributes = std::vector<std::pair<std::string, std::string>>;
  const auto with = [](std::string layer, Attributes attributes) {
    Composition c;
    c.layer = std::move(layer);
    c.attributes = std::move(attributes);
    return c;
  };

  add("Bn", with("batch_norm", {}));
  Composition c = with("batch_norm", {{"momentum", "cumulative"}, {"unbiased_running_var", "false"}});
  c.space = {};
  c.channels = 17;
  c.empty_step = 2;
  add("BnCumulativeNoSpace", c);
  c = with("batch_norm", {{"activation", "leaky_relu"}, {"slope", "0.2"}});
  c.residual = true;
  c.order = last;
  add("BnLeakyResidualChannelsLast", c);
  c = with("batch_norm", {{"activation", "relu"}});
  c.space = {2, 3, 2};
  add("BnRelu3d", c);
  c = with("batch_norm", {{"training", "false"}});
  add("BnEval", c);
  c = with("batch_renorm", {{"training", "false"}});
  add("RenormEvalPaper", c);

  add("RenormPaper", with("batch_renorm", {{"r_max", "1.4"}, {"d_max", "0.4"}, {"momentum", "0.2"}}));
  c = with("batch_renorm", {{"variant", "var"}, {"r_max", "1.2"}, {"d_max", "0.3"}});
  c.order = last;
  c.empty_step = 1;
  add("RenormVar", c);

  for (const std::string weighting : {"uniform", "count"})
    for (const std::string running : {"last", "every"}) {
      c = with("cross_mini_batch_norm", {{"minibatches", "3"}, {"weighting", weighting}, {"running", running}});
      c.steps = 8;
      c.empty_step = weighting == "count" ? 5 : 1;
      c.short_batch_step = running == "last" ? 7 : -1;
      add("Cmbn_" + weighting + "_" + running, c);
    }
  c = with("cross_mini_batch_norm", {{"minibatches", "2"}, {"burn_in", "2"}, {"activation", "relu"}});
  c.steps = 8;
  add("CmbnBurnIn", c);

  c = with("cross_iteration_batch_norm", {{"window", "3"}, {"conv_padding", "1"}});
  c.steps = 6;
  add("Window", c);
  c = with("cross_iteration_batch_norm",
           {{"window", "4"}, {"guard", "drop"}, {"conv_groups", "2"}, {"conv_stride", "2,1"}, {"conv_padding", "0,1"}});
  c.steps = 7;
  c.empty_step = 3;
  c.order = last;
  add("WindowDropGroupsStride", c);
  c = with("cross_iteration_batch_norm", {{"window", "3"},
                                          {"burn_in", "2"},
                                          {"fill_in_burn_in", "true"},
                                          {"running_source", "window"},
                                          {"conv_dilation", "2"}});
  c.space = {5};
  c.kernel = {3};
  c.steps = 6;
  add("Window1dBurnInFilled", c);
  c = with("cross_iteration_batch_norm",
           {{"window", "3"}, {"burn_in", "2"}, {"running_source", "window"}, {"guard", "drop"}});
  c.space = {2, 2, 3};
  c.kernel = {2, 1, 2};
  c.steps = 6;
  add("Window3dBurnIn", c);
  c = with("cross_iteration_batch_norm", {{"window", "4"}});
  c.space = {};
  c.kernel = {};
  c.steps = 6;
  add("WindowLinear", c);
  c = with("cross_iteration_batch_norm", {{"window", "4"}, {"compensate", "false"}});
  c.steps = 6;
  add("WindowNaive", c);

  c = with("batch_norm", {{"window", "3"}, {"minibatches", "2"}, {"conv_padding", "1"}, {"running_source", "window"}});
  c.steps = 9;
  c.empty_step = 3;
  add("WindowOfCmbn", c);
  c = with("batch_norm", {{"window", "3"},
                          {"minibatches", "3"},
                          {"weighting", "count"},
                          {"running", "every"},
                          {"renorm", "true"},
                          {"variant", "var"},
                          {"r_max", "1.3"},
                          {"d_max", "0.3"},
                          {"activation", "relu"},
                          {"burn_in", "1"},
                          {"fill_in_burn_in", "true"}});
  c.steps = 12;
  c.residual = true;
  c.short_batch_step = 8;
  add("Everything", c);
  c = with("batch_renorm", {{"window", "3"},
                            {"guard", "drop"},
                            {"conv_groups", "3"},
                            {"r_max", "1.1"},
                            {"d_max", "0.2"},
                            {"momentum", "0.3"},
                            {"running_source", "window"}});
  c.steps = 6;
  add("RenormOfWindow", c);
  c = with("batch_renorm", {{"minibatches", "2"}, {"weighting", "count"}, {"r_max", "1.1"}, {"d_max", "0.2"}});
  c.steps = 6;
  c.empty_step = 2;
  add("RenormOfCmbn", c);
  c = with("batch_renorm", {{"window", "3"},
                            {"compensate", "false"},
                            {"minibatches", "2"},
                            {"variant", "var"},
                            {"r_max", "1.3"},
                            {"d_max", "2e6"}});
  c.steps = 6;
  c.mean = 1e4;  // f16 ends at 6e4
  c.std = 3;
  add("EverythingFarFromZero", c);

  const auto outside = [&](std::string layer, Attributes attributes) {
    attributes.insert(attributes.end(), {{"eps", "0.1"}, {"eps_place", "outside"}});
    return with(std::move(layer), std::move(attributes));
  };
  c = outside("batch_norm", {{"activation", "leaky_relu"}});
  c.residual = true;
  c.order = last;
  add("BnEpsOutside", c);
  add("BnEvalEpsOutside", outside("batch_norm", {{"training", "false"}}));
  add("RenormPaperEpsOutside", outside("batch_renorm", {{"r_max", "1.2"}, {"d_max", "0.3"}}));
  add("RenormVarEpsOutside", outside("batch_renorm", {{"variant", "var"}, {"r_max", "1.2"}, {"d_max", "0.3"}}));
  add("RenormEvalPaperEpsOutside", outside("batch_renorm", {{"training", "false"}}));
  add("WindowEpsOutside", outside("cross_iteration_batch_norm", {{"window", "3"}, {"guard", "drop"}}));
  return all;
}

}  // namespace norm_cases
