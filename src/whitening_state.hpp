// Running statistics of layers that whiten, on the host, where their matrices are made.
#pragma once

#include <cstdint>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/communicator.hpp"
#include "allnorm/state.hpp"

namespace allnorm {

/// (C) running means and (C / g, g, g) running whitening matrices, and the counters of kernels/layer_state.hpp that
/// mean something here.
class WhiteningState {
 public:
  /// Means 0 and identities.
  WhiteningState(std::int64_t channels, std::int64_t width);

  const std::vector<double>& mean() const noexcept { return mean_; }
  const std::vector<double>& whitening() const noexcept { return whitening_; }
  std::int64_t calls() const noexcept { return calls_; }
  /// Of what all ranks of a group must have alike.
  std::uint64_t hash() const noexcept;

  /// A training call with `count` values per channel whitened with this mean, and with matrices (C, g) times the power
  /// of their group. A group that is not finite keeps what it had.
  void move(const NormOptions& options, double count, const std::vector<double>& mean,
            const std::vector<double>& matrix, const std::vector<double>& power);

  /// By the names of the row's tensors. Throws invalid_argument for what the row does not have, invalid_input for
  /// another shape and for values that are not finite.
  State named() const;
  void take_named(const Row& row, const State& given);
  /// Whole. Loading throws invalid_input before it changes anything; the number of calls stays.
  State saved(const Layer& layer, const Communicator& group) const;
  void load(const Row& row, const State& state);

 private:
  Shape of_channels() const;
  Shape of_pairs() const;

  std::int64_t width_;
  std::vector<double> mean_, whitening_;
  std::int64_t calls_ = 0, counted_ = 0, tracked_ = 0;
};

}  // namespace allnorm
