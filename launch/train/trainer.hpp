// One training: a normalization, a batch size and a seed, data-parallel over the ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "launch/nonfinite.hpp"
#include "launch/ranks.hpp"
#include "launch/train/network.hpp"
#include "launch/train/settings.hpp"
#include "launch/train/signals.hpp"
#include "launch/train/statistics.hpp"

namespace allnorm::launch::train {

/// The same on every rank, but for `seconds` and `layers`.
struct Epoch {
  double loss = 0;        ///< mean cross entropy of the training images, each seen with the weights of its update
  double test_error = 0;  ///< percent, with running statistics
  std::optional<double> own_error;  ///< percent, with every image's own statistics; last epoch of the batch_norm family
  double seconds = 0;               ///< the whole epoch on this rank
  double exchanges = 0, bytes = 0;  ///< per update, sent by this rank
  std::vector<LayerStatistics> layers;
};

/// Where an epoch under way stands: what its updates so far have added up to. The same on every rank, but for what
/// Epoch has for a rank alone.
struct Partial {
  std::int64_t updates = 0;
  double loss = 0;  ///< their share of the epoch's mean
  double seconds = 0, exchanges = 0, bytes = 0;
  PastAverage past{};
};

/// Called after every update with what the ranks wish together; true: the epoch stops there.
using Tick = std::function<bool(const Wishes&)>;

class Trainer {
 public:
  /// Borrows everything. Throws invalid_argument where the images do not make one update. Collective.
  Trainer(const Settings& settings, const Job& job, const DataSet& data, Rank& rank, Wishing* wishing = nullptr);

  std::int64_t updates_per_epoch() const noexcept { return images_.updates(); }
  std::int64_t train_images() const noexcept { return images_.train_count(); }
  std::int64_t test_images() const noexcept { return images_.test_count(); }

  /// Trains one epoch, or what is left of it, averages the running statistics and tests; nothing where it was stopped,
  /// which partial() then tells. Collective.
  std::optional<Epoch> run(std::int64_t epoch, const Tick& tick);

  /// Everything that the next epoch depends on, besides the settings.
  Network& network() noexcept { return *network_; }
  std::vector<float>& velocity() noexcept { return velocity_; }
  Partial& partial() noexcept { return partial_; }

 private:
  void begin(std::int64_t epoch);
  bool make_updates(std::int64_t epoch, const Tick& tick);
  double update(std::int64_t index, std::int64_t step);
  void average_gradients(double& loss);
  void descend(double rate);
  void average_running_statistics();
  double rate_at(std::int64_t step) const noexcept;
  double share_of_errors(bool own_statistics);
  Communicator::Traffic traffic() const;

  const Settings& settings_;
  Job job_;
  Rank& rank_;
  Images images_;
  std::int64_t calls_;    // per update
  std::int64_t updates_;  // of the whole training
  Layers layers_;
  std::shared_ptr<Communicator> group_;
  std::unique_ptr<Network> network_;
  std::vector<float> velocity_;            // like Network::parameters()
  std::vector<float> pixels_;              // (batch, C, H, W)
  std::vector<std::int64_t> labels_;       // (batch)
  std::vector<float> test_pixels_;         // (this rank's share, C, H, W)
  std::vector<std::int64_t> test_labels_;  // (this rank's share)
  std::uint64_t exchanges_ = 0;            // the trainer's own, for their headers
  Wishing* wishing_;
  Wishes wishes_;  // of all ranks, at the last update
  Partial partial_;
  NonFiniteTeller teller_;
};

}  // namespace allnorm::launch::train
