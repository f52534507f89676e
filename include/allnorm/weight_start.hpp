// Where training with normalized weights begins.
#pragma once

#include <memory>
#include <vector>

#include "allnorm/communicator.hpp"
#include "allnorm/device.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

/// Lengths of the rows of a weight, and biases, with which the pre-activations of a first batch have mean 0 and
/// variance 1 in every channel (Salimans and Kingma 2016, arXiv:1602.07868, section 3).
struct WeightStart {
  std::vector<double> g;     ///< (C): 1 / std[t]
  std::vector<double> bias;  ///< (C): -mean[t] / std[t]
};

/// `t`: the pre-activations (N, C, space...) of that batch with rows of length 1 and no bias, in memory of the queue's
/// device. `group`: the ranks that hold parts of the batch, which all call; null: this rank alone. `eps` is added to
/// the variances. Throws invalid_input for a channel whose values are all the same, where eps is 0, or not all finite.
/// Waits for the queue.
WeightStart weight_start(const ConstTensorView& t, std::shared_ptr<Communicator> group, Queue& queue, double eps = 0);

}  // namespace allnorm
