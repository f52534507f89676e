// Checkpoints of `allnorm train`: one file with the state of all ranks, written whole or not at all.
#pragma once

#include <cstdint>
#include <string>

#include "launch/files/safetensors.hpp"
#include "launch/train/checkpoint_events.hpp"

namespace allnorm::launch::train {

/// Gathers every rank's state to rank 0, which writes it with all events so far: what the epoch at `position` starts
/// from, or goes on from, and where that is the first of a run, the events alone. Collective. A state with values that
/// are not finite is not written, and an older file stays: returns what is wrong, on rank 0; otherwise empty.
std::string write_checkpoint(const std::string& path, const Events& events, const Position& position, Trainer& trainer,
                             Rank& rank);

/// A checkpoint as read by every rank. Whatever its file says is checked before it is used: what is wrong is
/// invalid_input, which names the file and the field.
class Checkpoint {
 public:
  /// Throws for an unreadable file, one that is no checkpoint, or one of a run with other settings than those of
  /// `config` (the first that differs is named).
  Checkpoint(const std::string& path, const Settings& settings, const Json& config);

  const Position& position() const noexcept { return position_; }
  const Events& events() const noexcept { return events_; }
  /// Puts this rank's state into a trainer of the job at position(), if its first epoch is behind it.
  void restore(Trainer& trainer, const Rank& rank) const;
  /// Of everything in the file, to tell whether two ranks read the same.
  std::uint64_t digest() const;

 private:
  State state_of(const std::string& prefix, std::size_t& known) const;

  TensorFile file_;
  Position position_;
  Partial partial_;
  Events events_;
};

}  // namespace allnorm::launch::train
