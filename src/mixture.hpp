// Which rows of tables of parameters the samples of a call take.
#pragma once

#include <cstdint>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

/// Sample n takes sum over k of a_nk * row k: the row of its label, all rows by its weights, or the only one.
class Mixture {
 public:
  /// `spec`: the tensor that says which rows, and `view` it; not given: there is one row. Throws invalid_argument for
  /// another type, invalid_input for another shape than the role of `spec` has for that many samples.
  Mixture(const TensorSpec& spec, const ConstTensorView& view, std::int64_t samples, const Queue& queue);

  /// A table, f32 or f64, must have (rows, channels), or (channels) where there is one row. Throws invalid_argument for
  /// its type, invalid_input for its shape and for labels that it has no row for.
  void expect_table(const ConstTensorView& table, std::int64_t channels, const Queue& queue, const char* name) const;

  /// Adds what every sample takes of a table to `values` (samples, channels); `otherwise` stands for a table that is
  /// not given.
  void add_rows(const ConstTensorView& table, double otherwise, std::vector<double>& values) const;
  /// The gradient of a table from those of what samples took, (samples, channels): row k takes a_nk times sample n's,
  /// in the order of the samples.
  void add_up(const std::vector<double>& gradients, const TensorView& table) const;

 private:
  /// f(row, how much) for the rows that sample n takes.
  template <class F>
  void for_rows(std::int64_t n, const F& f) const;

  const char* name_;  // of the tensor
  std::int64_t samples_;
  std::vector<std::int64_t> labels_{};  // (samples)
  std::vector<double> weights_{};       // (samples, width)
  std::int64_t width_ = 1;
  bool labelled_ = false, weighted_ = false;
};

}  // namespace allnorm
