// What a checkpoint says besides its tensors, checked field by field before any of it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "launch/train/events.hpp"
#include "launch/train/settings.hpp"

namespace allnorm::launch::train {

// What reads throws invalid_input: one line with the file `path`, the field, what it is and what it must be.

/// "[job, epoch]", or in the middle of an epoch "[job, epoch, update]".
std::string text_of(const Position& position);
Position read_position(const std::string& path, const std::string& text, const Settings& settings);
/// What the updates of an epoch under way have added up to, as JSON.
std::string text_of(const Partial& partial);
Partial read_partial(const std::string& path, const std::string& text, const Position& position);
/// The events of a run up to `position`: its config with the settings of `config` (the first that differs is named),
/// then what every epoch before the position wrote, in order. Values that were not finite, and so are null in JSON, are
/// not a number again.
Events read_events(const std::string& path, const std::string& text, const Settings& settings, const Json& config,
                   const Position& position);

}  // namespace allnorm::launch::train
