// Running statistics as averages over several batches, in place of moving ones.
#pragma once

#include <cstdint>
#include <vector>

#include "allnorm/operation.hpp"

namespace allnorm {

/// What inference normalizes with, from some batches of the finished network (Luo et al. 2019 evaluate Switchable
/// Normalization so: "batch average"):
///
///   BatchAverage average;
///   for (const auto& batch : batches) average.add(*operation.forward(batch, output, queue), queue);  // in training
///   average.set(operation, queue);
///   operation.set_training(false);
///
/// Parameters stay as they are meanwhile; what the calls did to the running statistics is replaced. For layers with
/// running_mean and running_var whose calls have the statistics "mean" and "var", one value per channel: those of the
/// batch, over the ranks of the group, so that all ranks set the same.
class BatchAverage {
 public:
  /// Adds a training call's: every one counts the same. Throws invalid_argument for a call without such statistics, and
  /// for another number of channels than the ones before.
  void add(const SavedCall& call, Queue& queue);
  /// running_mean = E[mean], running_var = E[var + mean^2] - E[mean]^2. Throws invalid_argument where nothing was
  /// added, and what Operation::set_state throws.
  void set(Operation& operation, Queue& queue) const;

 private:
  std::int64_t calls_ = 0;
  std::vector<double> mean_{}, var_{};  // (C)
};

}  // namespace allnorm
