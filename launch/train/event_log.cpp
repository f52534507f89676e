#include "launch/train/event_log.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace allnorm::launch::train {
namespace {

/// What says which run an event is of; the others are its numbers.
constexpr std::array<std::string_view, 7> keys{"event", "norm", "batch_per_rank", "split", "seed", "epoch", "layer"};
/// Of CSV, which has a line per epoch.
constexpr std::array<const char*, 11> columns{"norm",    "batch_per_rank", "split",         "seed",
                                              "epoch",   "loss",           "test_error",    "test_error_own_statistics",
                                              "seconds", "exchanges",      "exchange_bytes"};

std::string csv_line(const Json& event) {
  std::string line;
  for (const char* column : columns)
    line += (line.empty() ? "" : ",") + (event.contains(column) ? event[column].dump() : "");
  return line + '\n';
}

std::string csv_header() {
  std::string line;
  for (const char* column : columns) line += (line.empty() ? "" : ",") + std::string(column);
  return line + '\n';
}

/// "group_norm:groups=4/images 2, iid, seed 0".
std::string run_of(const Json& event) {
  return event["norm"].get<std::string>() + "/images " + event["batch_per_rank"].dump() + ", " +
         event["split"].get<std::string>() + ", seed " + event["seed"].dump();
}

Scalars scalars_of(const Json& event) {
  const std::string of = event.contains("layer") ? "layer " + event["layer"].dump() + "/" : "training/";
  Scalars scalars;
  for (const auto& [name, value] : event.items())
    if (value.is_number() && std::find(keys.begin(), keys.end(), name) == keys.end())
      scalars.emplace_back(of + name, value.get<float>());
  return scalars;
}

}  // namespace

EventLog::EventLog(const Settings& settings)
    : board_(settings.tensorboard), csv_(settings.log.ends_with(".csv")), file_(settings.log) {
  if (csv_) file_.append(csv_header());
}

void EventLog::write(const Json& event) {
  const bool of_an_epoch = event["event"] == "epoch";
  if (csv_ && of_an_epoch) file_.append(csv_line(event));
  if (!csv_) file_.append(event.dump() + '\n');
  if (board_.empty() || !(of_an_epoch || event["event"] == "statistics")) return;
  const std::string folder = board_ + "/" + run_of(event);
  if (folder != run_) {  // runs come one after the other
    of_run_.emplace(folder);
    run_ = folder;
  }
  of_run_->write(event["epoch"].get<std::int64_t>(), scalars_of(event));
}

}  // namespace allnorm::launch::train
