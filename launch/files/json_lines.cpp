#include "launch/files/json_lines.hpp"

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "launch/files/input_file.hpp"

namespace allnorm::launch {

std::vector<nlohmann::ordered_json> read_json_lines(const std::string& path) {
  using Json = nlohmann::ordered_json;
  constexpr std::uint64_t most_bytes = 1 << 30;
  const auto bytes = read_file(path, most_bytes);
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::vector<Json> events;
  for (int number = 1; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.empty()) continue;
    Json event = Json::parse(line, nullptr, false);
    if (!event.is_object() || !event.contains("event") || !event["event"].is_string())
      bad_file(path, "has in line " + std::to_string(number) + " " + printable(line) +
                         ", must have a JSON object with \"event\" in every line");
    events.push_back(std::move(event));
  }
  if (events.empty() || !is_event(events.front(), "config"))
    bad_file(path, "is no log of train, bench or scale, must begin with the event \"config\"");
  return events;
}

}  // namespace allnorm::launch
