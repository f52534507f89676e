// The exchange on clusters that are not here: SimGrid runs it, measured computing times stand beside it.
#pragma once

#include "launch/scale/sweep_file.hpp"

namespace allnorm::launch::scale {

/// What a layer sends on `channels` channels in a group: of each direction exchanges, and doubles in each message.
struct Messages {
  std::int64_t exchanges = 0, doubles = 0;
};
struct LayerMessages {
  Messages forward{}, backward{};
};
/// As the layer itself sends them: found by calls on a few channels, of which their lengths are a linear function.
LayerMessages messages_of(const Layer& layer, std::int64_t channels);

/// Makes all rows that the file lacks: the computing times and the calibration measured on this machine, then each
/// cluster and number of ranks. Returns the events that follow from these, of the model against this machine.
std::vector<Json> simulate(const Plan& plan, SweepFile& file);
/// A table of the simulated rows, and of how the simulation compares with this machine.
std::string simulated_text(const std::vector<Json>& events, const std::vector<Json>& calibration);

}  // namespace allnorm::launch::scale
