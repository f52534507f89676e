#include "launch/reference/operations.hpp"

#include <algorithm>
#include <cmath>

namespace reference {

namespace {

struct Extent3 {
  explicit Extent3(const Array& x)
      : N(at(x.shape[0])), C(at(x.shape[1])), S(at(elements({x.shape.begin() + 2, x.shape.end()}))) {}
  std::size_t N, C, S;
};

// ---- cosines -------------------------------------------------------------------------------------------------------

/// A row less its mean where that is asked for, its length, and what it is divided by, with the derivative by |x|.
struct Row {
  Reals values, sizes;  // sizes: of the terms of each value
  Real length = 0, norm = 0, slope = 1;
};
Row row_of(const NormOptions& o, const Array& matrix, std::size_t i) {
  const auto K = static_cast<std::ptrdiff_t>(matrix.shape[1]), first = static_cast<std::ptrdiff_t>(i) * K;
  Row row{Reals(matrix.v.begin() + first, matrix.v.begin() + first + K), {}};
  Real mean = 0, square = 0;
  for (const Real value : row.values) mean += value / static_cast<Real>(K);
  for (Real& value : row.values) {
    row.sizes.push_back(std::abs(value) + (o.centred ? std::abs(mean) : 0));
    if (o.centred) value -= mean;
    square += value * value;
  }
  row.length = std::sqrt(square);
  switch (o.eps_mode) {
    case allnorm::EpsMode::add:
      row.norm = row.length + o.eps;
      break;
    case allnorm::EpsMode::max:
      row.norm = std::max<Real>(row.length, o.eps);
      row.slope = row.length > o.eps ? 1 : 0;
      break;
    case allnorm::EpsMode::sq:
      row.norm = std::sqrt(square + o.eps);
      row.slope = row.length / row.norm;
  }
  return row;
}

// The gradient by `own` of sum_j g_j y_j, y_j its product with the j-th other: written to `to` from `first` on.
template <class Gradient>
void cosine_grad(const NormOptions& o, const Row& own, const std::vector<Row>& others, const std::vector<Sum>& y,
                 const Gradient& g, Values& to, std::size_t first) {
  const std::size_t K = own.values.size();
  std::vector<Sum> sums(K);
  for (std::size_t j = 0; j < others.size(); ++j)
    for (std::size_t k = 0; k < K; ++k) {
      const Real steep = own.length > 0 ? g(j) * own.slope / own.length / own.norm : 0;
      const Real direct = g(j) / others[j].norm / own.norm, size = std::abs(direct) * others[j].sizes[k];
      sums[k].add(direct * others[j].values[k], size, size);
      const Real back = std::abs(steep) * own.sizes[k] * y[j].size;
      sums[k].add(-steep * own.values[k] * y[j].value, back, back);
    }
  Sum mean;
  for (const Sum& sum : sums) mean.add(1 / static_cast<Real>(K), sum);
  for (std::size_t k = 0; k < K; ++k) {
    if (o.centred) sums[k].add(-1, mean);  // through the mean
    to.set(first + k, sums[k]);
  }
}

}  // namespace

Cosine cosine(const NormOptions& o, const Array& x, const Array& w, const Array& dy) {
  const std::size_t N = at(x.shape[0]), M = at(w.shape[0]), K = at(x.shape[1]);
  Cosine made{Values(N * M), Values(N * K), Values(M * K)};
  std::vector<Row> a, b;
  for (std::size_t i = 0; i < N; ++i) a.push_back(row_of(o, x, i));
  for (std::size_t j = 0; j < M; ++j) b.push_back(row_of(o, w, j));
  std::vector<Sum> y(N * M);
  for (std::size_t i = 0; i < N; ++i)
    for (std::size_t j = 0; j < M; ++j) {
      Sum& sum = y[i * M + j];
      for (std::size_t k = 0; k < K; ++k) {
        const Real norms = a[i].norm * b[j].norm, size = a[i].sizes[k] * b[j].sizes[k] / norms;
        sum.add(a[i].values[k] * b[j].values[k] / norms, size, size);
      }
      made.y.set(i * M + j, sum);
    }
  for (std::size_t i = 0; i < N; ++i) {
    const std::vector<Sum> own(y.begin() + static_cast<std::ptrdiff_t>(i * M),
                               y.begin() + static_cast<std::ptrdiff_t>((i + 1) * M));
    cosine_grad(
        o, a[i], b, own, [&](std::size_t j) { return Real(dy.v[i * M + j]); }, made.dx, i * K);
  }
  for (std::size_t j = 0; j < M; ++j) {
    std::vector<Sum> own;
    for (std::size_t i = 0; i < N; ++i) own.push_back(y[i * M + j]);
    cosine_grad(
        o, b[j], a, own, [&](std::size_t i) { return Real(dy.v[i * M + j]); }, made.dw, j * K);
  }
  return made;
}

// ---- neighbouring channels -----------------------------------------------------------------------------------------

namespace {

/// Whether channel j is in the window of channel c.
bool sees(const NormOptions& o, Int c, Int j) {
  switch (o.convention) {
    case allnorm::WindowConvention::pytorch:  // padded by these, and pooled
      return c - o.size / 2 <= j && j <= c + (o.size - 1) / 2;
    case allnorm::WindowConvention::onnx:
      return c - (o.size - 1) / 2 <= j && j <= c + (o.size - 1) - (o.size - 1) / 2;
    default:
      return c - o.size / 2 <= j && j <= c + o.size / 2;
  }
}

}  // namespace

Neighbours neighbours(const NormOptions& o, const Array& x, const Array& dy) {
  const Extent3 e(x);
  const auto C = static_cast<Int>(e.C);
  const bool whole = o.convention == allnorm::WindowConvention::alexnet;
  const Real a = whole ? Real{o.alpha} : Real{o.alpha} / static_cast<Real>(o.size);
  Neighbours made{Values(x.v.size()), Values(x.v.size())};
  for (std::size_t n = 0; n < e.N; ++n)
    for (std::size_t s = 0; s < e.S; ++s) {
      const auto index = [&](Int c) { return (n * e.C + at(c)) * e.S + s; };
      std::vector<Sum> dx(e.C);
      for (Int c = 0; c < C; ++c) {
        Real p = o.k;
        for (Int j = 0; j < C; ++j)
          if (sees(o, c, j)) p += a * x.v[index(j)] * x.v[index(j)];
        const Real scale = std::pow(p, Real{-o.beta}), value = x.v[index(c)], g = dy.v[index(c)];
        Sum y;
        y.add(value * scale);
        made.y.set(index(c), y);
        dx[at(c)].add(g * scale);
        for (Int j = 0; j < C; ++j)
          if (sees(o, c, j)) dx[at(j)].add(-g * o.beta * scale / p * a * 2 * x.v[index(j)] * value);
      }
      for (Int j = 0; j < C; ++j) made.dx.set(index(j), dx[at(j)]);
    }
  return made;
}

// ---- moments of a style --------------------------------------------------------------------------------------------

namespace {

struct Moments {
  Real mean = 0, sigma = 0;
  Real furthest = 0, spread = 1;  // the largest |x| and 1 + (x - mean)^2/var, which errors of mean and variance go by
};
// (x - mean) * scale.
Sum centred(const Moments& m, Real x, Real scale) {
  Sum made;
  made.add((x - m.mean) * scale, (std::abs(x) + std::abs(m.mean)) * std::abs(scale),
           (std::abs(x - m.mean) * m.spread + m.furthest) * std::abs(scale));
  return made;
}
// A product, which is off by what each is off times the other.
Sum times(const Sum& a, const Sum& b) {
  return {a.value * b.value, a.size * b.size, a.by_statistics * b.by_statistics};
}

Moments moments_of(const Array& x, std::size_t first, std::size_t count, Real less, Real eps) {
  Moments m;
  Real var = 0;
  for (std::size_t s = first; s < first + count; ++s) {
    m.mean += x.v[s] / static_cast<Real>(count);
    m.furthest = std::max<Real>(m.furthest, std::abs(x.v[s]));
  }
  for (std::size_t s = first; s < first + count; ++s)
    var += (x.v[s] - m.mean) * (x.v[s] - m.mean) / (static_cast<Real>(count) - less);
  for (std::size_t s = first; s < first + count && var > 0; ++s)
    m.spread = std::max(m.spread, 1 + (x.v[s] - m.mean) * (x.v[s] - m.mean) / var);
  m.sigma = std::sqrt(var + eps);
  return m;
}

}  // namespace

Adapted adapt(const NormOptions& o, const Array& x, const Array& style, const Array& dy) {
  const Extent3 e(x), f(style);
  Adapted made{Values(x.v.size()), Values(x.v.size()), Values(style.v.size())};
  const Real less = o.unbiased ? 1 : 0, S = static_cast<Real>(e.S), S_style = static_cast<Real>(f.S);
  for (std::size_t set = 0; set < e.N * e.C; ++set) {
    const Moments own = moments_of(x, set * e.S, e.S, less, o.eps),
                  other = moments_of(style, set * f.S, f.S, less, o.eps);
    const auto hat = [&](std::size_t i) { return centred(own, x.v[i], 1 / own.sigma); };
    Sum g, gx;
    for (std::size_t i = set * e.S; i < (set + 1) * e.S; ++i) {
      Sum y;
      y.add(o.alpha * other.sigma, hat(i));
      y.add(o.alpha * other.mean, o.alpha * std::abs(other.mean), o.alpha * other.furthest);
      // What is left of x may be made of its distance from the mean, and the mean.
      const Real left = (1 - o.alpha) * (std::abs(x.v[i]) + 2 * std::abs(own.mean));
      y.add((1 - o.alpha) * x.v[i], left, left);
      made.y.set(i, y);
      g.add(dy.v[i]);
      gx.add(dy.v[i], hat(i));
    }
    for (std::size_t i = set * e.S; i < (set + 1) * e.S; ++i) {
      Sum dx;
      const Real steep = o.alpha * other.sigma / own.sigma;
      dx.add((1 - o.alpha) * dy.v[i]);
      if (e.S > 1) {
        dx.add(steep * dy.v[i]);
        dx.add(-steep / S, g);
        dx.add(-steep / (S - less), times(hat(i), gx));
      } else if (o.unbiased) {
        dx.add(NAN);
      }
      made.dx.set(i, dx);
    }
    for (std::size_t i = set * f.S; i < (set + 1) * f.S; ++i) {
      Sum dstyle;
      const Real by_sigma = f.S > 1 ? o.alpha / (other.sigma * (S_style - less)) : 0;
      dstyle.add(o.alpha / S_style, g);
      dstyle.add(1, times(centred(other, style.v[i], by_sigma), gx));
      made.dstyle.set(i, dstyle);
    }
  }
  return made;
}

// ---- weights -------------------------------------------------------------------------------------------------------

WeightNorm weight_norm(Int dim, const Array& v, const Doubles& g, const Array& dw) {
  const auto axes = static_cast<Int>(v.shape.size());
  const Int axis = dim < 0 ? dim + axes : dim;
  const std::size_t rows = at(v.shape[at(axis)]), inner = at(elements({v.shape.begin() + axis + 1, v.shape.end()}));
  const auto row_of = [&](std::size_t i) { return i / inner % rows; };
  WeightNorm made{Values(v.v.size()), Values(v.v.size()), Values(rows)};
  Reals length(rows);
  for (std::size_t i = 0; i < v.v.size(); ++i) length[row_of(i)] += Real(v.v[i]) * v.v[i];
  for (Real& one : length) one = std::sqrt(one);
  std::vector<Sum> dg(rows);
  for (std::size_t i = 0; i < v.v.size(); ++i) dg[row_of(i)].add(dw.v[i] * (v.v[i] / length[row_of(i)]));
  for (std::size_t r = 0; r < rows; ++r) made.dg.set(r, dg[r]);
  for (std::size_t i = 0; i < v.v.size(); ++i) {
    const std::size_t r = row_of(i);
    const Real own = g.empty() ? length[r] : Real(g[r]), u = v.v[i] / length[r];
    Sum w, dv;
    w.add(own * u);
    made.w.set(i, w);
    dv.add(own / length[r] * dw.v[i]);
    dv.add(-own / length[r] * u, dg[r]);
    made.dv.set(i, dv);
  }
  return made;
}

Standardized standardize(const NormOptions& o, const Array& w, const Doubles& gain, const Array& dy) {
  const std::size_t O = at(w.shape[0]), I = O == 0 ? 0 : w.v.size() / O;
  const Real n = static_cast<Real>(I), divisor = o.unbiased ? n - 1 : n;
  Standardized made{Values(w.v.size()), Values(w.v.size()), Values(O)};
  for (std::size_t row = 0; row < O; ++row) {
    const std::size_t first = row * I, last = first + I;
    const Moments m = moments_of(w, first, I, n - divisor, 0);
    const Real var = m.sigma * m.sigma;
    const bool outside = o.eps_place == EpsPlace::outside;
    const Real sigma = outside ? std::sqrt(var) + o.eps : std::sqrt(var + o.eps);
    const Real root = outside ? std::sqrt(var) : sigma;  // whose derivative is (w - mean) / (divisor * root)
    const Real factor = gain.empty() ? 1 : gain[row];
    Sum g, gx, dgain;
    for (std::size_t i = first; i < last; ++i) {
      const Sum hat = centred(m, w.v[i], 1 / sigma);
      Sum y;
      y.add(factor, hat);
      made.y.set(i, y);
      dgain.add(dy.v[i], hat);
      g.add(factor * dy.v[i]);
      gx.add(factor * dy.v[i], hat);
    }
    made.dgain.set(row, dgain);
    for (std::size_t i = first; i < last; ++i) {
      const Real by_root = root > 0 ? 1 / (divisor * root) : 0;
      Sum dw;
      dw.add(factor * dy.v[i] / sigma);
      dw.add(-1 / (n * sigma), g);
      dw.add(-1 / sigma, times(centred(m, w.v[i], by_root), gx));
      made.dw.set(i, dw);
    }
  }
  return made;
}

}  // namespace reference
