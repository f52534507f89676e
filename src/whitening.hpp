// The small matrices of layers that whiten: a group's inverse root and the way of a gradient back through it. On the
// host, in double. Section 12 of docs/equations.md.
#pragma once

#include <cstdint>
#include <vector>

namespace allnorm {

/// How one group of g channels was whitened. All matrices are (g, g), row by row, of the covariance in units in which
/// its trace is about g: times power^2.
struct Whitened {
  double power = 1;                   ///< of two, near the inverse of the channels' deviation
  std::vector<double> matrix{};       ///< W in these units: y = W ((x - mean) power). Symmetric
  std::vector<double> basis{};        ///< by eigenvectors: they, in columns; by Newton's method: covariance / trace
  std::vector<double> eigenvalues{};  ///< (g), eps included; empty by Newton's method
  double trace = 0;                   ///< by Newton's method
};

/// `products`: (g, g) sums of products of the channels' differences from their means, over `count` > 0 values. W is the
/// inverse root of products / count + eps by its eigenvalues (ZCA), NaN where products are.
Whitened whitened_by_eigenvectors(const double* products, std::int64_t g, double count, double eps);
/// The same by so many steps of Newton's method, which need not have converged.
Whitened whitened_by_iterations(const double* products, std::int64_t g, double count, double eps,
                                std::int64_t iterations);

/// The gradient by the covariance from that by W, (g, g), both in the units of `by`; symmetric.
std::vector<double> covariance_grad_by_eigenvectors(const Whitened& by, const std::vector<double>& dmatrix);
std::vector<double> covariance_grad_by_iterations(const Whitened& by, const std::vector<double>& dmatrix,
                                                  std::int64_t iterations);

}  // namespace allnorm
