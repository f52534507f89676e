#include "switchable_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "allnorm/catalogue.hpp"

namespace switchable_cases {

using namespace allnorm;
using cases::Extents;
using cases::Random;
using operation_cases::expect_near;

namespace {

double largest_rstd(const Expected& want) {
  double largest = 0;
  for (const double r : want.rstd) largest = std::max(largest, r);
  return largest;
}

// The space of an array (N, C, S), cut into parts.
std::vector<Array> cut_space(const Array& whole, const std::vector<std::int64_t>& parts) {
  std::vector<Array> made;
  const auto S = whole.shape[2];
  std::int64_t begin = 0;
  for (const std::int64_t size : parts) {
    Array part{{whole.shape[0], whole.shape[1], size}, {}};
    for (std::int64_t g = 0; g < whole.shape[0] * whole.shape[1]; ++g)
      for (std::int64_t s = begin; s < begin + size; ++s)
        part.v.push_back(whole.v[static_cast<std::size_t>(g * S + s)]);
    made.push_back(part);
    begin += size;
  }
  return made;
}

void set_running(Subject& subject, const Parameters& p) {
  const Shape channels{static_cast<std::int64_t>(p.running_mean.size())};
  State state;
  state.add("running_mean", p.running_mean.data(), channels);
  state.add("running_var", p.running_var.data(), channels);
  subject.operation->set_state(state, subject.queue);
}

constexpr const char* of_parameters[] = {"grad_weight", "grad_bias", "grad_mean_logits", "grad_var_logits"};

}  // namespace

Expected loops(const std::vector<Array>& x, const std::vector<Array>& dy, const Parameters& p, const Options& o) {
  return reference::switchable(x, dy, p, layer_of(o).options);
}

Layer layer_of(const Options& o, const std::string& more) {
  Layer layer = parse_layer("switchable_norm:momentum=0.3" + more);
  layer.options.eps = o.eps;
  layer.options.training = o.training;
  layer.options.unbiased_instance_var = o.unbiased;
  return layer;
}

Parameters parameters(Random& random, std::int64_t C) {
  return {cases::gammas(random, C),
          cases::betas(random, C),
          {0.3, -0.7, 1.1},
          {-0.4, 0.9, 0.2},
          Doubles(static_cast<std::size_t>(C), 0.0),
          Doubles(static_cast<std::size_t>(C), 1.0)};
}

Arrays tensors(const Array& x, const Array& dy, const Parameters& p) {
  const std::int64_t C = x.shape[1];
  return {{"input", x},
          {"grad_output", dy},
          {"weight", {{C}, p.gamma}},
          {"bias", {{C}, p.beta}},
          {"mean_logits", {{3}, p.mean_logits}},
          {"var_logits", {{3}, p.var_logits}}};
}

void expect_equal(Arrays& got, const Expected& want, std::size_t part, DType dtype, double far, double scale,
                  std::size_t terms) {
  const double map = operation_cases::tolerance_of(dtype) + far, rstd = largest_rstd(want);
  expect_near("output", got["output"].v, want.y[part].v, map, 1);
  expect_near("grad_input", got["grad_input"].v, want.dx[part].v, map, 8 * rstd);
  const double sums = (dtype == DType::f64 ? 1e-12 : 1e-5) + far;
  const double size = 4 * std::sqrt(static_cast<double>(std::max(terms, want.y[part].v.size()))) + 1;
  expect_near("grad_weight", got["grad_weight"].v, want.dgamma[part], sums, size);
  expect_near("grad_bias", got["grad_bias"].v, want.dbeta[part], sums, size);
  expect_near("grad_mean_logits", got["grad_mean_logits"].v, want.dmean_logits[part].v, sums, size * rstd * scale);
  expect_near("grad_var_logits", got["grad_var_logits"].v, want.dvar_logits[part].v, sums,
              size * rstd * rstd * scale * scale);
}

void expect_running(Subject& subject, const Expected& want, double bound, double scale) {
  expect_near("running_mean", subject.state("running_mean"), want.running_mean, bound, scale);
  expect_near("running_var", subject.state("running_var"), want.running_var, bound, std::min(1.0, scale * scale));
}

Batch::Batch(const std::vector<Extents>& shapes, const Options& options, DType type) : o(options), dtype(type) {
  Random random(11);
  p = parameters(random, 3);
  p.running_mean = {0.1, 0.2, -0.3};
  p.running_var = {1.5, 0.8, 1.1};
  for (const Extents& shape : shapes) {
    x.push_back(operation_cases::rounded(cases::channelwise(random, shape, 0.5, 1), dtype));
    dy.push_back(operation_cases::rounded(cases::normal(random, shape), dtype));
    values += x.back().v.size();
  }
  want = loops(x, dy, p, o);
}

void Batch::expect_calls(const World& world) const {
  const auto rank = static_cast<std::size_t>(world->rank());
  Subject subject(layer_of(o), 3, dtype, rank % 2 == 0 ? Order::channels_first : Order::channels_last, world);
  for (int call = 0; call < 2; ++call) {
    const std::uint64_t before = world->traffic().exchanges;
    set_running(subject, p);
    Arrays got = subject(tensors(x[rank], dy[rank], p));
    expect_equal(got, want, rank, dtype, 0, 1, values);
    expect_running(subject, want, operation_cases::statistics_tolerance_of(dtype));
    EXPECT_EQ(world->traffic().exchanges - before, o.training && x.size() > 1 ? 2u : 0u);
  }
}

Samples::Samples(std::vector<std::int64_t> sizes, const Options& options, DType type, double ratio, double times)
    : parts(std::move(sizes)), o(options), dtype(type), far(16 * 0x1p-53 * ratio), scale(times) {
  Random random(13);
  p = parameters(random, 3);
  const Extents shape{2, 3, 6};
  Array whole = cases::channelwise(random, shape, 0.5, 1);
  for (double& v : whole.v) v = scale * (v + ratio);
  whole = operation_cases::rounded(whole, dtype);
  const Array of_y = operation_cases::rounded(cases::normal(random, shape), dtype);
  want = loops({whole}, {of_y}, p, o);
  x = cut_space(whole, parts);
  dy = cut_space(of_y, parts);
  y = cut_space({shape, want.y[0].v}, parts);
  dx = cut_space({shape, want.dx[0].v}, parts);
}

Arrays Samples::expect_calls(const World& world) const {
  const auto rank = static_cast<std::size_t>(world->rank());
  Subject subject(layer_of(o, ":shard=space"), 3, dtype, Order::channels_first, world);
  Arrays got;
  for (int call = 0; call < 2; ++call) {
    const std::uint64_t before = world->traffic().exchanges;
    set_running(subject, p);
    got = subject(tensors(x[rank], dy[rank], p));
    const double map = operation_cases::tolerance_of(dtype) + far;
    expect_near("output", got["output"].v, y[rank].v, map, 1);
    expect_near("grad_input", got["grad_input"].v, dx[rank].v, map, 8 * largest_rstd(want));
    expect_running(subject, want, operation_cases::statistics_tolerance_of(dtype) + far, scale);
    EXPECT_EQ(world->traffic().exchanges - before, parts.size() > 1 ? 2u : 0u);
  }
  return got;
}

void Samples::expect_sums(const std::vector<Arrays>& shares) const {
  Arrays sum;
  for (const Arrays& share : shares)
    for (const char* name : of_parameters) {
      const Doubles& more = share.find(name)->second.v;
      Doubles& values = sum[name].v;
      values.resize(more.size());
      for (std::size_t i = 0; i < more.size(); ++i) values[i] += more[i];
    }
  sum["output"].v = want.y[0].v;  // compared in expect_call()
  sum["grad_input"].v = want.dx[0].v;
  expect_equal(sum, want, 0, dtype, far, scale);
}

}  // namespace switchable_cases
