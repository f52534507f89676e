// What bench found, as a table, as JSON lines and as CSV; and against an earlier run.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "launch/bench/measure.hpp"

namespace allnorm::launch::bench {

using Json = nlohmann::ordered_json;

/// Where a rank is.
struct Seat {
  std::string host{}, device{}, gpu{};  ///< gpu: its name
  std::int64_t pid = 0;
};
/// [rank] Collective.
std::vector<Seat> seats_of(Rank& rank);

/// Build and machine: what the first event of a command's log begins with.
Json machine_event(const char* command);
/// ... and ranks: the first event.
Json config_event(const Plan& plan, const std::vector<Seat>& seats, const Rank& rank);
Json measurement_event(const Plan& plan, const Measurement& of, const Rank& rank);
/// A model's layers of one kind and mode together; `events`: all of them.
Json sum_event(const Plan& plan, const std::string& layer, const std::string& mode, const std::vector<Json>& events);

/// "# ..." lines, as nccl-tests has them.
std::string header_text(const Json& config);
/// The titles and units, and the line of an event. Both end with a newline.
std::string titles_text(const Plan& plan, int ranks);
std::string line_text(const Plan& plan, const Json& event);
std::string csv_text(const std::vector<Json>& events);

/// What an earlier run's events say of these.
struct Comparison {
  std::vector<std::string> warnings{}, slower{};
  std::size_t common = 0;  ///< lines
};
/// `base` was read from `path`. Throws invalid_input where a line of it is not a measurement.
Comparison compare(const std::vector<Json>& base, const std::vector<Json>& events, double tolerance,
                   const std::string& path);

}  // namespace allnorm::launch::bench
