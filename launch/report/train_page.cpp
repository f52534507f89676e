// The sections that show a training's results.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "launch/files/json_number.hpp"
#include "launch/report/page.hpp"

namespace allnorm::launch::pages {

namespace {

std::string number(double value, int digits = 2) { return fixed(value, digits); }
std::string number(const Json& value, int digits = 2) { return number_text(value, digits); }

/// The events of a run.
class Page {
 public:
  explicit Page(const Events& events) : events_(events), settings_(events.front().at("settings")) {
    for (const Json& event : events)
      if (event.at("event") == "result") results_.push_back(&event);
  }

  std::string text() const {
    return "<p class=\"sub\">" + subtitle() + "</p>\n" + section("Test error", errors()) +
           section("Differences between normalizations", paired()) +
           section("Test error against images per rank", sweep()) + section("Training loss", losses()) +
           section("How far past statistics are from the truth", past()) +
           section("Running statistics and corrections", corrections()) + section("What to keep in mind", caveats()) +
           configuration();
  }

 private:
  std::string subtitle() const {
    const auto seeds = whole(settings_.at("seeds"));
    return escaped(settings_.at("data").get<std::string>()) + " · " + settings_.at("ranks").dump() + " ranks · " +
           batches_text() + " per rank · " + settings_.at("epochs").dump() + " epochs · " + std::to_string(seeds) +
           (seeds == 1 ? " seed" : " seeds") + splits_text();
  }
  std::string batches_text() const {
    std::string text;
    std::set<std::int64_t> batches;
    for (const Json& batch : settings_.at("batch_per_rank")) batches.insert(whole(batch));
    for (const std::int64_t batch : batches) text += (text.empty() ? "" : ", ") + std::to_string(batch);
    return text + (text == "1" ? " image" : " images");
  }
  std::string splits_text() const {
    std::string text;
    for (const Json& split : settings_.at("split"))
      if (text.find(split.get<std::string>()) == text.npos)
        text += (text.empty() ? " · split " : ", ") + escaped(split.get<std::string>());
    return text;
  }
  /// Is this event about the same normalization, batch and split as the result?
  static bool same_run(const Json& event, const Json& result) {
    return event.at("norm") == result.at("norm") && same_scene(event, result);
  }
  static bool same_scene(const Json& a, const Json& b) {
    return a.at("batch_per_rank") == b.at("batch_per_rank") && a.at("split") == b.at("split");
  }
  bool is_sweep() const { return settings_.at("batch_per_rank").size() > 1; }
  std::string name_of(const Json& result) const {
    const std::string norm = result.at("norm");
    if (!is_sweep()) return norm;
    return norm + " ×" + result.at("batch_per_rank").dump() +
           (result.at("split") == "iid" ? "" : " " + result.at("split").get<std::string>());
  }
  std::vector<std::string> norms() const {
    std::vector<std::string> names;
    for (const Json* result : results_)
      if (std::find(names.begin(), names.end(), (*result).at("norm")) == names.end())
        names.push_back((*result).at("norm"));
    return names;
  }

  std::string errors() const {
    std::vector<std::string> names;
    Series bars;
    std::vector<Cells> rows;
    for (std::size_t i = 0; i < results_.size(); ++i) {
      const Json& r = *results_[i];
      const Json& deviation = r.at("test_error_std");
      names.push_back(name_of(r));
      bars.points.push_back({0, r.at("test_error_mean"), deviation.is_null() ? 0 : deviation.get<double>()});
      std::string own = "–";
      if (r.contains("own_statistics_per_seed")) {
        double sum = 0;
        for (const Json& one : r.at("own_statistics_per_seed")) sum += one.get<double>();
        own = number(sum / static_cast<double>(r.at("own_statistics_per_seed").size()));
      }
      rows.push_back(
          {"<code>" + escaped(r.at("norm").get<std::string>()) + "</code>",
           r.at("batch_per_rank").dump() + (r.at("split") == "iid" ? "" : ", " + r.at("split").get<std::string>()),
           "<b>" + number(r.at("test_error_mean")) + "</b> ± " + number(deviation), own, number(r.at("seconds"), 1),
           number(r.at("exchanges"), 1), number(r.at("exchange_bytes").get<double>() / 1024, 1)});
    }
    const std::string caption =
        "Test error in percent with running statistics, lower is better: mean and one standard "
        "deviation over seeds (none with a single seed).";
    return figure(is_sweep() ? "" : bars_svg("test error, %", names, {bars}), caption) +
           html_table({"normalization", "images per rank", "test error, %", "with own statistics, %", "seconds",
                       "exchanges per update", "KiB per update"},
                      rows) +
           "<p class=\"note\">With own statistics: the same weights, but every test image is normalized with its own "
           "mean and variance instead of the running ones. Where the first number is high and this one low, the "
           "weights are good and training and testing disagree about the statistics. Exchanges and KiB are what one "
           "rank sends in one update, gradients included; seconds are those of all seeds together.</p>\n";
  }

  std::size_t colour_of(const std::string& norm) const {
    const auto all = norms();
    return static_cast<std::size_t>(std::find(all.begin(), all.end(), norm) - all.begin());
  }

  /// Differences of the same seeds: data, weights and order of images agree, so that they say more than two means.
  std::string paired() const {
    if (settings_.at("seeds") == 1) return {};
    std::vector<Cells> rows;
    for (const Json* a : results_)
      for (const Json* b : results_) {
        if (a >= b || !same_scene(*a, *b)) continue;
        const auto x = (*a).at("per_seed").get<std::vector<double>>(),
                   y = (*b).at("per_seed").get<std::vector<double>>();
        double mean = 0, square = 0;
        const auto n = static_cast<double>(x.size());
        int lower = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          mean += (y[i] - x[i]) / n;
          lower += y[i] < x[i];
        }
        for (std::size_t i = 0; i < x.size(); ++i) square += (y[i] - x[i] - mean) * (y[i] - x[i] - mean);
        rows.push_back({escaped(name_of(*b)) + " − " + escaped(name_of(*a)),
                        number(mean) + " ± " + number(std::sqrt(square / (n - 1))),
                        std::to_string(lower) + " of " + std::to_string(x.size())});
      }
    return html_table({"difference of test errors", "mean ± deviation, points", "seeds with a lower error"}, rows) +
           "<p class=\"note\">Paired: runs of one seed share data, initial weights and order of images.</p>\n";
  }

  std::string sweep() const {
    if (!is_sweep()) return {};
    std::vector<Series> series;
    for (const std::string& norm : norms()) {
      Series& one = series.emplace_back(Series{norm, {}, colour_of(norm)});
      for (const Json* r : results_)
        if ((*r).at("norm") == norm && (*r).at("split") == "iid")
          one.points.push_back({(*r).at("batch_per_rank"), (*r).at("test_error_mean"),
                                (*r).at("test_error_std").is_null() ? 0 : (*r).at("test_error_std").get<double>()});
    }
    return figure(lines_svg({"images per rank", true}, {"test error, % (log)", true}, series),
                  "Small batches per rank are where normalizations differ. The learning rate grows with the images of "
                  "an update, and the number of updates falls with them.");
  }

  std::string losses() const {
    std::vector<Series> series;
    for (const Json* result : results_) {
      const Json& r = *result;
      if (!same_scene(r, *results_.front())) continue;  // of a sweep the first scene: the lines of all hide each other
      std::map<std::int64_t, std::pair<double, int>> by_epoch;
      for (const Json& e : events_)
        if (e.at("event") == "epoch" && same_run(e, r) && e.at("loss").is_number()) {
          auto& [sum, count] = by_epoch[whole(e.at("epoch"))];
          sum += e.at("loss").get<double>();
          ++count;
        }
      Series& one = series.emplace_back(Series{name_of(r), {}, colour_of(r.at("norm"))});
      for (const auto& [epoch, sum] : by_epoch)
        one.points.push_back({static_cast<double>(epoch), sum.first / sum.second});
    }
    return figure(lines_svg({"epoch"}, {"cross entropy (log)", true}, series),
                  "Mean cross entropy of the augmented training images, each seen once with the weights of its update, "
                  "averaged over seeds.");
  }

  /// The newest epoch's measurement of every layer and lag.
  std::string past() const {
    std::string body;
    for (const Json* result : results_) {
      const Json& r = *result;
      std::map<std::pair<int, int>, std::array<double, 5>> sums;  // [layer, lag]: four distances and a count
      for (const Json& e : events_) {
        if (e.at("event") != "statistics" || !e.contains("past") || !same_run(e, r)) continue;
        for (const Json& lag : e.at("past")) {
          auto& sum = sums[{static_cast<int>(whole(e.at("layer"))), static_cast<int>(whole(lag.at("lag")))}];
          const std::array<const char*, 4> names{"stale_mean", "compensated_mean", "stale_var", "compensated_var"};
          for (std::size_t k = 0; k < 4; ++k)
            sum[k] += lag.at(names[k]).is_number() ? lag.at(names[k]).get<double>() : 0;
          sum[4] += 1;
        }
      }
      if (sums.empty()) continue;
      body += past_figure(name_of(r), sums);
    }
    return body;
  }

  static std::string past_figure(const std::string& name,
                                 const std::map<std::pair<int, int>, std::array<double, 5>>& sums) {
    std::set<int> layers;
    for (const auto& [key, sum] : sums) layers.insert(key.first);
    std::vector<Series> means, vars;
    std::vector<Cells> rows;
    for (const int layer : layers) {
      std::array<Series, 4> lines;  // as the distances are
      std::array<double, 5> all{};
      for (const auto& [key, sum] : sums) {
        if (key.first != layer) continue;
        for (std::size_t k = 0; k < 5; ++k) all[k] += sum[k];
        for (std::size_t k = 0; k < 4; ++k)
          if (const double distance = sum[k] / sum[4]; k % 2 == 0 || distance > 1e-7)
            lines[k].points.push_back({static_cast<double>(key.second), distance});
      }
      for (std::size_t k = 0; k < 4; ++k) {
        lines[k].colour = static_cast<std::size_t>(layer - 1);
        lines[k].dashed = k % 2 == 0;
        if (k % 2 == 1) lines[k].name = "layer " + std::to_string(layer);
        (k < 2 ? means : vars).push_back(std::move(lines[k]));
      }
      const auto cell = [&](std::size_t k) { return number(all[k] / all[4], 4); };
      const auto ratio = [&](std::size_t k) {
        return all[k + 1] > 1e-5 * all[k] ? number(all[k] / all[k + 1], 1) : "exact";
      };
      rows.push_back({"layer " + std::to_string(layer), cell(0), cell(1), ratio(0), cell(2), cell(3), ratio(2)});
    }
    return "<h3><code>" + escaped(name) + "</code></h3>\n" +
           lines_svg({"lag, iterations"}, {"mean, in standard deviations (log)", true}, means) +
           figure(lines_svg({"lag, iterations"}, {"variance, relative (log)", true}, vars),
                  "Distance of past statistics from the truth, by layer and lag: dashed as stored, solid as "
                  "compensated (first-order "
                  "Taylor term of the layer's own weights). Truth: the past images sent again through the network with "
                  "the "
                  "present weights, every layer normalizing with the statistics it used then. Averages over channels, "
                  "a few "
                  "probe updates an epoch, epochs and seeds, on rank 0. A compensated line that is not drawn lies "
                  "below 1e-7.") +
           html_table({"average over lags", "mean, stale", "mean, compensated", "times closer", "variance, stale",
                       "variance, compensated", "times closer"},
                      rows);
  }

  std::string corrections() const {
    std::vector<Cells> rows;
    for (const Json* r : results_)
      for (const Json& e : events_) {
        if (e.at("event") != "statistics" || e.at("seed") != 0 || e.at("epoch") != settings_.at("epochs") ||
            !same_run(e, *r))
          continue;
        const bool renorm = e.contains("clipped");
        const auto pair = [&](const char* mean, const char* max) {
          return renorm ? number(e.at(mean)) + " / " + number(e.at(max)) : "–";
        };
        rows.push_back({escaped(name_of(*r)) + ", layer " + e.at("layer").dump(),
                        number(e.at("mean_gap_mean")) + " / " + number(e.at("mean_gap_max")), pair("r_mean", "r_max"),
                        pair("d_mean", "d_max"), renorm ? number(100 * e.at("clipped").get<double>(), 0) + " %" : "–"});
      }
    if (rows.empty()) return {};
    return "<details><summary>Last training call of seed 0, on rank 0</summary>" +
           html_table({"layer", "|batch mean − running mean| / running std, mean / max", "r, mean / max",
                       "|d|, mean / max", "clipped channels"},
                      rows) +
           "</details>\n";
  }

  bool has(const char* norm_start) const {
    const auto all = norms();
    return std::any_of(all.begin(), all.end(), [&](const std::string& n) { return n.rfind(norm_start, 0) == 0; });
  }

  std::string caveats() const {
    std::vector<std::string> lines = remarks_of(events_);
    if (has("batch_norm"))
      lines.push_back(
          "Batch normalization with one image per rank fails at testing, not at training: the mean and variance of a "
          "single image, which it trained with, are not the running ones that it is tested with. Compare the column "
          "“with own statistics”.");
    if (has("cross_iteration") || has("cross_mini"))
      lines.push_back(
          "Cross-iteration and cross-mini-batch statistics start after half of the training, which is plain batch "
          "normalization: gradients reach statistics of k iterations with weight 1/k only.");
    if (has("cross_iteration"))
      lines.push_back(
          "The Taylor compensation shows on the statistics, not on the error: to see it, run "
          "cross_iteration_batch_norm:compensate=false beside it over several seeds.");
    lines.push_back(
        "The settings of the experiment were chosen on seed 0 of a prototype. One seed says little: compare paired "
        "differences over seeds.");
    std::string out = "<ul class=\"note\">";
    for (const auto& line : lines) out += "<li>" + escaped(line) + "</li>\n";
    return out + "</ul>";
  }

  std::string configuration() const {
    return "<section><details><summary>Configuration</summary><pre>" + escaped(events_.front().dump(2)) +
           "</pre></details></section>\n";
  }

  const Events& events_;
  const Json& settings_;
  std::vector<const Json*> results_;
};

}  // namespace

std::string training_sections(const Events& events) { return Page(events).text(); }

}  // namespace allnorm::launch::pages
