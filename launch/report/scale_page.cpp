// The sections that show a sweep: speed-up and exchange as they were measured, and what was simulated.
#include <algorithm>
#include <map>
#include <set>

#include "launch/files/json_lines.hpp"
#include "launch/report/page.hpp"

namespace allnorm::launch::pages {

namespace {

std::vector<const Json*> events_of(const Log& log, std::string_view kind) {
  std::vector<const Json*> events;
  for (const Json& event : log.events)
    if (is_event(event, kind)) events.push_back(&event);
  return events;
}

// What a line of points is of; the shape of strong scaling is another on each number of ranks.
std::string subject_of(const Json& event) {
  const bool by_shape = !event.contains("model") && event.value("scaling", "") == "weak";
  return word(event, "layer") + (by_shape ? " " + word(event, "shape") : "") +
         (event.contains("batch_per_rank") ? ", batch " + word(event, "batch_per_rank") : "") + ", " +
         word(event, "transport");
}

struct NumberColumn {
  const char *name, *title;
  int digits;
};
std::string table_of(const std::vector<const Json*>& events, const std::vector<NumberColumn>& columns,
                     const std::vector<const char*>& words) {
  Cells head(words.begin(), words.end());
  for (const NumberColumn& column : columns) head.push_back(column.title);
  std::vector<Cells> rows;
  for (const Json* event : events) {
    Cells& row = rows.emplace_back();
    for (const char* name : words) row.push_back(escaped(word(*event, name)));
    for (const NumberColumn& column : columns)
      row.push_back(number_text(event->value(column.name, Json()), column.digits));
  }
  return html_table(head, rows);
}

// A series for each subject, in the order of their first points.
template <class Name, class Y>
std::vector<Series> series_of(const std::vector<const Json*>& events, const Name& name, const Y& y) {
  std::vector<Series> series;
  for (const Json* event : events) {
    const std::string own = name(*event);
    auto at = std::find_if(series.begin(), series.end(), [&](const Series& one) { return one.name == own; });
    if (at == series.end()) at = series.insert(series.end(), Series{own, {}, series.size(), series.size() >= 7});
    at->points.push_back(y(*event));
  }
  return series;
}

std::string measured_sections(const Log& log) {
  const auto points = events_of(log, "scaling");
  if (points.empty()) return {};
  const auto efficiency = series_of(points, subject_of, [](const Json& event) {
    const double low = event.value("efficiency_low", 0.0), high = event.value("efficiency_high", 0.0);
    return Point{event.value("ranks", 0.0), event.value("efficiency", 0.0), (high - low) / 2};
  });
  const auto speedup = series_of(points, subject_of, [](const Json& event) {
    return Point{event.value("ranks", 0.0), event.value("speedup", 0.0)};
  });
  const std::string kind = word(*points.front(), "scaling");
  std::string body =
      section("Measured: " + kind + " scaling",
              figure(lines_svg({"ranks"}, {"speed-up"}, speedup), "Against the fewest ranks.") +
                  figure(lines_svg({"ranks"}, {"efficiency"}, efficiency),
                         "Bars: half of the interval at 95 %. More ranks than CPUs take turns and prove nothing.") +
                  table_of(points,
                           {{"ranks", "ranks", 0},
                            {"time_us", "forward + backward, µs", 1},
                            {"speedup", "speed-up", 2},
                            {"efficiency", "efficiency", 3},
                            {"efficiency_low", "from", 3},
                            {"efficiency_high", "to", 3},
                            {"exchange_us", "exchange, µs", 1},
                            {"fit_us", "fitted, µs", 1},
                            {"exposed_us", "exposed, µs", 1},
                            {"effective_batch", "effective batch", 1}},
                           {"layer", "shape", "batch_per_rank", "transport", "oversubscribed"}));
  const auto fits = events_of(log, "fit");
  if (!fits.empty())
    body +=
        section("The exchange as latency and bandwidth", table_of(fits,
                                                                  {{"ranks", "ranks", 0},
                                                                   {"group", "of a group", 0},
                                                                   {"latency_us", "latency of both directions, µs", 1},
                                                                   {"gb_s", "GB/s", 2},
                                                                   {"residual", "residual, relative", 2},
                                                                   {"points", "times", 0}},
                                                                  {"transport"}));
  return body;
}

std::string group_text(const Json& event) {
  return event.value("group", 0.0) >= event.value("ranks", 0.0) ? "world" : "groups of " + word(event, "group");
}

std::string simulated_sections(const Log& log) {
  std::vector<const Json*> rows;
  for (const Json* row : events_of(log, "measurement"))
    if (row->value("simulated", false)) rows.push_back(row);
  if (rows.empty()) return {};
  std::string body;
  std::set<std::string> clusters;
  for (const Json* row : rows) clusters.insert(word(*row, "cluster"));
  const std::string batch = word(*rows.front(), "batch_per_rank");
  for (const std::string& cluster : clusters) {
    std::vector<const Json*> own, lines;  // lines: of the plots
    for (const Json* row : rows)
      if (word(*row, "cluster") == cluster) own.push_back(row);
    const auto first =
        std::find_if(own.begin(), own.end(), [](const Json* row) { return row->value("group", 0.0) > 1; });
    for (const Json* row : own)
      if (first != own.end() && word(*row, "base") == word(**first, "base") && row->value("group", 0.0) > 1 &&
          word(*row, "batch_per_rank") == batch)
        lines.push_back(row);
    const auto exposed = series_of(lines, group_text, [](const Json& row) {
      return Point{row.value("ranks", 0.0), row.value("exposed_us", 0.0)};
    });
    const auto rate = series_of(lines, group_text, [](const Json& row) {
      return Point{row.value("ranks", 0.0), row.value("effective_batch", 0.0) / row.value("time_us", 1.0)};
    });
    const std::string of =
        lines.empty() ? "" : escaped(word(*lines.front(), "base")) + ", " + batch + " a rank; simulated.";
    body += section("Simulated: " + escaped(cluster),
                    figure(lines_svg({"ranks", true}, {"exposed, µs a step", true}, exposed), of) +
                        figure(lines_svg({"ranks", true}, {"effective batch per µs", true}, rate), of) +
                        table_of(own,
                                 {{"ranks", "ranks", 0},
                                  {"group", "of a group", 0},
                                  {"batch_per_rank", "batch", 0},
                                  {"compute_us", "compute, µs", 0},
                                  {"exchange_us", "exchange, µs", 1},
                                  {"exposed_us", "exposed, µs", 1},
                                  {"time_us", "step, µs", 0},
                                  {"effective_batch", "effective batch", 1}},
                                 {"layer"}));
  }
  const auto checks = events_of(log, "calibration");
  if (!checks.empty())
    body += section("The simulation against this machine", table_of(checks,
                                                                    {{"ranks", "ranks", 0},
                                                                     {"message_bytes", "message, bytes", 0},
                                                                     {"measured_us", "measured, µs", 1},
                                                                     {"simulated_us", "simulated, µs", 1},
                                                                     {"error", "error, relative", 2}},
                                                                    {"transport", "calibrated", "oversubscribed"}));
  return body;
}

}  // namespace

std::string scale_sections(const Log& log) {
  const Json& config = log.events.front();
  std::string body = "<p class=\"note\">allnorm " + escaped(word(config, "version")) + " (commit " +
                     escaped(word(config, "commit")) + ") · " + escaped(word(config, "cpu")) + ", " +
                     escaped(word(config, "cores")) + " cores</p>\n";
  for (const Json* answer : events_of(log, "answer")) body += "<p><b>" + escaped(word(*answer, "text")) + "</b></p>\n";
  const std::string sections = measured_sections(log) + simulated_sections(log);
  return body + (sections.empty() ? "<p class=\"note\">It has no result.</p>" : sections);
}

}  // namespace allnorm::launch::pages
