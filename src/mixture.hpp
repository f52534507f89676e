// Which rows of tables of parameters the samples of a call take.
#pragma once

#include <cstdint>

#include "allnorm/catalogue.hpp"
#include "allnorm/tensor.hpp"
#include "kernels/mixture.hpp"

namespace allnorm {

/// Sample n takes sum over k of a_nk * row k: the row of its label, all rows by its weights, or the only one. It
/// borrows what says so.
class Mixture {
 public:
  /// `spec`: the tensor that says which rows, and `view` it; not given: there is one row. Throws invalid_argument for
  /// another type, invalid_input for another shape than the role of `spec` has for that many samples, and on a CPU for
  /// labels below 0.
  Mixture(const TensorSpec& spec, const ConstTensorView& view, std::int64_t samples, const Queue& queue);

  /// A table, f32 or f64, must have (rows, channels), or (channels) where there is one row. Throws invalid_argument for
  /// its type, invalid_input for its shape and, on a CPU, for labels that it has no row for.
  void expect_table(const ConstTensorView& table, std::int64_t channels, const Queue& queue, const char* name) const;

  /// What every sample takes of a table, and `delta` (samples, channels) more, to `values` (samples, channels);
  /// `otherwise` stands for a table that is not given. `report`: where kernels tell of labels that no row is there for.
  void take(const ConstTensorView& table, double otherwise, const ConstTensorView& delta, std::int64_t channels,
            double* values, ExchangeReport* report, Queue& queue) const;
  /// The gradient of a table from those of what samples took, (samples, channels): row k takes a_nk times sample n's,
  /// in the order of the samples.
  void add_up(const double* gradients, const TensorView& table, Queue& queue) const;

 private:
  const char* name_;  // of the tensor
  std::int64_t samples_;
  steps::Shares shares_{};
  bool labelled_ = false;
};

}  // namespace allnorm
