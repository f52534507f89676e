// Every formula of the small steps between the kernels, once, for one group (a channel of BN), in double: the CPU loops
// over groups, a GPU gives each group a thread. Section numbers are those of docs/equations.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "allnorm/options.hpp"

#ifdef __CUDACC__
#define ALLNORM_HOST_DEVICE __host__ __device__
#else
#define ALLNORM_HOST_DEVICE
#endif
// What is called once per group: a call that is not inlined costs a small layer more than the arithmetic in it.
#ifdef __CUDACC__
#define ALLNORM_PER_GROUP __host__ __device__ __forceinline__
#else
#define ALLNORM_PER_GROUP inline __attribute__((always_inline))
#endif

namespace allnorm::formulas {

struct Moments {
  double mean = 0, var = 0;  // var is biased
};

// About 0: no mean, and the mean square in place of the variance.
ALLNORM_HOST_DEVICE inline Moments about_zero(Moments m) { return {0, m.var + m.mean * m.mean}; }

// Moments that are not finite are used by their own call only. A state keeps them as NaN, whatever they were, so that
// ranks, devices and files have one form of what no later call may use.
inline constexpr double not_usable = std::numeric_limits<double>::quiet_NaN();
ALLNORM_HOST_DEVICE inline bool usable(Moments m) { return std::isfinite(m.mean) && std::isfinite(m.var); }
ALLNORM_HOST_DEVICE inline Moments kept(Moments m) { return usable(m) ? m : Moments{not_usable, not_usable}; }

// ---- 2: the moments of all ranks, merged rank by rank --------------------------------------------------------------

/// Numbers of values are integers in doubles, exact up to this.
inline constexpr double most_values = 0x1p53;
/// Their sum; infinite where it is beyond that, and from there on.
ALLNORM_HOST_DEVICE inline double counted(double before, double more) {
  const double count = before + more;
  return count <= most_values && count - before == more ? count : std::numeric_limits<double>::infinity();
}

/// How `more` values merge with the `before` ones that were merged already (Chan, Golub and LeVeque): the same for all
/// groups of a message. A part without values is to be skipped and the first one with some is taken as it is, so that
/// nothing is multiplied with what stands beside a count of 0.
struct Merge {
  double before = 0, more = 0;
  double count = 0;             // of both
  double share = 0, cross = 0;  // more / count, before * share

  ALLNORM_HOST_DEVICE Merge(double n, double added)
      : before(n), more(added), count(counted(n, added)), share(added / count), cross(n * share) {}

  ALLNORM_HOST_DEVICE bool skips() const { return more == 0; }
  ALLNORM_HOST_DEVICE double mean(double merged, double part) const {
    return before == 0 ? part : merged + (part - merged) * share;
  }
  /// Of sums of (x - mean x)(y - mean y), y = x for squares; dx and dy: the part's mean less the merged one, before.
  ALLNORM_HOST_DEVICE double products(double merged, double part, double dx, double dy) const {
    return before == 0 ? part : merged + part + dx * dy * cross;
  }
};

/// Where a transport can only add: one round adds n and n * mean, whose quotient is a middle that all ranks share; the
/// next adds n and the sums about it, which give the moments.
struct SumsAbout {
  double sum = 0, squares = 0;  // of (x - middle) and its square

  ALLNORM_HOST_DEVICE static double weighed(double n, double mean) { return n == 0 ? 0 : n * mean; }
  ALLNORM_HOST_DEVICE static double middle(double count, double sum) { return count == 0 ? 0 : sum / count; }
  ALLNORM_HOST_DEVICE static SumsAbout of(double n, double mean, double m2, double middle) {
    if (n == 0) return {};
    const double d = mean - middle;
    return {n * d, m2 + n * d * d};
  }
  ALLNORM_HOST_DEVICE double mean(double count, double middle) const { return count == 0 ? 0 : middle + sum / count; }
  ALLNORM_HOST_DEVICE double m2(double count) const {
    const double rest = count == 0 ? 0 : squares - sum * (sum / count);
    return rest < 0 ? 0 : rest;  // a NaN stays a NaN
  }
};

// ---- 1: running statistics -----------------------------------------------------------------------------------------

ALLNORM_HOST_DEVICE inline double bessel(double count) { return count > 1 ? count / (count - 1) : 1; }

ALLNORM_HOST_DEVICE inline double move(double running, double value, double momentum) {
  return (1 - momentum) * running + momentum * value;
}

// The variance that values are divided by, of `count` of them with this biased one: with Bessel's factor it has no
// value where there is one of them.
ALLNORM_HOST_DEVICE inline double estimate(const PlainOptions& o, double var, double count) {
  return o.unbiased ? var * (count / (count - 1)) : var;
}

// sigma, the deviation that values of this variance are divided by, and the variance that has this sigma. `learned` is
// added to eps.
ALLNORM_HOST_DEVICE inline double sigma(const PlainOptions& o, double var, double learned = 0) {
  return o.eps_place == EpsPlace::outside ? std::sqrt(var) + o.eps + learned : std::sqrt(var + o.eps + learned);
}
ALLNORM_HOST_DEVICE inline double variance(const PlainOptions& o, double sigma) {
  return o.eps_place == EpsPlace::outside ? (sigma - o.eps) * (sigma - o.eps) : sigma * sigma - o.eps;
}
// How 1/sigma follows the variance, in units of -1/2 sigma^-3; not at all from a variance of 0, where the root has no
// derivative.
ALLNORM_HOST_DEVICE inline double steepness(const PlainOptions& o, double var) {
  if (o.eps_place == EpsPlace::inside) return 1;
  return var > 0 ? sigma(o, var) / std::sqrt(var) : 0;
}

// ---- 5: CmBN, one more mini-batch with weight f of the new average -------------------------------------------------

ALLNORM_HOST_DEVICE inline Moments accumulate(Moments so_far, Moments current, double f) {
  const double mean = so_far.mean + f * (current.mean - so_far.mean);
  const double before = so_far.mean - mean, now = current.mean - mean;
  return {mean, (1 - f) * (so_far.var + before * before) + f * (current.var + now * now)};
}

// ---- 4: Cross-Iteration BN -----------------------------------------------------------------------------------------

// A past iteration's moments at the present weights: dmean and dvar are the products of its derivatives of mean and
// (centred) variance with the change of the weights. The variance may come out negative: the guard's case.
ALLNORM_HOST_DEVICE inline Moments compensate(Moments past, double dmean, double dvar) {
  return {past.mean + dmean, past.var + dvar - dmean * dmean};
}

struct WindowMoments {
  Moments moments;
  double share = 1;  // of the current iteration in the average: 1 / iterations used
  double count = 0;  // values of the iterations used
};

// The average over the current iteration and `entries` past ones, without those that are not usable. past(j) gives
// entry j's compensated moments and count(j) its number of values.
template <class Past, class Count>
ALLNORM_HOST_DEVICE inline WindowMoments window(Moments current, double current_count, int entries, Guard guard,
                                                Past past, Count count) {
  const auto leaves = [guard](Moments p) { return !usable(p) || (guard == Guard::drop && p.var < 0); };
  int used = 1;
  double mean = current.mean, values = current_count;
  for (int j = 0; j < entries; ++j) {
    const Moments p = past(j);
    if (leaves(p)) continue;
    ++used;
    mean += p.mean;
    values += count(j);
  }
  mean /= used;
  double var = current.var + (current.mean - mean) * (current.mean - mean);
  for (int j = 0; j < entries; ++j) {
    const Moments p = past(j);
    if (leaves(p)) continue;
    var += (p.var < 0 ? 0 : p.var) + (p.mean - mean) * (p.mean - mean);
  }
  return {{mean, var / used}, 1.0 / used, values};
}

// ---- 3: Batch Renormalization --------------------------------------------------------------------------------------

struct Correction {
  double r = 1, d = 0;
};

ALLNORM_HOST_DEVICE inline double clip(double v, double low, double high) {
  return v < low ? low : v > high ? high : v;
}

ALLNORM_HOST_DEVICE inline Correction renorm(double mean, double sigma, double running_mean, double running_sigma,
                                             double r_max, double d_max) {
  return {clip(sigma / running_sigma, 1 / r_max, r_max), clip((mean - running_mean) / running_sigma, -d_max, d_max)};
}

// ---- apply and its gradient ----------------------------------------------------------------------------------------

// A factor of x - mean as the maps take it: by a power of two near it first, and then by the rest, so that nothing
// leaves the range of the type that they compute in on the way, however large or small sigma is. A power of two rounds
// nothing; it is 1 where sigma is a usual number.
struct Split {
  double power = 1, rest = 1;
};
ALLNORM_HOST_DEVICE inline Split split(double factor) {
  constexpr double usual = 0x1p16, most = 0x1p1000;
  const double size = std::fabs(factor);
  if (!(size < 1 / usual || size > usual) || size == 0) return {1, factor};
  double power = clip(size, 1 / most, most);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &power, sizeof(bits));
  bits &= std::uint64_t{0x7ff} << 52;  // the exponent alone
  std::memcpy(&power, &bits, sizeof(bits));
  return {power, factor / power};
}

// y = gamma * ((x - mean) * rstd * r + d) + beta = (x - mean) * scale + shift
struct ApplyCoefficients {
  double scale = 1, shift = 0;
};
ALLNORM_HOST_DEVICE inline ApplyCoefficients apply(double rstd, Correction c, double gamma, double beta) {
  return {gamma * rstd * c.r, gamma * c.d + beta};
}

// dx = g * gain + (x - mean) * power * slope + offset, with s1 = sum of gamma*r*g and s2 = sum of gamma*r*g*(x - mean)
// over the group of ranks, and share = d (second moment) / d (this call's), the same for the mean where there is one
// (section 0: b, and a = b or 0 with a mean of 0). rstd^3 would leave the range of double long before dx does, hence
// the power, which is rstd's. A value that makes mean and variance alone cannot change y;
// with `direct`, it does change a mean whose gradient is in s1.
struct GradCoefficients {
  double gain = 0, slope = 0, offset = 0, power = 1;
};
ALLNORM_HOST_DEVICE inline GradCoefficients apply_grad(double rstd, double r, double gamma, double share, bool centred,
                                                       double count, double s1, double s2, bool direct = false) {
  const auto [power, rest] = split(rstd);
  // inference: the sums may be anything, NaN included
  if (share == 0 || count <= 0) return {gamma * r * rstd, 0, 0, power};
  if (centred && share == 1 && count == 1 && !direct) return {0, 0, 0, power};
  const double per_value = share / count, slope = -per_value * rest * rest * rest * (s2 * power) * power;
  return {gamma * r * rstd, slope, centred ? -per_value * rstd * s1 : 0, power};
}

// Gradients of gamma and beta from the sums of g and g * (x - mean).
ALLNORM_HOST_DEVICE inline double gamma_grad(double rstd, Correction c, double sum_g, double sum_gx) {
  return c.r * rstd * sum_gx + c.d * sum_g;
}

// What a group with this s2 adds to the gradient of a learned eps inside the root, of which the size counts; one of 0
// has none. In an order that stays in range as long as the result does.
ALLNORM_HOST_DEVICE inline double learned_eps_grad(double eps, double rstd, double s2) {
  return eps == 0 ? 0 : (eps < 0 ? 0.5 : -0.5) * (s2 * rstd) * rstd * rstd;
}

// What gradients of a group's mean and deviation add to its sums, so that dx has their part (section 7).
struct DirectTerms {
  double s1 = 0, s2 = 0;
};
ALLNORM_HOST_DEVICE inline DirectTerms direct_terms(double rstd, double grad_mean, double grad_sigma) {
  return {-grad_mean / rstd, -grad_sigma / rstd / rstd};
}

}  // namespace allnorm::formulas
