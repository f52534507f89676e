// The oracle of the norms within a sample: layer, RMS, group and instance norm are one definition over sets of indices.
#include <cmath>
#include <stdexcept>

#include "reference.hpp"

namespace reference {

using Int = std::int64_t;
using Extents = std::vector<Int>;

namespace {

std::size_t at(Int i) { return static_cast<std::size_t>(i); }

double or_default(const Doubles& values, Int i, double missing) { return values.empty() ? missing : values[at(i)]; }

struct SetMoments {
  Reals count, mean, var;  // (sets)
};

/// Two rounds: the mean of every set, then the mean squared distance from it (from 0 when not centred).
SetMoments moments(const Array& x, const Sets& sets, bool centred) {
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
    if (m.count[s] > 0) m.var[s] /= m.count[s];
  return m;
}

RowsResult standardize(const Array& x, const Sets& sets, const Doubles& gamma, const Doubles& beta, double eps,
                       bool centred) {
  const SetMoments m = moments(x, sets, centred);
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
  const Int samples = shape.at(0), channels = shape.at(1), space = elements(Extents(shape.begin() + 2, shape.end()));
  if (groups < 1 || channels % groups != 0) throw std::invalid_argument("group_norm: groups must divide C");
  Sets sets;
  sets.sets = samples * groups;
  sets.affines = channels;
  for (Int n = 0; n < samples; ++n)
    for (Int c = 0; c < channels; ++c)
      for (Int s = 0; s < space; ++s) {
        sets.set.push_back(n * groups + c / (channels / groups));
        sets.affine.push_back(c);
      }
  return sets;
}

Sets instance_norm_sets(const Extents& shape) { return group_norm_sets(shape, shape.at(1)); }

RowsResult rows_forward(const Array& x, const Sets& sets, const Doubles& gamma, const Doubles& beta, double eps) {
  return standardize(x, sets, gamma, beta, eps, true);
}

RowsGradients rows_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy, double eps) {
  return standardize_backward(x, sets, gamma, dy, eps, true);
}

RowsResult rms_forward(const Array& x, const Sets& sets, const Doubles& gamma, double eps) {
  return standardize(x, sets, gamma, {}, eps, false);
}

RowsGradients rms_backward(const Array& x, const Sets& sets, const Doubles& gamma, const Array& dy, double eps) {
  return standardize_backward(x, sets, gamma, dy, eps, false);
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
