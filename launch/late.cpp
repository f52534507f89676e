#include "launch/late.hpp"

#include <cmath>

#include <nlohmann/json.hpp>

#include "launch/terminal.hpp"
#include "src/attributes.hpp"

namespace allnorm::launch {

namespace {

constexpr const char* words[] = {"waiting", "missing", "elsewhere"};

std::string place_of(const LateRank& rank) {
  return rank.layer + ", call " + std::to_string(rank.call) + ", " + rank.direction;
}

nlohmann::json json_of(const LateRank& rank) {
  nlohmann::json json{{"rank", rank.rank}, {"name", rank.name}, {"is", words[static_cast<int>(rank.is)]}};
  if (!rank.layer.empty()) {
    json["layer"] = rank.layer;
    json["call"] = rank.call;
    json["direction"] = rank.direction;
  }
  if (rank.is != LateRank::Is::waiting) return json;
  json["seconds"] = rank.seconds;
  json["host"] = rank.host;
  json["pid"] = rank.pid;
  return json;
}

}  // namespace

std::string paragraph_of(const LateReport& late) {
  std::string text;
  for (const LateRank& rank : late.ranks) {
    text += (text.empty() ? "" : "; ") + rank.name;
    if (rank.is == LateRank::Is::waiting)
      text += " (pid " + std::to_string(rank.pid) + " on " + rank.host + ") has waited " +
              attributes::text_of(std::round(rank.seconds * 100) / 100) + " s at " + place_of(rank);
    else if (rank.layer.empty())
      text += " was not heard of";
    else
      text += " was last heard of at " + place_of(rank);
  }
  return text;
}

nlohmann::json json_of(const LateReport& late) {
  nlohmann::json json{{"line", late.line}, {"ranks", nlohmann::json::array()}};
  for (const LateRank& rank : late.ranks) json["ranks"].push_back(json_of(rank));
  return json;
}

void tell_late(const LateReport& late) noexcept {
  try {
    if (late.speaks && !late.ranks.empty()) print_line_at_once("report: " + paragraph_of(late));
  } catch (...) {  // no memory to say so
  }
}

}  // namespace allnorm::launch
