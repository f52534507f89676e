// The network of the experiment: five convolutions with normalization and ReLU, average pooling and a linear layer. The
// only header here between libtorch and the rest.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "allnorm/norm.hpp"
#include "allnorm/operation.hpp"
#include "launch/train/images.hpp"
#include "launch/train/norm_choice.hpp"

namespace allnorm::launch {
class RankWatch;
}

namespace allnorm::launch::train {

/// How far past statistics are from the truth, the statistics that the past batch has under the present weights. Of the
/// mean in standard deviations, of the variance as a share of it; averages over channels.
struct PastDistance {
  double stale_mean = 0, mean = 0, stale_var = 0, var = 0;  // as stored; as compensated
};
/// [layer][lag - 1].
using PastDistances = std::vector<std::vector<PastDistance>>;

class Network {
 public:
  /// `layers` are those of every convolution; ReLU, normalized_shape and geometry of the norm are filled in. Weights
  /// depend on `seed` alone. `group`: the ranks that share statistics. Borrows the queue.
  Network(const ImageShape& input, int classes, const Layers& layers, std::uint64_t seed,
          const std::shared_ptr<Communicator>& group, Queue& queue);
  ~Network();

  /// All parameters, one behind another, each at a multiple of 16 with zeros between.
  std::span<float> parameters() noexcept;
  /// Their gradients, in the same places.
  std::span<float> gradients() noexcept;
  struct Range {
    std::size_t begin, end;
  };
  /// Where weight decay applies: the weights of convolutions and of the linear layer.
  const std::vector<Range>& decayed() const noexcept;
  /// Parameters, padding not counted.
  std::int64_t parameter_count() const noexcept;

  /// One forward and backward call in training mode: adds the gradient of `scale` * the sum of cross entropies to
  /// gradients() and returns that sum, unscaled. pixels (batch, C, H, W), labels (batch). With `distances` also
  /// measures the past statistics of layers with a window (the group's ranks must all do so).
  double learn(float* pixels, const std::int64_t* labels, std::int64_t batch, double scale,
               PastDistances* distances = nullptr);
  /// Where nothing divides by a deviation but the weights' lengths: sets these, and biases, so that each convolution's
  /// output has mean 0 and variance 1 over this batch of all ranks of `world`, one convolution after another.
  void start(float* pixels, std::int64_t batch, const std::shared_ptr<Communicator>& world);
  /// Drops the past images that measurements need, so that an epoch measures the same after a resume.
  void forget();
  /// These images, with what their calls normalized with; none without a window. Putting them back throws
  /// invalid_input for any other arrays than such a network's.
  State past() const;
  void set_past(const State& past);
  /// How many of the images are put into a wrong class, in evaluation mode.
  std::int64_t count_errors(float* pixels, const std::int64_t* labels, std::int64_t batch);
  /// The same with the statistics of every image itself in place of the running ones; of the batch_norm family.
  std::int64_t count_errors_by_own_statistics(float* pixels, const std::int64_t* labels, std::int64_t batch);

  /// Tells all calls of the layers there.
  void watch_calls(RankWatch& watch);

  std::size_t layers() const noexcept;
  /// The operation behind that convolution; null where there is none.
  Operation* operation(std::size_t layer) noexcept;
  /// The same as a layer with mean and variance; null where it is none.
  Norm* norm(std::size_t layer) noexcept;
  /// The queue that the layers' calls go to.
  Queue& queue() noexcept;
  /// The statistics that the layer normalized with in the last learn().
  const SavedCall& last_call(std::size_t layer) const noexcept;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// libtorch computes in the calling thread alone from here on: ranks are threads, and sums keep one order.
void use_one_thread();

}  // namespace allnorm::launch::train
