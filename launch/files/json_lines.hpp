// Files of JSON lines: what train, bench and scale write, one event each.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace allnorm::launch {

/// Whether the event is of that kind.
inline bool is_event(const nlohmann::ordered_json& event, std::string_view kind) {
  return event["event"].get_ref<const std::string&>() == kind;
}

/// Every line's object; each has a text "event", and the first is a "config". Throws invalid_input.
std::vector<nlohmann::ordered_json> read_json_lines(const std::string& path);

}  // namespace allnorm::launch
