// The oracle of the norms within a sample: layer, RMS, group and instance norm are one definition over sets of indices.
#include <cmath>
#include <stdexcept>

#include "launch/reference/reference.hpp"

namespace reference {

using Extents = std::vector<Int>;

namespace {

double or_default(const Doubles& values, Int i, double missing) { return values.empty() ? missing : values[at(i)]; }

struct SetMoments {
  Reals count, mean, var;  // (sets)
};

/// Two rounds: the mean of every set, then the mean squared distance from it (from 0 when not centred); `less`: over
/// that many values less.
SetMoments moments(const Array& x, const Sets& sets, bool centred, Real less = 0) {
  SetMoments m{Reals(at(sets.sets)), Reals(at(sets.sets)), Reals(at(sets.sets))};
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    m.count[at(sets.set[i])] += 1;
    if (centred) m.mean[at(sets.set[i])] += x.v[i];
  }
  for (std::size_t s = 0; s < m.mean.size(); ++s)
    if (m.count[s] > 0) m.mean[s] /= m.count[s];
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const Real distance = x.v[i] - m.mean[at(sets.set[i])];
    m.var[at(sets.set[i])] += distance * distance;
  }
  for (std::size_t s = 0; s < m.var.size(); ++s)
    if (m.count[s] > 0) m.var[s] /= m.count[s] - less;
  return m;
}

RowsResult standardize(const Array& x, const Sets& sets, const Doubles& gamma, const Doubles& beta, double eps,
                       bool centred, Real less = 0) {
  const SetMoments m = moments(x, sets, centred, less);
  RowsResult result{zeros(x.shape), Doubles(m.mean.begin(), m.mean.end()), {}, Doubles(m.var.begin(), m.var.end())};
  for (const Real var : m.var) result.rstd.push_back(static_cast<double>(1 / std::sqrt(var + eps)));
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const std::size_t s = at(sets.set[i]);
    const Real xhat = (x.v[i] - m.mean[s]) / std::sqrt(m.var[s] + eps);
    result.y.v[i] =
        static_cast<double>(or_default(gamma, sets.affine[i], 1) * xhat + or_default(beta, sets.affine[i], 0));
  }
  return result;
}

/// With g = gamma dy: dx = (g - mean g - xhat mean(g xhat)) / s over each set; without centring the middle term is
/// absent, for xhat does not depend on a mean.
RowsGradients standardize_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy, double eps,
                                   bool centred) {
  const SetMoments m = moments(x, sets, centred);
  const auto xhat = [&](std::size_t i) {
    const std::size_t s = at(sets.set[i]);
    return (x.v[i] - m.mean[s]) / std::sqrt(m.var[s] + eps);
  };
  const auto g = [&](std::size_t i) { return Real(or_default(gamma, sets.affine[i], 1)) * dy.v[i]; };

  Reals mean_g(at(sets.sets)), mean_g_xhat(at(sets.sets));
  Reals dgamma(at(sets.affines)), dbeta(at(sets.affines));
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const std::size_t s = at(sets.set[i]);
    mean_g[s] += g(i) / m.count[s];
    mean_g_xhat[s] += g(i) * xhat(i) / m.count[s];
    dgamma[at(sets.affine[i])] += dy.v[i] * xhat(i);
    dbeta[at(sets.affine[i])] += dy.v[i];
  }
  RowsGradients result{zeros(x.shape), Doubles(dgamma.begin(), dgamma.end()), Doubles(dbeta.begin(), dbeta.end())};
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const std::size_t s = at(sets.set[i]);
    const Real direct = g(i) - (centred ? mean_g[s] : 0) - xhat(i) * mean_g_xhat[s];
    result.dx.v[i] = static_cast<double>(direct / std::sqrt(m.var[s] + eps));
  }
  return result;
}

/// So many sets in every sample; `set` and `affine`, of channel and position, say which one.
template <class Set, class Affine>
Sets sets_in_samples(const Extents& shape, Int sets, Int affines, Set set, Affine affine) {
  const Int samples = shape.at(0), channels = shape.at(1), space = elements(Extents(shape.begin() + 2, shape.end()));
  Sets made;
  made.sets = samples * sets;
  made.affines = affines;
  for (Int n = 0; n < samples; ++n)
    for (Int c = 0; c < channels; ++c)
      for (Int s = 0; s < space; ++s) {
        made.set.push_back(n * sets + set(c, s));
        made.affine.push_back(affine(c, s));
      }
  return made;
}

}  // namespace

Sets layer_norm_sets(const Extents& shape, int axes) {
  if (axes < 1 || axes > static_cast<int>(shape.size())) throw std::invalid_argument("layer_norm: axes out of range");
  Sets sets;
  sets.sets = elements(Extents(shape.begin(), shape.end() - axes));
  sets.affines = elements(Extents(shape.end() - axes, shape.end()));
  for (Int s = 0; s < sets.sets; ++s)
    for (Int e = 0; e < sets.affines; ++e) {
      sets.set.push_back(s);
      sets.affine.push_back(e);
    }
  return sets;
}

Sets group_norm_sets(const Extents& shape, Int groups) {
  const Int channels = shape.at(1);
  if (groups < 1 || channels % groups != 0) throw std::invalid_argument("group_norm: groups must divide C");
  const auto of_group = [=](Int c, Int) { return c / (channels / groups); };
  return sets_in_samples(shape, groups, channels, of_group, [](Int c, Int) { return c; });
}

Sets instance_norm_sets(const Extents& shape) { return group_norm_sets(shape, shape.at(1)); }

RowsResult rows_forward(const Array& x, const Sets& sets, const Doubles& gamma, const Doubles& beta, double eps) {
  return standardize(x, sets, gamma, beta, eps, true);
}

RowsGradients rows_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy, double eps) {
  return standardize_backward(x, sets, gamma, dy, eps, true);
}

RowsResult rms_forward(const Array& x, const Sets& sets, const Doubles& gamma, double eps, const Doubles& beta) {
  return standardize(x, sets, gamma, beta, eps, false);
}

RowsGradients rms_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy, double eps) {
  return standardize_backward(x, sets, gamma, dy, eps, false);
}

Sets positional_norm_sets(const Extents& shape) {
  const Int space = elements(Extents(shape.begin() + 2, shape.end()));
  const auto position = [](Int, Int s) { return s; };
  return sets_in_samples(shape, space, space, position, position);
}

RowsResult positional_forward(const Array& x, const Sets& sets, const Doubles& gamma, const Doubles& beta, double eps,
                              bool unbiased) {
  return standardize(x, sets, gamma, beta, eps, true, unbiased ? 1 : 0);
}

/// y, mean m and deviation s as functions of x: dm/dx = 1/count, ds/dx = (x - m) / ((count - less) s).
RowsGradients positional_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy,
                                  const Doubles& grad_mean, const Doubles& grad_std, double eps, bool unbiased) {
  const Real less = unbiased ? 1 : 0;
  const SetMoments m = moments(x, sets, true, less);
  Reals by_mean(at(sets.sets)), by_std(at(sets.sets)), dgamma(at(sets.affines)), dbeta(at(sets.affines));
  for (std::size_t s = 0; s < by_mean.size(); ++s) {
    by_mean[s] = grad_mean.empty() ? 0 : grad_mean[s];
    by_std[s] = grad_std.empty() ? 0 : grad_std[s];
  }
  const auto deviation = [&](std::size_t s) { return std::sqrt(m.var[s] + eps); };
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const std::size_t s = at(sets.set[i]), a = at(sets.affine[i]);
    const Real g = Real(or_default(gamma, sets.affine[i], 1)) * dy.v[i], xhat = (x.v[i] - m.mean[s]) / deviation(s);
    by_mean[s] -= g / deviation(s);
    by_std[s] -= g * xhat / deviation(s);
    dgamma[a] += dy.v[i] * xhat;
    dbeta[a] += dy.v[i];
  }
  RowsGradients result{zeros(x.shape), Doubles(dgamma.begin(), dgamma.end()), Doubles(dbeta.begin(), dbeta.end())};
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const std::size_t s = at(sets.set[i]);
    const Real g = Real(or_default(gamma, sets.affine[i], 1)) * dy.v[i], sigma = deviation(s);
    result.dx.v[i] = static_cast<double>(g / sigma + by_mean[s] / m.count[s] +
                                         by_std[s] * (x.v[i] - m.mean[s]) / ((m.count[s] - less) * sigma));
  }
  return result;
}

namespace {

/// One over what the values of every set are divided by.
Reals response_rstd(const Array& x, const Sets& sets, const Response& layer) {
  const SetMoments m = moments(x, sets, false);
  Reals rstd(at(sets.sets));
  for (std::size_t s = 0; s < rstd.size(); ++s) {
    const Real learned = or_default(layer.eps_learned, static_cast<Int>(s) % sets.affines, 0);
    rstd[s] = 1 / std::sqrt(m.var[s] + layer.eps + std::abs(learned));
  }
  return rstd;
}

}  // namespace

Array response_forward(const Array& x, const Response& layer, bool threshold) {
  const Sets sets = instance_norm_sets(x.shape);
  const Reals rstd = response_rstd(x, sets, layer);
  Array y = zeros(x.shape);
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const Int c = sets.affine[i];
    const Real own =
        or_default(layer.gamma, c, 1) * (x.v[i] * rstd[at(sets.set[i])]) + Real(or_default(layer.beta, c, 0));
    y.v[i] = static_cast<double>(own);
    if (threshold && !layer.tau.empty() && y.v[i] < layer.tau[at(c)]) y.v[i] = layer.tau[at(c)];
  }
  return y;
}

/// dz is parted into what y takes and what tau does; then the backward of a root mean square with this eps, and that of
/// eps: d(1/r)/d(eps) = -1/2 r^-3.
ResponseGradients response_backward(const Array& x, const Response& layer, const Array& dz, const Doubles& decides) {
  const Sets sets = instance_norm_sets(x.shape);
  const Reals rstd = response_rstd(x, sets, layer);
  const Doubles y = decides.empty() ? response_forward(x, layer, false).v : decides;
  const double share_of_y = layer.tie == allnorm::Tie::first ? 1 : layer.tie == allnorm::Tie::second ? 0 : 0.5;
  Reals dy(x.v.size()), count(at(sets.sets)), products(at(sets.sets));
  Reals dgamma(at(sets.affines)), dbeta(dgamma.size()), dtau(dgamma.size()), deps(dgamma.size());
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const std::size_t s = at(sets.set[i]), c = at(sets.affine[i]);
    double share = 1;
    if (!layer.tau.empty()) share = y[i] < layer.tau[c] ? 0 : y[i] == layer.tau[c] ? share_of_y : 1;
    dy[i] = share * Real(dz.v[i]);
    dtau[c] += dz.v[i] - dy[i];
    dgamma[c] += dy[i] * (x.v[i] * rstd[s]);
    dbeta[c] += dy[i];
    count[s] += 1;
    products[s] += or_default(layer.gamma, static_cast<Int>(c), 1) * dy[i] * (x.v[i] * rstd[s]);
  }
  ResponseGradients result{zeros(x.shape), {}, {}, {}, {}};
  for (std::size_t i = 0; i < x.v.size(); ++i) {
    const std::size_t s = at(sets.set[i]), c = at(sets.affine[i]);
    const Real g = or_default(layer.gamma, static_cast<Int>(c), 1) * dy[i];
    result.dx.v[i] = static_cast<double>((g - x.v[i] * rstd[s] * (products[s] / count[s])) * rstd[s]);
  }
  for (std::size_t s = 0; s < products.size(); ++s) {
    const std::size_t c = s % dgamma.size();
    const double learned = or_default(layer.eps_learned, static_cast<Int>(c), 0);
    const int sign = (learned > 0) - (learned < 0);
    deps[c] -= sign * products[s] * rstd[s] * rstd[s] / 2;
  }
  result.dgamma = Doubles(dgamma.begin(), dgamma.end());
  result.dbeta = Doubles(dbeta.begin(), dbeta.end());
  result.dtau = Doubles(dtau.begin(), dtau.end());
  result.deps = Doubles(deps.begin(), deps.end());
  return result;
}

void update_instance_running(const RowsResult& result, const Extents& shape, double momentum, Doubles& running_mean,
                             Doubles& running_var) {
  const Int samples = shape.at(0), channels = shape.at(1), space = elements(Extents(shape.begin() + 2, shape.end()));
  if (samples == 0 || space == 0) return;
  const Real bessel = space > 1 ? Real(space) / Real(space - 1) : Real(1);
  for (Int c = 0; c < channels; ++c) {
    Real mean = 0, var = 0;
    for (Int n = 0; n < samples; ++n) {
      mean += Real(result.mean[at(n * channels + c)]) / Real(samples);
      var += Real(result.var[at(n * channels + c)]) * bessel / Real(samples);
    }
    running_mean[at(c)] = static_cast<double>((1 - Real(momentum)) * running_mean[at(c)] + momentum * mean);
    running_var[at(c)] = static_cast<double>((1 - Real(momentum)) * running_var[at(c)] + momentum * var);
  }
}

}  // namespace reference
