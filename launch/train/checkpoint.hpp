// Checkpoints of `allnorm train`: one file with the state of all ranks, written whole or not at all.
#pragma once

#include <cstdint>
#include <string>

#include "launch/files/safetensors.hpp"
#include "launch/train/events.hpp"

namespace allnorm::launch::train {

/// Where a training stands: `job` and its next epoch.
struct Position {
  std::size_t job = 0;
  std::int64_t epoch = 0;
};

/// Gathers every rank's state to rank 0, which writes it with all events so far. Collective. `trainer` is null between
/// two jobs.
void write_checkpoint(const std::string& path, const Events& events, const Position& position, Trainer* trainer,
                      Rank& rank);

/// A checkpoint as read by every rank.
class Checkpoint {
 public:
  /// Throws invalid_input for an unreadable file, one that is no checkpoint, or one of a run with other settings than
  /// those of `config` (the first that differs is named).
  Checkpoint(const std::string& path, const Json& config);

  const Position& position() const noexcept { return position_; }
  const Events& events() const noexcept { return events_; }
  /// Puts this rank's state into a trainer of the job at position(), if its first epoch is behind it.
  void restore(Trainer& trainer, int rank) const;

 private:
  TensorFile file_;
  Position position_;
  Events events_;
};

}  // namespace allnorm::launch::train
