#include "launch/verify/report.hpp"

#include <algorithm>
#include <cstdio>
#include <ostream>
#include <utility>

#include <nlohmann/json.hpp>

#include "build_config.hpp"
#include "launch/help.hpp"

namespace allnorm::launch::verify {

namespace {

using Json = nlohmann::ordered_json;

constexpr double wrong = 1e6;  // units of rounding: what is beyond is no matter of its size
constexpr std::size_t name_width = 28;

std::string number(double error) {
  char text[32];
  std::snprintf(text, sizeof text, error < 1000 ? "%.2f" : "%.1e", error);
  return error < wrong ? text : "wrong";
}

// "cpu f32 channels_first threads: grad_input, value 17, step 2, rank 1, eps=0.1"
std::string text_of(const Place& place) {
  if (place.device.empty()) return place.reason;
  const std::string run = place.device + " " + place.dtype + " " + place.layout + " " + place.transport + ": ";
  const std::string attributes = place.attributes.empty() ? "" : ", " + place.attributes;
  if (!place.reason.empty()) return run + place.reason + attributes;
  return run + place.tensor + ", value " + std::to_string(place.value) + ", step " + std::to_string(place.step) +
         (place.transport == "self" ? "" : ", rank " + std::to_string(place.rank)) + attributes;
}

Json json_of(const Place& place) {
  Json made{{"error", place.error},   {"device", place.device}, {"transport", place.transport},
            {"dtype", place.dtype},   {"layout", place.layout}, {"attributes", place.attributes},
            {"tensor", place.tensor}, {"value", place.value},   {"step", place.step},
            {"rank", place.rank}};
  if (!place.reason.empty()) made["reason"] = place.reason;
  return made;
}

std::string padded(const std::string& text, std::size_t width) {
  return text + std::string(text.size() < width ? width - text.size() : 0, ' ');
}
std::string to_the_right(const std::string& text, std::size_t width) {
  return std::string(text.size() < width ? width - text.size() : 0, ' ') + text;
}

}  // namespace

Report::Report(const std::vector<const Row*>& rows, std::vector<NotRun> not_run) : not_run_(std::move(not_run)) {
  for (const Row* row : rows) outcomes_.push_back({row});
}

void Report::add(const std::vector<Outcome>& outcomes) {
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    Outcome& own = outcomes_[i];
    const Outcome& more = outcomes[i];
    if (own.runs == 0 || more.worst.error > own.worst.error) own.worst = more.worst;
    own.runs += more.runs;
    own.failed += more.failed;
    own.failures.insert(own.failures.end(), more.failures.begin(), more.failures.end());
  }
}

bool Report::holds() const {
  return std::all_of(outcomes_.begin(), outcomes_.end(),
                     [](const Outcome& one) { return one.failed == 0 && one.runs > 0; });
}

double Report::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Report::print(std::ostream& out) const {
  std::int64_t runs = 0, failed = 0, layers = 0;
  out << padded("layer", name_width) << "  runs  failed  largest error  where\n";
  for (const Outcome& one : outcomes_) {
    out << padded(std::string(one.row->name), name_width) << to_the_right(std::to_string(one.runs), 6)
        << to_the_right(std::to_string(one.failed), 8) << to_the_right(number(one.worst.error), 15) << "  "
        << text_of(one.worst) << "\n";
    runs += one.runs;
    failed += one.failed;
    layers += one.failed > 0 ? 1 : 0;
  }
  for (const Outcome& one : outcomes_)
    for (const Place& place : one.failures)
      out << "\n" << one.row->name << ": " << number(place.error) << ", must be at most 1: " << text_of(place);
  char took[32];
  std::snprintf(took, sizeof took, "%.1f s", seconds());
  out << "\n"
      << (failed == 0 ? "All of " + std::to_string(runs) + " runs hold"
                      : std::to_string(failed) + " of " + std::to_string(runs) + " runs fail, of " +
                            std::to_string(layers) + " layers")
      << " (" << took << "). Errors are in units of what rounding may do.\n";
  if (not_run_.empty()) return;
  out << "\nNot run here:\n";
  std::vector<HelpLine> lines;
  for (const NotRun& one : not_run_) lines.push_back({one.what, one.reason});
  print_lines(out, lines);
}

std::string Report::json() const {
  Json all{{"version", build::version}, {"commit", build::commit}, {"holds", holds()}, {"seconds", seconds()}};
  all["layers"] = Json::array();
  for (const Outcome& one : outcomes_) {
    Json& layer = all["layers"].emplace_back(
        Json{{"name", one.row->name}, {"runs", one.runs}, {"failed", one.failed}, {"largest", json_of(one.worst)}});
    layer["failures"] = Json::array();
    for (const Place& place : one.failures) layer["failures"].push_back(json_of(place));
  }
  all["not_run"] = Json::array();
  for (const NotRun& one : not_run_) all["not_run"].push_back({{"name", one.what}, {"reason", one.reason}});
  return all.dump(2) + "\n";
}

}  // namespace allnorm::launch::verify
