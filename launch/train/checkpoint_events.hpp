// What a checkpoint says besides its tensors, checked field by field before any of it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "launch/train/events.hpp"
#include "launch/train/settings.hpp"

namespace allnorm::launch::train {

/// Where a training stands: `job` (of jobs_of(), or their number after the last) and its next epoch.
struct Position {
  std::size_t job = 0;
  std::int64_t epoch = 0;
};

// Both throw invalid_input: one line with the file `path`, the field, what it is and what it must be.

/// "[job, epoch]".
Position read_position(const std::string& path, const std::string& text, const Settings& settings);
/// The events of a run up to `position`: its config with the settings of `config` (the first that differs is named),
/// then what every epoch before the position wrote, in order. Values that were not finite, and so are null in JSON, are
/// not a number again.
Events read_events(const std::string& path, const std::string& text, const Settings& settings, const Json& config,
                   const Position& position);

}  // namespace allnorm::launch::train
