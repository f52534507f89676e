// The events of a training.
#include "launch/train/events.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include "build_config.hpp"
#include "launch/ranks_run.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch::train {
namespace {

std::string hash_of_images(const DataSet& data) {
  std::uint64_t hash = hash_of(data.train.pixels.data(), data.train.pixels.size() * sizeof(float));
  hash = hash_of(data.train.labels.data(), data.train.labels.size() * sizeof(int), hash);
  if (data.test) {
    hash = hash_of(data.test->pixels.data(), data.test->pixels.size() * sizeof(float), hash);
    hash = hash_of(data.test->labels.data(), data.test->labels.size() * sizeof(int), hash);
  }
  return hex(hash);
}

Json ramp_json(const Ramp& ramp) {
  Json points = Json::array();
  for (const auto& [call, value] : ramp) points.push_back({call, value});
  return points;
}

/// All attributes of a layer as they are in the run; a schedule as its points (call, value).
Json attributes_json(const Layer& layer) {
  Json attributes;
  for (const Attribute& attribute : layer.row->attributes)
    attributes[std::string(attribute.name)] = attribute.get(layer.options);
  for (const std::string_view own : network_attributes) attributes.erase(std::string(own));
  if (!layer.options.r_max_ramp.empty()) attributes["r_max"] = ramp_json(layer.options.r_max_ramp);
  if (!layer.options.d_max_ramp.empty()) attributes["d_max"] = ramp_json(layer.options.d_max_ramp);
  return attributes;
}

}  // namespace

std::string hex(std::uint64_t word) {
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(word));
  return text.data();
}

Json config_event(const Settings& settings, const DataSet& data, const Rank& rank) {
  Json event;
  event["event"] = "config";
  event["command"] = "train";
  event["version"] = build::version;
  event["commit"] = build::commit;
  event["transport"] = rank.world->transport();
  Json& own = event["settings"];
  own["data"] = data.train.name;
  own["data_hash"] = hash_of_images(data);
  own["ranks"] = rank.size;
  own["threads"] = settings.ranks.threads;
  own["nonfinite"] = settings.ranks.nonfinite.empty() ? "as the norms say" : settings.ranks.nonfinite;
  Json& batches = own["batch_per_rank"] = Json::array();
  Json& splits = own["split"] = Json::array();
  for (const Scene& scene : settings.scenes) {
    batches.push_back(scene.batch);
    splits.push_back(to_string(scene.split));
  }
  own["accumulate"] = settings.accumulate > 0 ? Json(settings.accumulate) : Json("minibatches");
  own["epochs"] = settings.epochs;
  own["lr"] = settings.lr ? Json(*settings.lr) : Json("0.3 * images per update / 32");
  own["seeds"] = settings.seeds;
  Json& norms = own["norms"] = Json::array();
  for (const NormChoice& choice : settings.norms)
    for (const Scene& scene : settings.scenes) {
      const std::int64_t calls = calls_per_update(settings, choice);
      Images images(data, scene.split, rank.size, 0);
      images.begin_epoch(0, scene.batch, calls);
      const std::int64_t updates = images.updates() * settings.epochs;
      if (updates == 0) continue;  // an error that comes with its run
      norms.push_back({{"norm", choice.label},
                       {"batch_per_rank", scene.batch},
                       {"split", to_string(scene.split)},
                       {"calls_per_update", calls},
                       {"updates", updates}});
      const Layers layers = layers_of(choice, scene.batch, calls, updates);
      norms.back()["attributes"] = layers.norm ? attributes_json(*layers.norm) : Json::object();
      if (layers.weights) norms.back()["weight_attributes"] = attributes_json(*layers.weights);
    }
  return event;
}

Events epoch_events(const Settings& settings, const Job& job, std::int64_t epoch, const Epoch& outcome) {
  const Json run = about_run(settings, job, epoch);
  Json event{{"event", "epoch"}};
  event.update(run);
  event["loss"] = outcome.loss;
  event["test_error"] = outcome.test_error;
  if (outcome.own_error) event["test_error_own_statistics"] = *outcome.own_error;
  event["seconds"] = outcome.seconds;
  event["exchanges"] = outcome.exchanges;
  event["exchange_bytes"] = outcome.bytes;
  Events events{event};
  for (std::size_t l = 0; l < outcome.layers.size(); ++l) {
    const LayerStatistics& layer = outcome.layers[l];
    Json line{{"event", "statistics"}};
    line.update(run);
    line["layer"] = l + 1;
    line["mean_gap_mean"] = layer.gap.mean;
    line["mean_gap_max"] = layer.gap.max;
    if (layer.renorm) {
      line["r_mean"] = layer.r.mean;
      line["r_max"] = layer.r.max;
      line["d_mean"] = layer.d.mean;
      line["d_max"] = layer.d.max;
      line["clipped"] = layer.clipped;
    }
    if (!layer.past.empty()) {
      Json& past = line["past"] = Json::array();
      for (std::size_t lag = 0; lag < layer.past.size(); ++lag)
        past.push_back({{"lag", lag + 1},
                        {"stale_mean", layer.past[lag].stale_mean},
                        {"compensated_mean", layer.past[lag].mean},
                        {"stale_var", layer.past[lag].stale_var},
                        {"compensated_var", layer.past[lag].var}});
    }
    events.push_back(std::move(line));
  }
  return events;
}

Json error_event(const std::exception& error, const Rank& rank) {
  const Failure failure = failure_of(error);
  return {{"event", "error"}, {"rank", rank.rank}, {"code", failure.code}, {"line", for_terminal(failure.message)}};
}

Json stopped_event(const Settings& settings, const Job& job, const Position& here) {
  Json event{{"event", "stopped"}};
  event.update(about_run(settings, job, here.epoch));
  event["update"] = here.update;
  return event;
}

std::string table_of(const Events& events) {
  std::size_t width = 13;
  for (const Json& event : events)
    if (event["event"] == "result") width = std::max(width, event["norm"].get<std::string>().size());
  const auto row = [&](const std::string& norm, const std::array<std::string, 5>& cells) {
    std::string line = norm + std::string(width - norm.size(), ' ');
    constexpr std::array<std::size_t, 5> widths{8, 20, 10, 15, 14};
    for (std::size_t i = 0; i < cells.size(); ++i) {
      // The deviation's sign takes two bytes and one column.
      const std::size_t columns = cells[i].size() - (cells[i].find("±") != std::string::npos ? 1 : 0);
      line += std::string(columns < widths[i] ? widths[i] - columns : 1, ' ') + cells[i];
    }
    return line + "\n";
  };
  std::string table = row("normalization", {"images", "test error %", "seconds", "exchanges/step", "bytes/step"});
  for (const Json& event : events) {
    if (event["event"] != "result") continue;
    const Json& deviation = event["test_error_std"];
    table += row(event["norm"],
                 {std::to_string(event["batch_per_rank"].get<std::int64_t>()) +
                      (event["split"] == "iid" ? "" : " " + event["split"].get<std::string>()),
                  fixed(event["test_error_mean"], 2) + " ± " + (deviation.is_null() ? "-" : fixed(deviation, 2)),
                  fixed(event["seconds"], 1), fixed(event["exchanges"], 1), fixed(event["exchange_bytes"], 0)});
  }
  return table;
}

}  // namespace allnorm::launch::train
