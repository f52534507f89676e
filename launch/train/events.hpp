// The events of a training: what is logged, reported and kept in checkpoints. Rank 0 has them.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "launch/report/events.hpp"
#include "launch/train/settings.hpp"
#include "launch/train/trainer.hpp"

namespace allnorm::launch::train {

/// Where a training stands: `job` (of jobs_of(), or their number after the last), its next epoch, and how many updates
/// of that are done.
struct Position {
  std::size_t job = 0;
  std::int64_t epoch = 0, update = 0;

  bool begins_a_run() const noexcept { return epoch == 0 && update == 0; }
};

/// 16 hexadecimal digits.
std::string hex(std::uint64_t word);

/// Everything needed to repeat the run. Runs with equal `settings` members give equal numbers.
Json config_event(const Settings& settings, const DataSet& data, const Rank& rank);

/// What the events of an epoch (counted from 0) say of it: norm, batch, split, seed, epoch (from 1).
Json about_run(const Settings& settings, const Job& job, std::int64_t epoch);

/// The epoch's event and one `statistics` event per layer that has running statistics.
Events epoch_events(const Settings& settings, const Job& job, std::int64_t epoch, const Epoch& outcome);

/// An error that ends the training, as this rank knows it.
Json error_event(const std::exception& error, const Rank& rank);

/// A training that was stopped in the middle of an epoch.
Json stopped_event(const Settings& settings, const Job& job, const Position& here);

/// The result of a norm at a batch size over all its seeds, from the events of their epochs.
Json result_event(const Settings& settings, const Job& last, const Events& events);

/// The table at the end, of all `result` events.
std::string table_of(const Events& events);

}  // namespace allnorm::launch::train
