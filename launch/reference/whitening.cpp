#include "launch/reference/whitening.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace reference {

namespace {

// Square matrices, row by row.
struct Matrix {
  std::size_t size = 0;
  Reals v{};
  explicit Matrix(std::size_t n, Real diagonal = 0) : size(n), v(n * n) {
    for (std::size_t i = 0; i < n; ++i) v[i * n + i] = diagonal;
  }
  Real& operator()(std::size_t i, std::size_t j) { return v[i * size + j]; }
  Real operator()(std::size_t i, std::size_t j) const { return v[i * size + j]; }
};
Matrix operator*(const Matrix& a, const Matrix& b) {
  Matrix c(a.size);
  for (std::size_t i = 0; i < a.size; ++i)
    for (std::size_t k = 0; k < a.size; ++k)
      for (std::size_t j = 0; j < a.size; ++j) c(i, j) += a(i, k) * b(k, j);
  return c;
}
Matrix combined(Real s, const Matrix& a, Real t, const Matrix& b) {
  Matrix c(a.size);
  for (std::size_t i = 0; i < c.v.size(); ++i) c.v[i] = s * a.v[i] + t * b.v[i];
  return c;
}
Real dot(const Matrix& a, const Matrix& b) {
  Real sum = 0;
  for (std::size_t i = 0; i < a.v.size(); ++i) sum += a.v[i] * b.v[i];
  return sum;
}
Real trace(const Matrix& a) { return dot(a, Matrix(a.size, 1)); }

// x of a x = b by Gauss' elimination with row pivots; a (n, n), b (n, columns).
Reals solved(Reals a, Reals b, std::size_t n) {
  const std::size_t columns = b.size() / n;
  for (std::size_t k = 0; k < n; ++k) {
    std::size_t best = k;
    for (std::size_t i = k; i < n; ++i)
      if (std::abs(a[i * n + k]) > std::abs(a[best * n + k])) best = i;
    for (std::size_t j = 0; j < n; ++j) std::swap(a[k * n + j], a[best * n + j]);
    for (std::size_t j = 0; j < columns; ++j) std::swap(b[k * columns + j], b[best * columns + j]);
    for (std::size_t i = 0; i < n; ++i) {
      if (i == k) continue;
      const Real f = a[i * n + k] / a[k * n + k];
      for (std::size_t j = k; j < n; ++j) a[i * n + j] -= f * a[k * n + j];
      for (std::size_t j = 0; j < columns; ++j) b[i * columns + j] -= f * b[k * columns + j];
    }
  }
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < columns; ++j) b[i * columns + j] /= a[i * n + i];
  return b;
}
Matrix inverse(const Matrix& a) {
  Matrix made(a.size);
  made.v = solved(a.v, Matrix(a.size, 1).v, a.size);
  return made;
}

// R = S^(1/2) and W = S^(-1/2) by the iteration of Denman and Beavers, until both stand.
std::pair<Matrix, Matrix> roots(const Matrix& s) {
  const Real scale = trace(s) / static_cast<Real>(s.size);
  Matrix y = combined(1 / scale, s, 0, s), z(s.size, 1);
  for (int i = 0; i < 60; ++i) {
    const Matrix next = combined(0.5L, y, 0.5L, inverse(z));
    z = combined(0.5L, z, 0.5L, inverse(y));
    y = next;
  }
  return {combined(std::sqrt(scale), y, 0, y), combined(1 / std::sqrt(scale), z, 0, z)};
}

// d sum(G W) / dS of the inverse root: W S W = 1 gives dW R + R dW = -W dS W, so that dS is -W Z W with Z R + R Z the
// symmetric part of G. Z from its g^2 linear equations.
Matrix root_grad(const Matrix& r, const Matrix& w, const Matrix& g) {
  const std::size_t n = r.size;
  Reals equations(n * n * n * n), right(n * n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) {
      const std::size_t row = i * n + j;
      right[row] = (g(i, j) + g(j, i)) / 2;
      for (std::size_t k = 0; k < n; ++k) {
        equations[row * n * n + i * n + k] += r(k, j);
        equations[row * n * n + k * n + j] += r(i, k);
      }
    }
  Matrix z(n);
  z.v = solved(equations, right, n * n);
  return combined(-1, w * z * w, 0, z);
}

// W after some steps, and its derivative in direction d, side by side.
std::pair<Matrix, Matrix> newton(const Matrix& s, const Matrix& d, std::int64_t iterations) {
  const Real t = trace(s), dt = trace(d);
  const Matrix n = combined(1 / t, s, 0, s), dn = combined(1 / t, d, -dt / (t * t), s);
  Matrix p(s.size, 1), dp(s.size);
  for (std::int64_t k = 0; k < iterations; ++k) {
    const Matrix pp = p * p, cube = pp * p;
    const Matrix dcube = combined(1, combined(1, dp * pp, 1, p * dp * p), 1, pp * dp);
    const Matrix next = combined(1.5L, p, -0.5L, cube * n);
    dp = combined(1.5L, dp, -0.5L, combined(1, dcube * n, 1, cube * dn));
    p = next;
  }
  return {combined(1 / std::sqrt(t), p, 0, p), combined(1 / std::sqrt(t), dp, -dt / (2 * t * std::sqrt(t)), p)};
}

struct Group {
  Matrix w, dsigma;
  Real condition = 1;
};
// `g`: the gradient by W.
Group whitened(const Matrix& s, const WhiteningOptions& o, const Matrix& g) {
  const auto [r, root] = roots(s);
  const Real condition = std::sqrt(dot(s, s)) * dot(root, root);
  if (o.iterations == 0) return {root, root_grad(r, root, g), condition};
  Group made{newton(s, s, o.iterations).first, Matrix(s.size), condition};
  for (std::size_t i = 0; i < s.v.size(); ++i) {
    Matrix direction(s.size);
    direction.v[i] = 1;
    made.dsigma.v[i] = dot(g, newton(s, direction, o.iterations).second);
  }
  return made;
}

// Calls body(rank, c -> value's index) for every position of all ranks, of channels that begin at `first`.
template <class Body>
void for_positions(const Ranks& x, std::size_t first, const Body& body) {
  for (std::size_t rank = 0; rank < x.size(); ++rank) {
    const auto& shape = x[rank].shape;
    const auto N = static_cast<std::size_t>(shape[0]), C = static_cast<std::size_t>(shape[1]);
    const auto S = static_cast<std::size_t>(elements({shape.begin() + 2, shape.end()}));
    for (std::size_t n = 0; n < N; ++n)
      for (std::size_t p = 0; p < S; ++p) body(rank, [=](std::size_t c) { return (n * C + first + c) * S + p; });
  }
}

// One group of channels, from `first` on.
void whiten_group(const Ranks& x, const Ranks& dy, const WhiteningOptions& o, std::size_t first, Whitening& made) {
  const auto g = static_cast<std::size_t>(o.group_size);
  Reals mean(g), dmean(g);
  Real count = 0;
  for_positions(x, first, [&](std::size_t rank, auto at) {
    for (std::size_t c = 0; c < g; ++c) mean[c] += x[rank].v[at(c)], dmean[c] += dy[rank].v[at(c)];
    ++count;
  });
  for (std::size_t c = 0; c < g; ++c) mean[c] /= count, dmean[c] /= count;
  const bool live = o.training && count > 0;
  if (!o.training) std::copy_n(made.running_mean.begin() + static_cast<std::ptrdiff_t>(first), g, mean.begin());
  Matrix sigma(g, o.eps), dw(g);
  for_positions(x, first, [&](std::size_t rank, auto at) {
    for (std::size_t i = 0; i < g; ++i)
      for (std::size_t j = 0; j < g; ++j) {
        const Real xj = x[rank].v[at(j)] - mean[j];
        sigma(i, j) += (x[rank].v[at(i)] - mean[i]) * xj / count;
        dw(i, j) += dy[rank].v[at(i)] * xj;
      }
  });
  Group by{Matrix(g), Matrix(g)};
  if (live)
    by = whitened(sigma, o, dw);
  else
    std::copy_n(made.running_whitening.begin() + static_cast<std::ptrdiff_t>(first * g), g * g, by.w.v.begin());
  made.condition = std::max(made.condition, static_cast<double>(by.condition));
  for_positions(x, first, [&](std::size_t rank, auto at) {
    for (std::size_t c = 0; c < g; ++c) {
      Real y = 0, dx = 0, y_terms = 0, dx_terms = 0;
      const auto add = [](Real& sum, Real& sizes, Real term) { sum += term, sizes += std::abs(term); };
      for (std::size_t j = 0; j < g; ++j) {
        const Real xj = x[rank].v[at(j)] - mean[j], size = std::abs(x[rank].v[at(j)]) + std::abs(mean[j]);
        const Real slope = (by.dsigma(c, j) + by.dsigma(j, c)) / count;
        y += by.w(c, j) * xj, y_terms += std::abs(by.w(c, j)) * size;
        add(dx, dx_terms, by.w(j, c) * dy[rank].v[at(j)]);
        if (!live) continue;
        add(dx, dx_terms, -by.w(j, c) * dmean[j]);
        dx += slope * xj, dx_terms += std::abs(slope) * size;
      }
      made.y[rank].v[at(c)] = static_cast<double>(y);
      made.dx[rank].v[at(c)] = static_cast<double>(dx);
      made.y_sizes[rank].v[at(c)] = static_cast<double>(y_terms);
      made.dx_sizes[rank].v[at(c)] = static_cast<double>(dx_terms);
      made.y_terms = std::max(made.y_terms, static_cast<double>(y_terms));
      made.dx_terms = std::max(made.dx_terms, static_cast<double>(dx_terms));
    }
  });
  for (std::size_t c = 0; c < g; ++c) {
    made.mean.push_back(static_cast<double>(mean[c]));
    double& running = made.running_mean[first + c];
    if (live) running += o.momentum * (static_cast<double>(mean[c]) - running);
  }
  for (std::size_t i = 0; i < g * g; ++i) {
    made.whitening.push_back(static_cast<double>(by.w.v[i]));
    double& running = made.running_whitening[first * g + i];
    if (live) running += o.momentum * (static_cast<double>(by.w.v[i]) - running);
  }
}

}  // namespace

Whitening whiten(const Ranks& x, const Ranks& dy, const WhiteningOptions& options, const Doubles& running_mean,
                 const Doubles& running_whitening) {
  Whitening made{.y = x,
                 .dx = x,
                 .running_mean = running_mean,
                 .running_whitening = running_whitening,
                 .y_sizes = x,
                 .dx_sizes = x};
  for (std::size_t first = 0; first < running_mean.size(); first += static_cast<std::size_t>(options.group_size))
    whiten_group(x, dy, options, first, made);
  return made;
}

Doubles identities(std::int64_t channels, std::int64_t group_size) {
  Doubles made(static_cast<std::size_t>(channels * group_size));
  for (std::int64_t c = 0; c < channels; ++c) made[static_cast<std::size_t>(c * group_size + c % group_size)] = 1;
  return made;
}

}  // namespace reference
