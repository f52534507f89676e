// Switchable Normalization, whose mean and variance are mixtures of those of instance, layer and batch norm: its
// formulas for one channel of a sample, in double, host and device. Section 11 of docs/equations.md.
#pragma once

#include "kernels/formulas.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm::formulas {

/// In the order of the logits: instance, layer and batch norm.
struct Mixture {
  double instance = 0, layer = 0, batch = 0;

  ALLNORM_HOST_DEVICE double of(double in, double ln, double bn) const {
    return in +
           (layer * (ln - in) + batch * (bn - in));  // the weights add up to 1; far from 0 the differences are small
  }
};
ALLNORM_HOST_DEVICE inline Mixture softmax(const Parameter& logits) {
  const double a = logits[0], b = logits[1], c = logits[2], most = a > b ? (a > c ? a : c) : (b > c ? b : c);
  const double x = std::exp(a - most), y = std::exp(b - most), z = std::exp(c - most), sum = x + y + z;
  return {x / sum, y / sum, z / sum};
}
struct SwitchWeights {
  Mixture mean{}, var{};
};

/// Of one channel of a sample with `count` values; without Bessel's factor, or with it, which one value does not have.
ALLNORM_HOST_DEVICE inline Moments instance_moments(bool unbiased, double count, double mean, double m2) {
  return count > 0 ? Moments{mean, m2 / (unbiased ? count - 1 : count)} : Moments{};
}

/// The moments of several sets together, from theirs: nothing of x is read again.
struct Pool {
  double count = 0, mean = 0, m2 = 0;

  ALLNORM_HOST_DEVICE void add(double values, Moments of_set) {
    const Merge merge(count, values);
    if (merge.skips()) return;
    const double d = of_set.mean - mean;
    m2 = merge.products(m2, of_set.var * values, d, d);
    mean = merge.mean(mean, of_set.mean);
    count = merge.count;
  }
  ALLNORM_HOST_DEVICE Moments moments() const { return count > 0 ? Moments{mean, m2 / count} : Moments{}; }
};

/// What a channel of a sample is normalized with.
struct SwitchedFrame {
  Moments instance{}, layer{}, batch{};
  double mean = 0, var = 0, rstd = 1;
};
ALLNORM_HOST_DEVICE inline SwitchedFrame switched(const SwitchWeights& w, Moments in, Moments ln, Moments bn,
                                                  double eps) {
  const double mean = w.mean.of(in.mean, ln.mean, bn.mean);
  const double var = w.var.instance * in.var + w.var.layer * ln.var + w.var.batch * bn.var;
  return {in, ln, bn, mean, var, 1 / std::sqrt(var + eps)};
}

/// Derivatives of the sum of dy * y by a mean and a variance, which add up over sets.
struct MomentTerms {
  double mean = 0, var = 0;
  ALLNORM_HOST_DEVICE void add(MomentTerms more) { mean += more.mean, var += more.var; }
  ALLNORM_HOST_DEVICE MomentTerms times(const Mixture& of_mean, const Mixture& of_var, double Mixture::*part) const {
    return {of_mean.*part * mean, of_var.*part * var};
  }
};
/// By those that normalized: sum_g and sum_gx are the sums of dy and of dy * (x - mean).
ALLNORM_HOST_DEVICE inline MomentTerms switched_terms(const SwitchedFrame& f, double gamma, double sum_g,
                                                      double sum_gx) {
  return {-f.rstd * (gamma * sum_g), -0.5 * (f.rstd * (f.rstd * (f.rstd * (gamma * sum_gx))))};
}

/// The share of a channel of a sample in the gradients of the logits; `local`: from this rank's values.
struct LogitTerms {
  double mean[3] = {}, var[3] = {};

  ALLNORM_HOST_DEVICE void add(const SwitchWeights& w, const SwitchedFrame& f, MomentTerms local) {
    const auto to = [](double(&sum)[3], const Mixture& weights, double term, double mixed, double in, double ln,
                       double bn) {
      sum[0] += weights.instance * (term * (in - mixed));
      sum[1] += weights.layer * (term * (ln - mixed));
      sum[2] += weights.batch * (term * (bn - mixed));
    };
    to(mean, w.mean, local.mean, f.mean, f.instance.mean, f.layer.mean, f.batch.mean);
    to(var, w.var, local.var, f.var, f.instance.var, f.layer.var, f.batch.var);
  }
};

/// Sets of which a channel of a sample is a part: the terms of all of them, already weighted, and its share of their
/// values.
struct PooledTerms {
  MomentTerms terms{};
  double share = 0;
};

/// dx = dy * gain + (x - mean) * power * slope + offset, of a set with `count` values whose own terms are `own`.
ALLNORM_HOST_DEVICE inline GradCoefficients switched_grad(const SwitchWeights& w, const SwitchedFrame& f, double gamma,
                                                          double count, bool unbiased, MomentTerms own,
                                                          PooledTerms layer, PooledTerms batch) {
  const auto by_mean = [&f](const PooledTerms& pool, Moments of) {
    return pool.share * (pool.terms.mean + 2 * (f.instance.mean - of.mean) * pool.terms.var);
  };
  const double dmean = w.mean.instance * own.mean + by_mean(layer, f.layer) + by_mean(batch, f.batch);
  const double dvar = w.var.instance * own.var + layer.share * layer.terms.var + batch.share * batch.terms.var;
  const double slope = 2 * (dvar / (unbiased ? count - 1 : count)), power = split(f.rstd).power;
  return {gamma * f.rstd, slope / power, dmean / count + (f.mean - f.instance.mean) * slope, power};
}

}  // namespace allnorm::formulas
