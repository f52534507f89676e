#include "launch/scale/results.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <optional>
#include <tuple>

#include "launch/files/json_lines.hpp"
#include "launch/files/json_number.hpp"
#include "launch/scale/statistics.hpp"

namespace allnorm::launch::scale {

namespace {

std::string text_of(double value, int digits) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}
std::string text_of(const Json& value, int digits) {
  return value.is_number() ? text_of(value.get<double>(), digits) : "-";
}
std::string word(const Json& event, const char* name) {
  const Json value = event.value(name, Json());
  return value.is_null() ? "" : value.is_string() ? value.get<std::string>() : value.dump();
}

double time_of(const Json& row) { return row.at("forward_us").get<double>() + row.at("backward_us").get<double>(); }

// Ranks of a layer's group.
std::int64_t group_of(const Json& row) {
  const std::int64_t ranks = whole(row.at("ranks"));
  const Sync sync = parse_layer(row.at("layer").get<std::string>()).options.sync;
  return sync.ranks == Sync::none ? 1 : sync.ranks == Sync::world ? ranks : std::min(sync.ranks, ranks);
}

// Whose exchanges are of one kind.
using Kind = std::tuple<std::string, std::int64_t, std::int64_t>;  // transport, ranks, ranks of a group
Kind kind_of(const Json& row) {
  return {row.at("transport").get<std::string>(), whole(row.at("ranks")), group_of(row)};
}

std::map<Kind, LatencyBandwidth> fits_of(const std::vector<Json>& events, std::vector<Json>& made) {
  std::map<Kind, std::vector<Sample>> samples;
  for (const Json& row : events)
    if (is_event(row, "measurement") && row.value("exchange_us", 0.0) > 0)
      samples[kind_of(row)].push_back({row.at("message_bytes").get<double>(), row.at("exchange_us").get<double>()});
  std::map<Kind, LatencyBandwidth> fits;
  for (const auto& [kind, all] : samples) {
    const auto model = fit(all);
    if (!model) continue;
    const auto& [transport, ranks, group] = kind;
    fits[kind] = *model;
    made.push_back({{"event", "fit"},
                    {"transport", transport},
                    {"ranks", ranks},
                    {"group", group},
                    {"points", all.size()},
                    {"latency_us", model->latency_us},
                    {"gb_s", model->us_per_byte > 0 ? Json(1e-3 / model->us_per_byte) : Json()},
                    {"residual", model->residual},
                    {"simulated", false}});
  }
  return fits;
}

// One layer and shape, or model, on one number of ranks: its row of each repeat.
using Point = std::vector<const Json*>;
double mean_of(const Point& point, const char* name) {
  double sum = 0;
  for (const Json* row : point) sum += row->value(name, 0.0) / static_cast<double>(point.size());
  return sum;
}

Json scaling_event(const Plan& plan, const Point& base, const Point& point,
                   const std::map<Kind, LatencyBandwidth>& fits) {
  const Json& row = *point.front();
  const auto ranks = row.at("ranks").get<double>(), more = ranks / base.front()->at("ranks").get<double>();
  std::vector<double> times, efficiencies;
  for (std::size_t i = 0; i < std::min(point.size(), base.size()); ++i) {  // of one repeat
    times.push_back(time_of(*point[i]));
    efficiencies.push_back(time_of(*base[i]) / time_of(*point[i]) / (plan.strong ? more : 1));
  }
  const Interval efficiency = interval_of(efficiencies);
  Json event{{"event", "scaling"}, {"layer", row.at("layer")}, {"shape", row.at("shape")}};
  for (const char* name : {"model", "batch_per_rank", "transport", "ranks", "scaling", "oversubscribed"})
    if (row.contains(name)) event[name] = row[name];
  event["repeats"] = times.size();
  event["time_us"] = interval_of(times).mean;
  event["speedup"] = efficiency.mean * more;
  event["efficiency"] = efficiency.mean;
  if (efficiency.low) event["efficiency_low"] = *efficiency.low;
  if (efficiency.high) event["efficiency_high"] = *efficiency.high;
  if (const double exchange = mean_of(point, "exchange_us"); exchange > 0) {
    const double bytes = mean_of(point, "message_bytes");
    event["exchange_us"] = exchange;
    event["exposed_us"] = mean_of(point, "exposed_us");
    event["message_bytes"] = bytes;
    if (const auto model = fits.find(kind_of(row)); model != fits.end()) {
      const double layers = is_event(row, "sum") ? row.at("count").get<double>() : 1;
      event["fit_us"] = layers * model->second.latency_us + bytes * model->second.us_per_byte;
      event["fit_residual"] = 1 - event["fit_us"].get<double>() / exchange;
    }
  }
  event["effective_batch"] = row.at("effective_batch");
  event["simulated"] = false;
  return event;
}

}  // namespace

std::vector<Json> scaling_of(const Plan& plan, const std::vector<Json>& events) {
  std::vector<Json> made;
  const auto fits = fits_of(events, made);
  using Subject = std::tuple<std::int64_t, std::string, std::int64_t>;  // batch, transport, line of bench
  std::map<Subject, std::map<std::int64_t, Point>> subjects;            // [ranks]
  for (const Json& row : events)
    if (is_event(row, plan.model.empty() ? "measurement" : "sum") && row.contains("repeat"))
      subjects[{row.contains("batch_per_rank") ? whole(row.at("batch_per_rank")) : 1,
                row.at("transport").get<std::string>(), whole(row.at("line"))}][whole(row.at("ranks"))]
          .push_back(&row);
  for (auto& [subject, points] : subjects) {
    for (auto& [ranks, point] : points)
      std::sort(point.begin(), point.end(),
                [](const Json* a, const Json* b) { return (*a)["repeat"] < (*b)["repeat"]; });
    for (const std::int64_t ranks : plan.ranks)
      if (points.count(ranks) > 0 && points.count(plan.ranks.front()) > 0)
        made.push_back(scaling_event(plan, points[plan.ranks.front()], points[ranks], fits));
  }
  return made;
}

std::vector<Json> answer_of(const Plan& plan, const std::vector<Json>& rows) {
  if (plan.effective_batch == 0) return {};
  const std::string asked = std::to_string(plan.effective_batch);
  const Json* best = nullptr;
  double most = 0;
  for (const Json& row : rows) {
    if (!row.contains("effective_batch") || !row.contains("time_us")) continue;
    most = std::max(most, row["effective_batch"].get<double>());
    if (row["effective_batch"].get<double>() < static_cast<double>(plan.effective_batch)) continue;
    if (best == nullptr || row["time_us"].get<double>() < (*best)["time_us"].get<double>()) best = &row;
  }
  Json answer{{"event", "answer"}, {"effective_batch", plan.effective_batch}, {"simulated", plan.simulates()}};
  if (best == nullptr) {
    answer["text"] = "no row has statistics over " + asked + " samples: the most are " + text_of(most, 0);
    return {answer};
  }
  std::string where = word(*best, "ranks") + ((*best)["ranks"] == 1 ? " rank" : " ranks");
  if (best->contains("cluster"))
    where = word(*best, "cluster") + ", " + where;
  else if (best->contains("transport"))
    where = word(*best, "transport") + ", " + where;
  if (best->value("oversubscribed", false)) where += " (oversubscribed)";
  answer["row"] = *best;
  answer["text"] = std::string(plan.simulates() ? "simulated: " : "") + "with statistics over at least " + asked +
                   " samples the least time has " + word(*best, "layer") + " on " + where +
                   (best->contains("batch_per_rank") ? ", " + word(*best, "batch_per_rank") + " a rank" : "") + ": " +
                   text_of((*best)["time_us"], 1) + " us a step, over " + text_of((*best)["effective_batch"], 0) +
                   " samples";
  return {answer};
}

std::string header_text(const Json& config) {
  return "# allnorm " + word(config, "version") + " (commit " + word(config, "commit") + ", " +
         word(config, "compiler") + ", " + word(config, "build_type") + ")\n# " + word(config, "cpu") + ", " +
         word(config, "cores") + " cores, " + word(config, "vectors") + "\n";
}

std::string scaling_text(const Plan& plan, const std::vector<Json>& events) {
  struct Column {
    const char *name, *title;
    int width, digits;
  };
  constexpr Column columns[] = {{"ranks", "ranks", 7, 0},
                                {"time_us", "time us", 12, 1},
                                {"speedup", "speed-up", 10, 2},
                                {"efficiency", "efficiency", 12, 3},
                                {"efficiency_low", "from", 8, 3},
                                {"efficiency_high", "to", 8, 3},
                                {"exchange_us", "exchange us", 13, 1},
                                {"fit_us", "fitted", 10, 1},
                                {"exposed_us", "exposed us", 12, 1}};
  const auto right = [](const std::string& text, int width) {
    return std::string(std::max<std::size_t>(static_cast<std::size_t>(width), text.size() + 1) - text.size(), ' ') +
           text;
  };
  std::string text;
  for (const Json& event : events) {
    if (is_event(event, "answer")) text += "# " + word(event, "text") + "\n";
    if (is_event(event, "fit"))
      text += "# exchange over " + word(event, "transport") + ", " + word(event, "ranks") + " ranks in groups of " +
              word(event, "group") + ": " + text_of(event["latency_us"], 1) + " us and bytes at " +
              text_of(event["gb_s"], 2) + " GB/s; residual " + text_of(100 * event["residual"].get<double>(), 0) +
              " % of " + word(event, "points") + " times\n";
    if (!is_event(event, "scaling")) continue;
    const std::string own = word(event, "layer") + " " +
                            (event.contains("model") ? word(event, "model") : word(event, "shape")) +
                            (event.contains("batch_per_rank") ? ", batch " + word(event, "batch_per_rank") : "") +
                            ", " + word(event, "scaling") + ", " + word(event, "transport");
    if (event["ranks"] == plan.ranks.front()) {
      text += "\n" + own + "\n";
      for (const Column& column : columns) text += right(column.title, column.width);
      text += "\n";
    }
    for (const Column& column : columns)
      text += right(text_of(event.value(column.name, Json()), column.digits), column.width);
    text += event.value("oversubscribed", false) ? "  oversubscribed\n" : "\n";
  }
  return text;
}

}  // namespace allnorm::launch::scale
