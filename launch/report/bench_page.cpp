// The sections that show what bench has measured, one log or several beside each other.
#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <map>
#include <set>
#include <string_view>

#include "launch/files/json_lines.hpp"
#include "launch/report/page.hpp"

namespace allnorm::launch::pages {

namespace {

// A column of the table: a number of a measurement.
struct Column {
  const char *name, *title;
  int digits;  // behind the point; below 0: so many that count, for numbers of any size
  double scale = 1;
};
constexpr Column columns[] = {
    {"bytes", "size, KiB", 1, 1.0 / 1024},
    {"forward_us", "forward, µs", 1},
    {"forward_us_p99", "p99, µs", 1},
    {"backward_us", "backward, µs", 1},
    {"backward_us_p99", "p99, µs", 1},
    {"forward_gb_s", "forward, GB/s", 1},
    {"backward_gb_s", "backward, GB/s", 1},
    {"triad_gb_s", "triad, GB/s", 1},
    {"exchange_us", "exchange, µs", 1},
    {"exposed_us", "exposed, µs", 1},
    {"message_bytes", "message, bytes", 0},
    {"busbw_gb_s", "busbw, GB/s", 3},
    {"ratio_to_local", "to local", 2},
    {"max_error", "largest error", -2},
    {"wrong", "wrong", 0},
};

std::string text_of(double value, int digits) {
  if (digits >= 0) return fixed(value, digits);
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.*g", -digits, value);
  return text.data();
}

std::vector<const Json*> lines_of(const Log& log) {
  std::vector<const Json*> lines;
  for (const Json& event : log.events)
    if (is_event(event, "measurement") || is_event(event, "sum")) lines.push_back(&event);
  return lines;
}

// Calls that cannot be captured in a graph have none.
bool has_times(const Json& line) { return !line.contains("failure"); }

// What a line is of.
constexpr const char* parts[] = {"layer",     "shape", "dtype",   "layout", "device",
                                 "transport", "ranks", "threads", "mode",   "rotate"};

// What tells the lines of a log apart: words that are the same on all are left out.
std::vector<std::string> names_of(const std::vector<const Json*>& lines) {
  std::vector<std::string> names(lines.size());
  for (const char* part : parts) {
    std::set<std::string> values;
    for (const Json* line : lines) values.insert(word(*line, part));
    const std::string_view unit = std::string_view(part) == "ranks"     ? " ranks"
                                  : std::string_view(part) == "threads" ? " threads"
                                                                        : "";
    if (values.size() < 2 && std::string_view(part) != "layer") continue;
    for (std::size_t i = 0; i < lines.size(); ++i)
      names[i] += (names[i].empty() ? "" : " ") + word(*lines[i], part) + std::string(unit);
  }
  for (std::size_t i = 0; i < lines.size(); ++i)
    if (is_event(*lines[i], "sum")) names[i] += ", sum of " + word(*lines[i], "count") + " layers";
  return names;
}

std::string machine_of(const Log& log) {
  const Json& config = log.events.front();
  std::string text = "allnorm " + word(config, "version") + " (commit " + word(config, "commit") + ") · " +
                     word(config, "cpu") + ", " + word(config, "cores") + " cores · " + word(config, "device") + " · " +
                     word(config, "transport") + " · ranks: " + word(config, "ranks") + " · " + word(config, "dtype") +
                     ", " + word(config, "layout") + " · iterations: " + word(config, "iterations");
  if (config.contains("model")) text += " · model: " + word(config, "model");
  return escaped(text);
}

std::string times_of(const std::vector<const Json*>& lines) {
  std::vector<Series> series{{"forward", {}, 0}, {"backward", {}, 1}};
  std::vector<std::string> names;
  const auto all = names_of(lines);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (is_event(*lines[i], "sum") || !has_times(*lines[i])) continue;  // a sum's bar would hide the others
    names.push_back(all[i]);
    series[0].points.push_back({0, lines[i]->value("forward_us", 0.0)});
    series[1].points.push_back({0, lines[i]->value("backward_us", 0.0)});
  }
  return figure(bars_svg("µs", names, series), "Medians of a rank's calls, those of the slowest rank.");
}

std::string table_of(const std::vector<const Json*>& lines) {
  Cells head{"line"};
  std::vector<const Column*> shown;
  for (const Column& column : columns)
    if (std::any_of(lines.begin(), lines.end(), [&](const Json* line) { return line->contains(column.name); })) {
      shown.push_back(&column);
      head.push_back(column.title);
    }
  const auto names = names_of(lines);
  std::vector<Cells> rows;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    Cells& row = rows.emplace_back(Cells{escaped(names[i])});
    for (const Column* column : shown) {
      const Json value = lines[i]->value(column->name, Json());
      row.push_back(value.is_number() ? text_of(column->scale * value.get<double>(), column->digits) : "–");
    }
  }
  return html_table(head, rows);
}

// Lines that both have: the second's times over the first's.
std::string comparison_of(const Log& base, const Log& log) {
  const auto key = [](const Json& line) {
    std::string text = word(line, "count");  // of a sum
    for (const char* part : parts) text += " " + word(line, part);
    return text;
  };
  std::map<std::string, const Json*> earlier;
  for (const Json* line : lines_of(base))
    if (has_times(*line)) earlier[key(*line)] = line;
  std::vector<const Json*> common;
  for (const Json* line : lines_of(log))
    if (has_times(*line) && earlier.count(key(*line)) > 0) common.push_back(line);
  const auto names = names_of(common);
  std::vector<Cells> rows;
  for (std::size_t i = 0; i < common.size(); ++i) {
    const Json& was = *earlier.at(key(*common[i]));
    Cells& row = rows.emplace_back(Cells{escaped(names[i])});
    for (const char* time : {"forward_us", "backward_us"}) {
      const double before = was.value(time, 0.0), now = common[i]->value(time, 0.0);
      row.push_back(fixed(before, 1));
      row.push_back(fixed(now, 1));
      const std::string ratio = before > 0 ? fixed(now / before, 2) : "–";
      row.push_back(now > 1.25 * before ? "<span class=\"slower\">" + ratio + "</span>" : ratio);
    }
  }
  if (rows.empty()) return "<p class=\"note\">The files have no line in common.</p>\n";
  return html_table({"line", "forward before, µs", "now, µs", "ratio", "backward before, µs", "now, µs", "ratio"},
                    rows) +
         "<p class=\"note\">Marked: more than a quarter slower.</p>\n";
}

}  // namespace

std::string bench_sections(const std::vector<const Log*>& logs) {
  std::string body;
  for (std::size_t i = 1; i < logs.size(); ++i)
    body += section(escaped(logs[i]->name) + " against " + escaped(logs[0]->name), comparison_of(*logs[0], *logs[i]));
  for (const Log* log : logs) {
    const auto lines = lines_of(*log);
    body += section(escaped(log->name), "<p class=\"note\">" + machine_of(*log) + "</p>\n" +
                                            (lines.empty() ? "<p class=\"note\">It has no measurement.</p>"
                                                           : times_of(lines) + table_of(lines)));
  }
  return body;
}

}  // namespace allnorm::launch::pages
