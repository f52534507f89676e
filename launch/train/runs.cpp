// The runs of a training, and what its events say of them. Without libtorch, as all that reads a checkpoint's texts.
#include <cmath>
#include <string>
#include <vector>

#include "launch/train/events.hpp"
#include "launch/train/settings.hpp"

namespace allnorm::launch::train {
namespace {

bool about(const Json& event, const char* kind, const std::string& norm, const Job& job) {
  return event["event"] == kind && event["norm"] == norm && event["batch_per_rank"] == job.batch &&
         event["split"] == to_string(job.split);
}

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

/// The sample's standard deviation; null of a single value, of which nobody knows how it varies.
Json deviation_of(const std::vector<double>& values) {
  if (values.size() < 2) return nullptr;
  const double mean = mean_of(values);
  double sum = 0;
  for (const double v : values) sum += (v - mean) * (v - mean);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

}  // namespace

std::string_view to_string(Split split) noexcept { return split_names[static_cast<std::size_t>(split)]; }

std::vector<Job> jobs_of(const Settings& settings) {
  std::vector<Job> jobs;
  for (const Scene& scene : settings.scenes)
    for (std::size_t norm = 0; norm < settings.norms.size(); ++norm)
      for (std::int64_t seed = 0; seed < settings.seeds; ++seed)
        jobs.push_back({norm, scene.batch, scene.split, static_cast<std::uint64_t>(seed)});
  return jobs;
}

std::int64_t calls_per_update(const Settings& settings, const NormChoice& choice) {
  return settings.accumulate > 0 ? settings.accumulate : choice.layers.options().minibatches;
}

double peak_rate(const Settings& settings, std::int64_t images_per_update) noexcept {
  return settings.lr ? *settings.lr : 0.3 * static_cast<double>(images_per_update) / 32;
}

Json about_run(const Settings& settings, const Job& job, std::int64_t epoch) {
  return {{"norm", settings.norms[job.norm].label},
          {"batch_per_rank", job.batch},
          {"split", to_string(job.split)},
          {"seed", job.seed},
          {"epoch", epoch + 1}};
}

Json result_event(const Settings& settings, const Job& last, const Events& events) {
  const std::string& label = settings.norms[last.norm].label;
  std::vector<double> errors, own_errors, exchanges, bytes;
  double seconds = 0;
  for (const Json& event : events) {
    if (!about(event, "epoch", label, last)) continue;
    seconds += event["seconds"].get<double>();
    if (event["epoch"] != settings.epochs) continue;
    errors.push_back(event["test_error"]);
    if (event.contains("test_error_own_statistics")) own_errors.push_back(event["test_error_own_statistics"]);
    exchanges.push_back(event["exchanges"]);
    bytes.push_back(event["exchange_bytes"]);
  }
  Json result{{"event", "result"},
              {"norm", label},
              {"batch_per_rank", last.batch},
              {"split", to_string(last.split)},
              {"seeds", settings.seeds}};
  result["test_error_mean"] = mean_of(errors);
  result["test_error_std"] = deviation_of(errors);
  result["per_seed"] = errors;
  if (!own_errors.empty()) result["own_statistics_per_seed"] = own_errors;
  result["seconds"] = seconds;
  result["exchanges"] = mean_of(exchanges);
  result["exchange_bytes"] = mean_of(bytes);
  return result;
}

}  // namespace allnorm::launch::train
