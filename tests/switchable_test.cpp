// Switchable Normalization against plain loops over samples of any size: alone, and over ranks that hold samples of
// their own or parts of the same ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "allnorm/batch_average.hpp"
#include "harness.hpp"
#include "operation_cases.hpp"

namespace {

using namespace allnorm;
using cases::Extents;
using cases::Random;
using harness::error_of;
using operation_cases::Arrays;
using operation_cases::expect_near;
using operation_cases::Subject;
using reference::Array;
using reference::Doubles;
using reference::Real;
using reference::Reals;

constexpr DType types[] = {DType::f64, DType::f32, DType::f16, DType::bf16};

struct Options {
  double eps = 1e-3, momentum = 0.3;
  bool training = true, unbiased = false;
};
struct Parameters {
  Doubles gamma, beta, mean_logits, var_logits, running_mean, running_var;
};
// Per part: those of the input's shape, and gradients of parameters, of this part alone.
struct Expected {
  std::vector<Doubles> y, dx, dgamma, dbeta, dmean_logits, dvar_logits;
  Doubles running_mean, running_var, batch_mean, batch_var, rstd;
};

Reals softmax(const Doubles& logits) {
  Reals w;
  Real sum = 0;
  for (const double l : logits) w.push_back(std::exp(static_cast<Real>(l))), sum += w.back();
  for (Real& v : w) v /= sum;
  return w;
}

// The definition, statistic by statistic, over parts (N, C, space...) that may have other samples and other space.
Expected loops(const std::vector<Array>& x, const std::vector<Array>& dy, const Parameters& p, const Options& o) {
  struct Stat {
    Real mean = 0, var = 0, dmean = 0, dvar = 0, share = 0;  // share: of a (sample, channel) in the pool
  };
  struct Sets {
    std::size_t N, C, S;
    std::vector<Stat> in, ln;
  };
  const std::size_t C = p.gamma.size();
  const Reals w = softmax(p.mean_logits), v = softmax(p.var_logits);
  std::vector<Sets> parts;
  std::vector<Stat> bn(C);
  Real M = 0;
  for (const Array& part : x) {
    Sets s{static_cast<std::size_t>(part.shape[0]), C, 0, {}, {}};
    s.S = s.N * C == 0 ? 0 : part.v.size() / (s.N * C);
    s.in.resize(s.N * C);
    s.ln.resize(s.N);
    const auto size = static_cast<Real>(s.S);
    for (std::size_t g = 0; g < s.in.size(); ++g) {
      Stat& in = s.in[g];
      for (std::size_t i = 0; i < s.S; ++i) in.mean += part.v[g * s.S + i] / size;
      for (std::size_t i = 0; i < s.S; ++i) {
        const Real d = part.v[g * s.S + i] - in.mean;
        in.var += d * d / (o.unbiased ? size - 1 : size);
      }
      in.share = 1;
    }
    for (std::size_t n = 0; n < s.N; ++n) {
      for (std::size_t c = 0; c < C; ++c) s.ln[n].mean += s.in[n * C + c].mean / static_cast<Real>(C);
      for (std::size_t c = 0; c < C; ++c) {
        const Real d = s.in[n * C + c].mean - s.ln[n].mean;
        s.ln[n].var += (s.in[n * C + c].var + d * d) / static_cast<Real>(C);
      }
      s.ln[n].share = 1 / static_cast<Real>(C);
    }
    M += static_cast<Real>(s.N) * size;
    parts.push_back(s);
  }
  Expected e;
  e.running_mean = p.running_mean, e.running_var = p.running_var;
  for (std::size_t c = 0; c < C; ++c) {
    for (const Sets& s : parts)
      for (std::size_t n = 0; n < s.N && s.S > 0; ++n) bn[c].mean += s.in[n * C + c].mean * static_cast<Real>(s.S) / M;
    for (const Sets& s : parts)
      for (std::size_t n = 0; n < s.N && s.S > 0; ++n) {
        const Real d = s.in[n * C + c].mean - bn[c].mean;
        bn[c].var += (s.in[n * C + c].var + d * d) * static_cast<Real>(s.S) / M;
      }
    if (!o.training) {
      bn[c].mean = p.running_mean[c], bn[c].var = p.running_var[c];
    } else if (M > 0) {
      e.running_mean[c] += o.momentum * (static_cast<double>(bn[c].mean) - p.running_mean[c]);
      e.running_var[c] += o.momentum * (static_cast<double>(bn[c].var) - p.running_var[c]);
    }
    e.batch_mean.push_back(static_cast<double>(bn[c].mean));
    e.batch_var.push_back(static_cast<double>(bn[c].var));
  }
  struct Mixed {
    Real mean, var, rstd;
  };
  const auto mixed = [&](const Stat& in, const Stat& ln, const Stat& batch) {
    const Real mean = w[0] * in.mean + w[1] * ln.mean + w[2] * batch.mean;
    const Real var = v[0] * in.var + v[1] * ln.var + v[2] * batch.var;
    return Mixed{mean, var, 1 / std::sqrt(var + o.eps)};
  };
  for (std::size_t r = 0; r < parts.size(); ++r) {
    Sets& s = parts[r];
    e.y.emplace_back(x[r].v.size());
    e.dgamma.emplace_back(C);
    e.dbeta.emplace_back(C);
    Reals dw(3), dv(3);
    for (std::size_t g = 0; g < s.in.size() && s.S > 0; ++g) {
      const std::size_t c = g % C;
      Stat* const three[] = {&s.in[g], &s.ln[g / C], &bn[c]};
      const Mixed m = mixed(*three[0], *three[1], *three[2]);
      e.rstd.push_back(static_cast<double>(m.rstd));
      Real dmean = 0, dvar = 0, dgamma = 0, dbeta = 0;
      for (std::size_t i = g * s.S; i < (g + 1) * s.S; ++i) {
        const Real hat = (x[r].v[i] - m.mean) * m.rstd;
        e.y[r][i] = static_cast<double>(p.gamma[c] * hat + p.beta[c]);
        dmean -= m.rstd * p.gamma[c] * dy[r].v[i];
        dvar -= m.rstd * m.rstd / 2 * p.gamma[c] * dy[r].v[i] * hat;
        dgamma += dy[r].v[i] * hat;
        dbeta += dy[r].v[i];
      }
      e.dgamma[r][c] += static_cast<double>(dgamma);
      e.dbeta[r][c] += static_cast<double>(dbeta);
      for (std::size_t k = 0; k < 3; ++k) {
        three[k]->dmean += w[k] * dmean;
        three[k]->dvar += v[k] * dvar;
        dw[k] += w[k] * dmean * (three[k]->mean - m.mean);
        dv[k] += v[k] * dvar * (three[k]->var - m.var);
      }
    }
    e.dmean_logits.emplace_back(dw.begin(), dw.end());
    e.dvar_logits.emplace_back(dv.begin(), dv.end());
  }
  for (std::size_t r = 0; r < parts.size(); ++r) {
    const Sets& s = parts[r];
    e.dx.emplace_back(x[r].v.size());
    const auto size = static_cast<Real>(s.S);
    for (std::size_t g = 0; g < s.in.size() && s.S > 0; ++g) {
      const std::size_t c = g % C;
      Stat batch = bn[c];
      batch.share = o.training ? size / M : 0;
      const Real rstd = mixed(s.in[g], s.ln[g / C], batch).rstd;
      for (std::size_t i = g * s.S; i < (g + 1) * s.S; ++i) {
        Real dx = p.gamma[c] * dy[r].v[i] * rstd;
        for (const Stat& stat : {s.in[g], s.ln[g / C], batch}) {
          const Real slope = 2 * (x[r].v[i] - s.in[g].mean) / (o.unbiased ? size - 1 : size);
          dx += stat.share * (stat.dmean / size + stat.dvar * (slope + 2 * (s.in[g].mean - stat.mean) / size));
        }
        e.dx[r][i] = static_cast<double>(dx);
      }
    }
  }
  return e;
}

Layer layer_of(const Options& o, const std::string& more = "") {
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

// What one call of one part made; `terms`: values of the whole.
void expect_equal(Arrays& got, const Expected& want, std::size_t part, DType dtype, double far = 0, double scale = 1,
                  std::size_t terms = 0) {
  const double map = operation_cases::tolerance_of(dtype) + far;
  double rstd = 0;
  for (const double r : want.rstd) rstd = std::max(rstd, r);
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

void expect_running(Subject& subject, const Expected& want, double bound = 1e-12) {
  expect_near("running_mean", subject.state("running_mean"), want.running_mean, bound, 1);
  expect_near("running_var", subject.state("running_var"), want.running_var, bound, 1);
}

TEST(SwitchableNorm, EqualsTheLoops) {
  for (const DType dtype : types)
    for (const Order order : {Order::channels_first, Order::channels_last})
      for (const bool unbiased : {false, true})
        for (const Extents& shape : {Extents{3, 4}, Extents{1, 3, 1}, Extents{3, 5, 7}, Extents{1, 1, 6},
                                     Extents{2, 17, 3, 2, 3}, Extents{0, 3, 4}, Extents{2, 3, 0}}) {
          if (unbiased && reference::elements({shape.begin() + 2, shape.end()}) == 1) continue;  // nan
          SCOPED_TRACE(std::string(to_string(dtype)) + ", " + std::to_string(shape.size()) + "-D, " +
                       (order == Order::channels_first ? "first" : "last") + (unbiased ? ", unbiased" : ""));
          Random random(3);
          Options o{.unbiased = unbiased};
          Parameters p = parameters(random, shape[1]);
          Subject subject(layer_of(o), shape[1], dtype, order);
          for (int step = 0; step < 3; ++step) {
            const Array x = operation_cases::rounded(cases::channelwise(random, shape, 0.5, 1), dtype),
                        dy = operation_cases::rounded(cases::normal(random, shape), dtype);
            const Expected want = loops({x}, {dy}, p, o);
            Arrays got = subject(tensors(x, dy, p));
            expect_equal(got, want, 0, dtype);
            expect_running(subject, want);
            p.running_mean = want.running_mean, p.running_var = want.running_var;
          }
          o.training = false;
          subject.operation->set_training(false);
          const Array x = operation_cases::rounded(cases::channelwise(random, shape, 0.5, 1), dtype),
                      dy = operation_cases::rounded(cases::normal(random, shape), dtype);
          const Expected want = loops({x}, {dy}, p, o);
          Arrays got = subject(tensors(x, dy, p));
          expect_equal(got, want, 0, dtype);
          expect_running(subject, want);
        }
}

TEST(SwitchableNorm, GradientsAreCentralDifferences) {
  Random random(5);
  for (const bool training : {true, false})
    for (const bool unbiased : {true, false}) {
      const Options o{.training = training, .unbiased = unbiased};
      const Array x = cases::channelwise(random, {3, 2, 2, 2}, 0.5, 1), dy = cases::normal(random, {3, 2, 2, 2});
      operation_cases::expect_gradients([&] { return Subject(layer_of(o), 2); }, tensors(x, dy, parameters(random, 2)));
    }
}

TEST(SwitchableNorm, MixesEquallyWithoutLogits) {
  Random random(5);
  Parameters p = parameters(random, 3);
  p.mean_logits = p.var_logits = {1, 1, 1};
  const Array x = cases::channelwise(random, {4, 3, 5}, 0.5, 1), dy = cases::normal(random, {4, 3, 5});
  Arrays given = tensors(x, dy, p);
  Subject with(layer_of({}), 3), without(layer_of({}), 3);
  const Doubles y = with(given)["output"].v;
  given.erase("mean_logits");
  given.erase("var_logits");
  EXPECT_EQ(without(given)["output"].v, y);
  // far apart, one weight is everything: instance norm's
  p.mean_logits = p.var_logits = {1000, -1000, 0};
  Arrays got = with(tensors(x, dy, p));
  p.mean_logits = p.var_logits = {40, -40, -40};
  expect_near("output", got["output"].v, loops({x}, {dy}, p, {}).y[0], 1e-12);
}

// Ranks whose samples have another number and another size, or that have none.
TEST(SwitchableNorm, OverRanksWithSamplesOfTheirOwnIsOneBatch) {
  const std::vector<std::vector<Extents>> all = {
      {{2, 3, 4}},
      {{2, 3, 4}, {3, 3, 4}},
      {{2, 3, 4}, {1, 3, 7}},
      {{0, 3, 4}, {2, 3, 5, 2}, {1, 3, 1}},
      {{1, 3, 6}, {2, 3, 0}, {3, 3, 2}, {1, 3, 1, 2}},
      {{0, 3, 4}, {2, 3, 0}},
  };
  for (const DType dtype : types)
    for (const auto& shapes : all)
      for (const bool training : {true, false}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + ", " + std::to_string(shapes.size()) + " ranks" +
                     (training ? "" : ", inference"));
        Random random(11);
        const Options o{.training = training};
        Parameters p = parameters(random, 3);
        p.running_mean = {0.1, 0.2, -0.3};
        p.running_var = {1.5, 0.8, 1.1};
        std::vector<Array> x, dy;
        std::size_t values = 0;
        for (const Extents& shape : shapes) {
          x.push_back(operation_cases::rounded(cases::channelwise(random, shape, 0.5, 1), dtype));
          dy.push_back(operation_cases::rounded(cases::normal(random, shape), dtype));
          values += x.back().v.size();
        }
        const Expected want = loops(x, dy, p, o);
        std::mutex mutex;
        harness::run(static_cast<int>(shapes.size()), [&](const harness::World& world, Queue&) {
          const auto rank = static_cast<std::size_t>(world->rank());
          Subject subject(layer_of(o), 3, dtype, rank % 2 == 0 ? Order::channels_first : Order::channels_last, world);
          State state;
          state.add("running_mean", p.running_mean.data(), Shape{3});
          state.add("running_var", p.running_var.data(), Shape{3});
          subject.operation->set_state(state, subject.queue);
          Arrays got = subject(tensors(x[rank], dy[rank], p));
          const std::lock_guard lock(mutex);
          expect_equal(got, want, rank, dtype, 0, 1, values);
          expect_running(subject, want);
          EXPECT_EQ(world->traffic().exchanges, training && shapes.size() > 1 ? 2u : 0u);
        });
      }
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

void add_to(Doubles& sum, const Doubles& more) {
  sum.resize(more.size());
  for (std::size_t i = 0; i < more.size(); ++i) sum[i] += more[i];
}

void expect_parts_of_samples(const std::vector<std::int64_t>& parts, const Options& o, DType dtype, double ratio = 0,
                             double scale = 1) {
  Random random(13);
  Parameters p = parameters(random, 3);
  const Extents shape{2, 3, 6};
  Array x = cases::channelwise(random, shape, 0.5, 1);
  for (double& v : x.v) v = scale * (v + ratio);
  x = operation_cases::rounded(x, dtype);
  const Array dy = operation_cases::rounded(cases::normal(random, shape), dtype);
  Expected want = loops({x}, {dy}, p, o);
  const auto cut_x = cut_space(x, parts), cut_dy = cut_space(dy, parts), cut_y = cut_space({shape, want.y[0]}, parts),
             cut_dx = cut_space({shape, want.dx[0]}, parts);
  Arrays sum;
  std::mutex mutex;
  const double far = 16 * 0x1p-53 * ratio;
  harness::run(static_cast<int>(parts.size()), [&](const harness::World& world, Queue&) {
    const auto rank = static_cast<std::size_t>(world->rank());
    Subject subject(layer_of(o, ":shard=space"), 3, dtype, Order::channels_first, world);
    Arrays got = subject(tensors(cut_x[rank], cut_dy[rank], p));
    const std::lock_guard lock(mutex);
    double rstd = 0;
    for (const double r : want.rstd) rstd = std::max(rstd, r);
    const double map = operation_cases::tolerance_of(dtype) + far;
    expect_near("output", got["output"].v, cut_y[rank].v, map, 1);
    expect_near("grad_input", got["grad_input"].v, cut_dx[rank].v, map, 8 * rstd);
    for (const char* name : {"grad_weight", "grad_bias", "grad_mean_logits", "grad_var_logits"})
      add_to(sum[name].v, got[name].v);
    const double statistics = 1e-12 + far;
    expect_near("running_mean", subject.state("running_mean"), want.running_mean, statistics, scale);
    expect_near("running_var", subject.state("running_var"), want.running_var, statistics,
                std::min(1.0, scale * scale));
    EXPECT_EQ(world->traffic().exchanges, parts.size() > 1 ? 2u : 0u);
  });
  sum["output"].v = want.y[0];  // compared above
  sum["grad_input"].v = want.dx[0];
  expect_equal(sum, want, 0, dtype, far, scale);
}

TEST(SwitchableNorm, OverRanksWithPartsOfSamplesIsTheWhole) {
  const std::vector<std::vector<std::int64_t>> cuts{{6}, {3, 3}, {1, 5}, {0, 4, 2}, {2, 0, 3, 1}};
  for (const DType dtype : types)
    for (const auto& parts : cuts)
      for (const bool training : {true, false})
        for (const bool unbiased : {false, true}) {
          SCOPED_TRACE(std::string(to_string(dtype)) + ", " + std::to_string(parts.size()) + " ranks" +
                       (training ? "" : ", inference") + (unbiased ? ", unbiased" : ""));
          expect_parts_of_samples(parts, {.training = training, .unbiased = unbiased}, dtype);
        }
}

TEST(SwitchableNorm, MayBeFarFromZeroAndOfAnyScale) {
  for (const double ratio : {1e4, 1e8}) {
    SCOPED_TRACE("ratio " + std::to_string(ratio));
    expect_parts_of_samples({6}, {}, DType::f64, ratio);
    expect_parts_of_samples({0, 4, 2}, {}, DType::f64, ratio);
  }
  expect_parts_of_samples({4, 2}, {}, DType::f32, 1e4);
  for (const double scale : {1e-140, 1e140}) {
    SCOPED_TRACE("scale " + std::to_string(scale));
    expect_parts_of_samples({4, 2}, {.eps = 0}, DType::f64, 0, scale);
  }
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const double scale : {1e-28, 1e28}) expect_parts_of_samples({4, 2}, {.eps = 0}, dtype, 0, scale);
}

TEST(SwitchableNorm, ReplaysAndInfers) {
  Random random(9);
  const Parameters p = parameters(random, 3);
  const Doubles x = cases::channelwise(random, {4, 3, 5}, 0.5, 1).v;
  Doubles y(x.size()), again(x.size());
  Queue queue = Queue::cpu();
  const auto operation = make_operation(layer_of({}), 3, nullptr, queue);
  const Shape shape{4, 3, 5};
  const InputSlots in{{"input", view(x.data(), shape)}, {"mean_logits", view(p.mean_logits.data(), Shape{3})}};
  const auto saved = operation->forward(in, {{"output", view(y.data(), shape)}}, queue);
  const State before = operation->state(queue);
  operation->replay(*saved, in, {{"output", view(again.data(), shape)}}, queue);
  EXPECT_EQ(again, y);
  operation->infer(in, {{"output", view(again.data(), shape)}}, queue);
  EXPECT_NE(again, y);
  const Doubles inferred = again;
  operation->set_training(false);
  operation->forward(in, {{"output", view(again.data(), shape)}}, queue);
  EXPECT_EQ(again, inferred);
  for (std::size_t i = 0; i < 2; ++i) EXPECT_EQ(operation->state(queue).entries[i].data, before.entries[i].data);
}

TEST(SwitchableNorm, GoesOnFromItsSavedState) {
  Random random(9);
  const Parameters p = parameters(random, 3);
  const auto given = [&] {
    return tensors(cases::channelwise(random, {4, 3, 5}, 0.5, 1), cases::normal(random, {4, 3, 5}), p);
  };
  Subject first(layer_of({}), 3), second(layer_of({}), 3);
  first(given());
  second.operation->load(first.operation->save(first.queue), second.queue);
  const Arrays next = given();
  EXPECT_EQ(first(next)["output"].v, second(next)["output"].v);
  for (const char* name : {"running_mean", "running_var"}) EXPECT_EQ(first.state(name), second.state(name)) << name;
  Subject other(parse_layer("batch_norm"), 3);
  EXPECT_EQ(error_of([&] { second.operation->load(other.operation->save(other.queue), second.queue); }),
            "invalid input: state is of layer batch_norm, must be of switchable_norm or its family");
  State wrong;
  wrong.add("running_var", Doubles{1, -1, 1}.data(), Shape{3});
  EXPECT_NE(error_of([&] { second.operation->set_state(wrong, second.queue); }), "");
}

TEST(SwitchableNorm, ValuesThatAreNotFiniteStayInTheirCall) {
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
    Random random(9);
    const Parameters p = parameters(random, 3);
    Array x = cases::channelwise(random, {4, 3, 5}, 0.5, 1);
    const Array dy = cases::normal(random, {4, 3, 5});
    Subject clean(layer_of({}), 3), hit(layer_of({}), 3);
    clean(tensors(x, dy, p));
    x.v[5 * 3 + 7] = value;  // sample 1, channel 1
    hit(tensors(x, dy, p));
    for (const char* name : {"running_mean", "running_var"}) {
      const Doubles a = hit.state(name), b = clean.state(name);
      EXPECT_EQ(a[0], b[0]) << name;
      EXPECT_EQ(a[1], name == std::string("running_var") ? 1 : 0) << name;
      EXPECT_EQ(a[2], b[2]) << name;
    }
  }
}

// Averages of E[mean] and of E[var + mean^2] over batches, of ranks together too.
TEST(SwitchableNorm, InfersWithAveragesOfBatches) {
  Random random(9);
  const Parameters p = parameters(random, 3);
  std::vector<Array> batches;
  Doubles mean(3), square(3);
  for (int i = 0; i < 4; ++i) {
    batches.push_back(cases::channelwise(random, {2 + i, 3, 5}, 0.5 + i, 1));
    const Expected of = loops({batches.back()}, {batches.back()}, p, {});
    for (std::size_t c = 0; c < 3; ++c) {
      mean[c] += of.batch_mean[c] / 4;
      square[c] += (of.batch_var[c] + of.batch_mean[c] * of.batch_mean[c]) / 4;
    }
  }
  Doubles var(3);
  for (std::size_t c = 0; c < 3; ++c) var[c] = square[c] - mean[c] * mean[c];
  for (const char* layer : {"switchable_norm", "batch_norm"}) {
    Subject subject(parse_layer(layer), 3);
    BatchAverage average;
    EXPECT_EQ(error_of([&] { average.set(*subject.operation, subject.queue); }),
              "invalid argument: an average of batches has no call, must have at least one");
    for (const Array& x : batches) {
      Doubles y(x.v.size());
      const Shape shape(std::span<const std::int64_t>(x.shape));
      const auto saved = subject.operation->forward({{"input", view(x.v.data(), shape)}},
                                                    {{"output", view(y.data(), shape)}}, subject.queue);
      average.add(*saved, subject.queue);
    }
    average.set(*subject.operation, subject.queue);
    expect_near("running_mean", subject.state("running_mean"), mean, 1e-12, 1);
    expect_near("running_var", subject.state("running_var"), var, 1e-12, 1);
  }
}

TEST(SwitchableNorm, SaysWhatIsWrongAndTellsTheOtherRanks) {
  const auto told = [](const std::string& first, const std::string& second, const Shape& of_second,
                       const Shape& logits = {3}) {
    std::vector<std::string> all(2);
    harness::run(2, [&](const harness::World& world, Queue& queue) {
      const bool is_first = world->rank() == 0;
      const Shape shape = is_first ? Shape{2, 3, 4} : of_second;
      const Doubles x(64, 1.0);
      Doubles y(64);
      const auto operation = make_operation(parse_layer(is_first ? first : second), 3, world, queue);
      all[static_cast<std::size_t>(world->rank())] = error_of([&] {
        operation->forward(
            {{"input", view(x.data(), shape)}, {"mean_logits", view(x.data(), is_first ? Shape{3} : logits)}},
            {{"output", view(y.data(), shape)}}, queue);
      });
    });
    return all;
  };
  const std::string batch = "switchable_norm", space = "switchable_norm:shard=space";
  const std::string at = "mismatch: rank 1: switchable_norm, call 0, forward: ";
  EXPECT_EQ(told(batch, batch, {2, 3, 4})[0], "");
  EXPECT_EQ(told(batch, batch, {2, 3, 7})[1], "");
  EXPECT_EQ(told(space, space, {2, 3, 7})[1], "");
  EXPECT_EQ(told(space, space, {3, 3, 4})[0], at + "number of groups is 9, must be 6 as on rank 0");
  EXPECT_EQ(told(batch, batch + ":eps=1", {2, 3, 4})[1], at + "eps is 1, must be 1e-05 as on rank 0");
  EXPECT_NE(told(batch, space, {2, 3, 4})[0].find("shard is space, must be batch as on rank 0"), std::string::npos);
  EXPECT_EQ(told(space, space + ":training=false", {2, 3, 4})[0],
            at + "mode is inference, must be training as on rank 0");
  const auto logits = told(batch, batch, {2, 3, 4}, {2});
  EXPECT_EQ(logits[1], "invalid input: mean_logits has shape (2,), must have (3,)");
  EXPECT_NE(logits[0].find("mean_logits has shape (2,)"), std::string::npos) << logits[0];
  const auto channels = told(space, space, {2, 2, 4});
  EXPECT_EQ(channels[1], "invalid input: input has 2 channels, must have 3");
  EXPECT_NE(channels[0].find("input has 2 channels"), std::string::npos) << channels[0];
}

}  // namespace
