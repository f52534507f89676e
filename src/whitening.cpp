#include "src/whitening.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

namespace allnorm {

namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

std::vector<double> values_of(const Matrix& m) { return {m.data(), m.data() + m.size()}; }
Eigen::Map<const Matrix> matrix_of(const std::vector<double>& values) {
  const auto g = static_cast<Eigen::Index>(std::llround(std::sqrt(static_cast<double>(values.size()))));
  return {values.data(), g, g};
}

// A power of two near 1/sqrt(square); 1 where that says nothing.
double power_for(double square) {
  if (!(square > 0) || !std::isfinite(square)) return 1;
  int exponent = 0;
  std::frexp(square, &exponent);
  return std::ldexp(1.0, -exponent / 2);
}

struct Scaled {
  Matrix covariance;  // without eps
  double eps, power;
};
// In two steps each, since the square of a power need not be a double.
Scaled scaled(const double* products, std::int64_t g, double count, double eps) {
  Matrix covariance = Eigen::Map<const Matrix>(products, g, g) / count;
  const double power = power_for(covariance.trace() / static_cast<double>(g) + eps);
  covariance = covariance * power * power;
  return {covariance, eps * power * power, power};
}

// All P_k of Newton's method, of a covariance divided by its trace: P_0 = 1, P_k = (3 P - P^3 S) / 2 with P = P_{k-1}.
std::vector<Matrix> newton(const Matrix& s, std::int64_t iterations) {
  std::vector<Matrix> p{Matrix::Identity(s.rows(), s.cols())};
  for (std::int64_t k = 0; k < iterations; ++k) {
    const Matrix& last = p.back();
    p.push_back(1.5 * last - 0.5 * (last * last * last * s));
  }
  return p;
}

}  // namespace

Whitened whitened_by_eigenvectors(const double* products, std::int64_t g, double count, double eps) {
  const Scaled of = scaled(products, g, count, eps);
  Whitened made{.power = of.power};
  Eigen::SelfAdjointEigenSolver<Matrix> solver(g);
  if (!of.covariance.allFinite() || solver.compute(of.covariance).info() != Eigen::Success) {
    made.matrix.assign(static_cast<std::size_t>(g * g), std::numeric_limits<double>::quiet_NaN());
    made.basis = made.matrix;
    made.eigenvalues.assign(static_cast<std::size_t>(g), std::numeric_limits<double>::quiet_NaN());
    return made;
  }
  // Rounding may leave an eigenvalue of 0 below it. eps is added here, where nothing can swallow it.
  const Eigen::VectorXd values = solver.eigenvalues().cwiseMax(0.0).array() + of.eps;
  const Matrix u = solver.eigenvectors();
  made.matrix = values_of(u * values.cwiseSqrt().cwiseInverse().asDiagonal() * u.transpose());
  made.basis = values_of(u);
  made.eigenvalues.assign(values.begin(), values.end());
  return made;
}

Whitened whitened_by_iterations(const double* products, std::int64_t g, double count, double eps,
                                std::int64_t iterations) {
  const Scaled of = scaled(products, g, count, eps);
  const Matrix sigma = of.covariance + of.eps * Matrix::Identity(g, g);
  Whitened made{.power = of.power, .trace = sigma.trace()};
  const Matrix s = sigma / made.trace;
  made.matrix = values_of(newton(s, iterations).back() / std::sqrt(made.trace));
  made.basis = values_of(s);
  return made;
}

// With U and l of the covariance: U (K o (U^T dW U)) U^T, where K is the divided difference of l^(-1/2), which is one
// for equal eigenvalues too.
std::vector<double> covariance_grad_by_eigenvectors(const Whitened& by, const std::vector<double>& dmatrix) {
  const Matrix u = matrix_of(by.basis), dw = matrix_of(dmatrix);
  Matrix inner = u.transpose() * ((dw + dw.transpose()) / 2) * u;
  for (Eigen::Index a = 0; a < inner.rows(); ++a)
    for (Eigen::Index b = 0; b < inner.cols(); ++b) {
      const double ra = std::sqrt(by.eigenvalues[static_cast<std::size_t>(a)]),
                   rb = std::sqrt(by.eigenvalues[static_cast<std::size_t>(b)]);
      inner(a, b) *= -1 / (ra * rb * (ra + rb));
    }
  return values_of(u * inner * u.transpose());
}

// The recursion backwards.
std::vector<double> covariance_grad_by_iterations(const Whitened& by, const std::vector<double>& dmatrix,
                                                  std::int64_t iterations) {
  const Matrix s = matrix_of(by.basis), dw = matrix_of(dmatrix);
  const std::vector<Matrix> p = newton(s, iterations);
  const double root = std::sqrt(by.trace);
  double dtrace = -0.5 * dw.cwiseProduct(p.back()).sum() / (by.trace * root);
  Matrix dp = dw / root, ds = Matrix::Zero(s.rows(), s.cols());
  for (std::size_t k = p.size() - 1; k-- > 0;) {
    const Matrix t = p[k].transpose(), tt = t * t, of_cube = dp * s.transpose();
    ds -= 0.5 * (tt * t * dp);
    dp = (1.5 * dp - 0.5 * (of_cube * tt + t * of_cube * t + tt * of_cube)).eval();
  }
  dtrace -= ds.cwiseProduct(s).sum() / by.trace;
  const Matrix dsigma = ds / by.trace + dtrace * Matrix::Identity(s.rows(), s.cols());
  return values_of((dsigma + dsigma.transpose()) / 2);
}

}  // namespace allnorm
