// What the layers' statistics looked like in an epoch.
#include "launch/train/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace allnorm::launch::train {
namespace {

template <class ValueOf>
Spread spread(std::size_t channels, const ValueOf& value_of) {
  Spread spread;
  for (std::size_t c = 0; c < channels; ++c) {
    const double value = value_of(c);
    spread.mean += value / static_cast<double>(channels);
    spread.max = std::max(spread.max, value);
  }
  return spread;
}

LayerStatistics measure_layer(Norm& norm, const SavedCall& call, Queue& queue) {
  const RunningStatistics running = norm.running(queue);
  const auto values = [&](const char* name) { return to_host(call.statistic(name), queue); };
  const std::vector<double> mean = values("mean"), r = values("r"), d = values("d");
  LayerStatistics result;
  // Means of every sample and channel are in the order of the samples.
  result.gap = spread(mean.size(), [&](std::size_t group) {
    const std::size_t c = group % running.mean.size();
    return std::abs(mean[group] - running.mean[c]) /
           (norm.layer().keeps_std() ? running.spread[c] : norm.layer().sigma(running.spread[c]));
  });
  result.renorm = !r.empty();
  if (!result.renorm) return result;
  result.r = spread(r.size(), [&](std::size_t c) { return r[c]; });
  result.d = spread(d.size(), [&](std::size_t c) { return std::abs(d[c]); });
  // The bounds are those of the next call; a ramp moves them by less than this share a call.
  constexpr double on_bound = 1 - 1e-3;
  const auto [r_max, d_max] = norm.renorm_bounds(queue);
  std::size_t clipped = 0;
  for (std::size_t c = 0; c < r.size(); ++c)
    clipped += std::max(r[c], 1 / r[c]) >= on_bound * r_max || std::abs(d[c]) >= on_bound * d_max;
  result.clipped = static_cast<double>(clipped) / static_cast<double>(r.size());
  return result;
}

}  // namespace

std::vector<LayerStatistics> measure(Network& network) {
  std::vector<LayerStatistics> layers;
  for (std::size_t l = 0; l < network.layers(); ++l)
    if (Norm* const norm = network.norm(l); norm != nullptr && norm->has_running())
      layers.push_back(measure_layer(*norm, network.last_call(l), network.queue()));
  return layers;
}

std::vector<LayerMetric> metrics_of(const std::vector<LayerStatistics>& layers) {
  std::vector<LayerMetric> metrics;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const LayerStatistics& own = layers[l];
    const std::string layer = "norm" + std::to_string(l + 1);
    metrics.push_back({"allnorm_drift", layer, {{"over_channels", "mean"}}, own.gap.mean});
    metrics.push_back({"allnorm_drift", layer, {{"over_channels", "max"}}, own.gap.max});
    if (own.renorm) metrics.push_back({"allnorm_clipped_share", layer, {}, own.clipped});
    for (std::size_t lag = 0; lag < own.past.size(); ++lag) {
      const auto add = [&](const char* statistic, const char* kind, double value) {
        metrics.push_back({"allnorm_window_distance",
                           layer,
                           {{"lag", std::to_string(lag + 1)}, {"statistic", statistic}, {"kind", kind}},
                           value});
      };
      const PastDistance& past = own.past[lag];
      add("mean", "stale", past.stale_mean);
      add("mean", "compensated", past.mean);
      add("var", "stale", past.stale_var);
      add("var", "compensated", past.var);
    }
  }
  return metrics;
}

void PastAverage::add(const PastDistances& distances) {
  sums_.resize(std::max(sums_.size(), distances.size()));
  for (std::size_t l = 0; l < distances.size(); ++l) {
    sums_[l].resize(std::max(sums_[l].size(), distances[l].size()));
    for (std::size_t lag = 0; lag < distances[l].size(); ++lag) {
      auto& [sum, count] = sums_[l][lag];
      const PastDistance& one = distances[l][lag];
      sum = {sum.stale_mean + one.stale_mean, sum.mean + one.mean, sum.stale_var + one.stale_var, sum.var + one.var};
      ++count;
    }
  }
}

void PastAverage::finish(std::vector<LayerStatistics>& layers) const {
  for (std::size_t l = 0; l < std::min(layers.size(), sums_.size()); ++l)
    for (const auto& [sum, count] : sums_[l]) {
      const auto n = static_cast<double>(count);
      layers[l].past.push_back({sum.stale_mean / n, sum.mean / n, sum.stale_var / n, sum.var / n});
    }
}

}  // namespace allnorm::launch::train
