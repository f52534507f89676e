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
using reference::Real;
using reference::Reals;

namespace {

Reals softmax(const Doubles& logits) {
  Reals w;
  Real sum = 0;
  for (const double l : logits) w.push_back(std::exp(static_cast<Real>(l))), sum += w.back();
  for (Real& v : w) v /= sum;
  return w;
}

struct Stat {
  Real mean = 0, var = 0, dmean = 0, dvar = 0, share = 0;  // share: of a (sample, channel) in the pool
};
struct Mixed {
  Real mean, var, rstd;
};

/// One part: x and dy (N, C, S), in (N * C), ln (N).
struct Part {
  Part(const Array& own_x, const Array& own_dy, std::size_t channels)
      : x(own_x.v), dy(own_dy.v), N(static_cast<std::size_t>(own_x.shape[0])), C(channels), in(N * C), ln(N) {
    S = N * C == 0 ? 0 : x.size() / (N * C);
  }
  const Doubles &x, &dy;
  std::size_t N, C, S = 0;
  std::vector<Stat> in, ln;
};

class Loops {
 public:
  Loops(const std::vector<Array>& x, const std::vector<Array>& dy, const Parameters& p, const Options& o)
      : p_(p), o_(o), w_(softmax(p.mean_logits)), v_(softmax(p.var_logits)), C_(p.gamma.size()), bn_(C_) {
    for (std::size_t r = 0; r < x.size(); ++r) parts_.emplace_back(x[r], dy[r], C_);
    made.running_mean = p.running_mean, made.running_var = p.running_var;
    for (Part& part : parts_) take_own(part);
    take_batch();
    for (Part& part : parts_) map(part);
    for (Part& part : parts_) differentiate(part);
  }
  Expected made;

 private:
  void take_own(Part& s) {
    const auto size = static_cast<Real>(s.S);
    for (std::size_t g = 0; g < s.in.size(); ++g) {
      Stat& in = s.in[g];
      for (std::size_t i = 0; i < s.S; ++i) in.mean += s.x[g * s.S + i] / size;
      for (std::size_t i = 0; i < s.S; ++i) {
        const Real d = s.x[g * s.S + i] - in.mean;
        in.var += d * d / (o_.unbiased ? size - 1 : size);
      }
      in.share = 1;
    }
    for (std::size_t n = 0; n < s.N; ++n) {
      for (std::size_t c = 0; c < C_; ++c) s.ln[n].mean += s.in[n * C_ + c].mean / static_cast<Real>(C_);
      for (std::size_t c = 0; c < C_; ++c) {
        const Real d = s.in[n * C_ + c].mean - s.ln[n].mean;
        s.ln[n].var += (s.in[n * C_ + c].var + d * d) / static_cast<Real>(C_);
      }
      s.ln[n].share = 1 / static_cast<Real>(C_);
    }
    values_ += static_cast<Real>(s.N) * size;
  }

  void take_batch() {
    for (std::size_t c = 0; c < C_; ++c) {
      Stat& bn = bn_[c];
      const auto each = [&](const auto& body) {
        for (const Part& s : parts_)
          for (std::size_t n = 0; n < s.N && s.S > 0; ++n) body(s.in[n * C_ + c], static_cast<Real>(s.S) / values_);
      };
      each([&](const Stat& in, Real share) { bn.mean += in.mean * share; });
      each([&](const Stat& in, Real share) { bn.var += (in.var + (in.mean - bn.mean) * (in.mean - bn.mean)) * share; });
      if (!o_.training) {
        bn.mean = p_.running_mean[c], bn.var = p_.running_var[c];
      } else if (values_ > 0) {
        made.running_mean[c] += o_.momentum * (static_cast<double>(bn.mean) - p_.running_mean[c]);
        made.running_var[c] += o_.momentum * (static_cast<double>(bn.var) - p_.running_var[c]);
      }
      made.batch_mean.push_back(static_cast<double>(bn.mean));
      made.batch_var.push_back(static_cast<double>(bn.var));
    }
  }

  Mixed mixed(const Stat& in, const Stat& ln, const Stat& batch) const {
    const Real mean = w_[0] * in.mean + w_[1] * ln.mean + w_[2] * batch.mean;
    const Real var = v_[0] * in.var + v_[1] * ln.var + v_[2] * batch.var;
    return {mean, var, 1 / std::sqrt(var + o_.eps)};
  }

  // y and the parameters' gradients; what y's gradient gives to each statistic.
  void map(Part& s) {
    Doubles y(s.x.size()), dgamma(C_), dbeta(C_);
    Reals dw(3), dv(3);
    for (std::size_t g = 0; g < s.in.size() && s.S > 0; ++g) {
      const std::size_t c = g % C_;
      Stat* const three[] = {&s.in[g], &s.ln[g / C_], &bn_[c]};
      const Mixed m = mixed(*three[0], *three[1], *three[2]);
      made.rstd.push_back(static_cast<double>(m.rstd));
      Real dmean = 0, dvar = 0, to_gamma = 0, to_beta = 0;
      for (std::size_t i = g * s.S; i < (g + 1) * s.S; ++i) {
        const Real hat = (s.x[i] - m.mean) * m.rstd;
        y[i] = static_cast<double>(p_.gamma[c] * hat + p_.beta[c]);
        dmean -= m.rstd * p_.gamma[c] * s.dy[i];
        dvar -= m.rstd * m.rstd / 2 * p_.gamma[c] * s.dy[i] * hat;
        to_gamma += s.dy[i] * hat;
        to_beta += s.dy[i];
      }
      dgamma[c] += static_cast<double>(to_gamma);
      dbeta[c] += static_cast<double>(to_beta);
      for (std::size_t k = 0; k < 3; ++k) {
        three[k]->dmean += w_[k] * dmean;
        three[k]->dvar += v_[k] * dvar;
        dw[k] += w_[k] * dmean * (three[k]->mean - m.mean);
        dv[k] += v_[k] * dvar * (three[k]->var - m.var);
      }
    }
    made.y.push_back(y);
    made.dgamma.push_back(dgamma);
    made.dbeta.push_back(dbeta);
    made.dmean_logits.emplace_back(dw.begin(), dw.end());
    made.dvar_logits.emplace_back(dv.begin(), dv.end());
  }

  void differentiate(const Part& s) {
    Doubles all(s.x.size());
    const auto size = static_cast<Real>(s.S);
    for (std::size_t g = 0; g < s.in.size() && s.S > 0; ++g) {
      const std::size_t c = g % C_;
      Stat batch = bn_[c];
      batch.share = o_.training ? size / values_ : 0;
      const Real rstd = mixed(s.in[g], s.ln[g / C_], batch).rstd;
      for (std::size_t i = g * s.S; i < (g + 1) * s.S; ++i) {
        Real dx = p_.gamma[c] * s.dy[i] * rstd;
        for (const Stat& stat : {s.in[g], s.ln[g / C_], batch}) {
          const Real slope = 2 * (s.x[i] - s.in[g].mean) / (o_.unbiased ? size - 1 : size);
          dx += stat.share * (stat.dmean / size + stat.dvar * (slope + 2 * (s.in[g].mean - stat.mean) / size));
        }
        all[i] = static_cast<double>(dx);
      }
    }
    made.dx.push_back(all);
  }

  const Parameters& p_;
  const Options& o_;
  Reals w_, v_;
  std::size_t C_;
  std::vector<Part> parts_;
  std::vector<Stat> bn_;
  Real values_ = 0;  // of a channel
};

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
  return Loops(x, dy, p, o).made;
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
  expect_near("output", got["output"].v, want.y[part], map, 1);
  expect_near("grad_input", got["grad_input"].v, want.dx[part], map, 8 * rstd);
  const double sums = (dtype == DType::f64 ? 1e-12 : 1e-5) + far;
  const double size = 4 * std::sqrt(static_cast<double>(std::max(terms, want.y[part].size()))) + 1;
  expect_near("grad_weight", got["grad_weight"].v, want.dgamma[part], sums, size);
  expect_near("grad_bias", got["grad_bias"].v, want.dbeta[part], sums, size);
  expect_near("grad_mean_logits", got["grad_mean_logits"].v, want.dmean_logits[part], sums, size * rstd * scale);
  expect_near("grad_var_logits", got["grad_var_logits"].v, want.dvar_logits[part], sums,
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
  y = cut_space({shape, want.y[0]}, parts);
  dx = cut_space({shape, want.dx[0]}, parts);
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
  sum["output"].v = want.y[0];  // compared in expect_call()
  sum["grad_input"].v = want.dx[0];
  expect_equal(sum, want, 0, dtype, far, scale);
}

}  // namespace switchable_cases
