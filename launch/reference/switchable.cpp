#include "launch/reference/switchable.hpp"

#include <algorithm>
#include <cmath>

namespace reference {

namespace {

Reals softmax(const Doubles& logits) {
  Reals w;
  Real sum = 0;
  for (const double l : logits) w.push_back(std::exp(static_cast<Real>(l))), sum += w.back();
  for (Real& v : w) v /= sum;
  return w;
}

struct Stat {
  Real mean = 0, var = 0, share = 0;  // share: of a (sample, channel) in the pool
  Sum dmean{}, dvar{};
};
struct Mixed {
  Real mean, size, var, rstd;  // size: of the terms of the mean
};

/// One part: x and dy (N, C, S), in (N * C), ln (N).
struct OwnPart {
  OwnPart(const Array& own_x, const Array& own_dy, std::size_t channels)
      : x(own_x.v), dy(own_dy.v), N(static_cast<std::size_t>(own_x.shape[0])), C(channels), in(N * C), ln(N) {
    S = N * C == 0 ? 0 : x.size() / (N * C);
  }
  const Doubles &x, &dy;
  std::size_t N, C, S = 0;
  std::vector<Stat> in, ln;
};

class Loops {
 public:
  Loops(const std::vector<Array>& x, const std::vector<Array>& dy, const SwitchableParameters& p, const NormOptions& o)
      : p_(p),
        o_(o),
        w_(softmax(p.mean_logits)),
        v_(softmax(p.var_logits)),
        C_(p.gamma.size()),
        bn_(C_),
        furthest_(p.furthest) {
    for (std::size_t r = 0; r < x.size(); ++r) parts_.emplace_back(x[r], dy[r], C_);
    for (const Array& part : x)
      for (const double value : part.v) furthest_ = std::max(furthest_, std::abs(Real(value)));
    made.running_mean = p.running_mean, made.running_var = p.running_var;
    for (OwnPart& part : parts_) take_own(part);
    take_batch();
    for (OwnPart& part : parts_) map(part);
    for (OwnPart& part : parts_) differentiate(part);
  }
  Switchable made;

 private:
  void take_own(OwnPart& s) {
    const auto size = static_cast<Real>(s.S);
    for (std::size_t g = 0; g < s.in.size(); ++g) {
      Stat& in = s.in[g];
      for (std::size_t i = 0; i < s.S; ++i) in.mean += s.x[g * s.S + i] / size;
      for (std::size_t i = 0; i < s.S; ++i) {
        const Real d = s.x[g * s.S + i] - in.mean;
        in.var += d * d / (o_.unbiased_instance_var ? size - 1 : size);
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
        for (const OwnPart& s : parts_)
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
    const Real size = w_[0] * std::abs(in.mean) + w_[1] * std::abs(ln.mean) + w_[2] * std::abs(batch.mean);
    const Real var = v_[0] * in.var + v_[1] * ln.var + v_[2] * batch.var;
    return {mean, size, var, 1 / std::sqrt(var + o_.eps)};
  }

  // y and the parameters' gradients; what y's gradient gives to each statistic.
  void map(OwnPart& s) {
    Values y(s.x.size());
    Doubles dgamma(C_), dbeta(C_);
    std::vector<Sum> dw(3), dv(3);
    for (std::size_t g = 0; g < s.in.size() && s.S > 0; ++g) {
      const std::size_t c = g % C_;
      Stat* const three[] = {&s.in[g], &s.ln[g / C_], &bn_[c]};
      const Mixed m = mixed(*three[0], *three[1], *three[2]);
      made.rstd.push_back(static_cast<double>(m.rstd));
      Sum dmean, dvar;
      Real to_gamma = 0, to_beta = 0;
      for (std::size_t i = g * s.S; i < (g + 1) * s.S; ++i) {
        const Real hat = (s.x[i] - m.mean) * m.rstd, hat_size = (std::abs(s.x[i]) + m.size) * m.rstd,
                   hat_by = std::abs(hat) + furthest_ * m.rstd, gamma = std::abs(p_.gamma[c]);
        Sum own;
        own.add(p_.gamma[c] * hat, gamma * hat_size, gamma * hat_by);
        own.add(p_.beta[c], std::abs(p_.beta[c]), 0);
        y.set(i, own);
        const Real by_mean = gamma * m.rstd * std::abs(s.dy[i]), by_var = by_mean * m.rstd / 2;
        dmean.add(-m.rstd * p_.gamma[c] * s.dy[i], by_mean, by_mean);
        dvar.add(-m.rstd * m.rstd / 2 * p_.gamma[c] * s.dy[i] * hat, by_var * hat_size, by_var * hat_by);
        to_gamma += s.dy[i] * hat;
        to_beta += s.dy[i];
      }
      dgamma[c] += static_cast<double>(to_gamma);
      dbeta[c] += static_cast<double>(to_beta);
      for (std::size_t k = 0; k < 3; ++k) {
        three[k]->dmean.add(w_[k], dmean);
        three[k]->dvar.add(v_[k], dvar);
        const Real by_mean = w_[k] * (three[k]->mean - m.mean), by_var = v_[k] * (three[k]->var - m.var);
        dw[k].add(by_mean * dmean.value, w_[k] * (std::abs(three[k]->mean) + m.size) * dmean.size,
                  2 * w_[k] * furthest_ * dmean.by_statistics);
        dv[k].add(by_var * dvar.value, v_[k] * (three[k]->var + m.var) * dvar.size,
                  v_[k] * (three[k]->var + m.var) * dvar.by_statistics);
      }
    }
    made.y.push_back(y);
    made.dgamma.push_back(dgamma);
    made.dbeta.push_back(dbeta);
    Values of_means(3), of_vars(3);
    for (std::size_t k = 0; k < 3; ++k) of_means.set(k, dw[k]), of_vars.set(k, dv[k]);
    made.dmean_logits.push_back(of_means);
    made.dvar_logits.push_back(of_vars);
  }

  void differentiate(const OwnPart& s) {
    Values all(s.x.size());
    const auto size = static_cast<Real>(s.S);
    for (std::size_t g = 0; g < s.in.size() && s.S > 0; ++g) {
      const std::size_t c = g % C_;
      Stat batch = bn_[c];
      batch.share = o_.training ? size / values_ : 0;
      const Real rstd = mixed(s.in[g], s.ln[g / C_], batch).rstd;
      for (std::size_t i = g * s.S; i < (g + 1) * s.S; ++i) {
        const Real direct = p_.gamma[c] * s.dy[i] * rstd, in = s.in[g].mean;
        Sum dx;
        dx.add(direct);
        for (const Stat& stat : {s.in[g], s.ln[g / C_], batch}) {
          const Real steep = 2 * stat.share / (o_.unbiased_instance_var ? size - 1 : size),
                     between = 2 * stat.share / size;
          dx.add(stat.share / size, stat.dmean);
          dx.add(steep * (s.x[i] - in) * stat.dvar.value, steep * (std::abs(s.x[i]) + std::abs(in)) * stat.dvar.size,
                 steep * (std::abs(s.x[i] - in) + furthest_) * stat.dvar.by_statistics);
          dx.add(between * (in - stat.mean) * stat.dvar.value,
                 between * (std::abs(in) + std::abs(stat.mean)) * stat.dvar.size,
                 between * 2 * furthest_ * stat.dvar.by_statistics);
        }
        all.set(i, dx);
      }
    }
    made.dx.push_back(all);
  }

  const SwitchableParameters& p_;
  const NormOptions& o_;
  Reals w_, v_;
  std::size_t C_;
  std::vector<OwnPart> parts_;
  std::vector<Stat> bn_;
  Real values_ = 0;  // of a channel
  Real furthest_;    // the largest |x|, which the errors of means go by
};

}  // namespace

Switchable switchable(const std::vector<Array>& x, const std::vector<Array>& dy, const SwitchableParameters& p,
                      const NormOptions& o) {
  return Loops(x, dy, p, o).made;
}

}  // namespace reference
