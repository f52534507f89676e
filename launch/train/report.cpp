// The page that shows a training's results.
#include "launch/train/report.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "launch/train/plots.hpp"

namespace allnorm::launch::train {
namespace {

constexpr const char* style = R"css(
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #f6f7f9; margin: 0; }
main { max-width: 980px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 28px; margin: 12px 0 2px; } h2 { font-size: 20px; margin: 0 0 8px; }
.sub { color: #666; margin: 0 0 20px; }
section { background: #fff; border: 1px solid #e2e5ea; border-radius: 10px; padding: 20px 24px; margin: 18px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: #555; border-bottom: 2px solid #d9dde3; padding: 6px 8px; vertical-align: bottom; }
td { text-align: right; white-space: nowrap; border-bottom: 1px solid #edeff2; padding: 6px 8px; }
th:first-child, td:first-child { text-align: left; } .wide { overflow-x: auto; }
.note { color: #555; font-size: 14.5px; } .note li { margin: 4px 0; }
figure { margin: 0; } figcaption { color: #555; font-size: 14.5px; margin-top: 8px; }
svg { width: 100%; height: auto; display: block; } code { background: #f0f2f5; padding: 1px 5px; border-radius: 4px; font-size: 14px; }
pre { background: #f0f2f5; padding: 12px; border-radius: 6px; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; font-weight: 600; }
)css";

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text)
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&quot;" : std::string(1, c);
  return out;
}

std::string number(double value, int digits = 2) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}
std::string number(const Json& value, int digits = 2) {
  return value.is_number() ? number(value.get<double>(), digits) : "–";
}

using Row = std::vector<std::string>;  // cells as HTML

std::string html_table(const Row& head, const std::vector<Row>& rows) {
  std::string out = "<div class=\"wide\"><table><thead><tr>";
  for (const auto& cell : head) out += "<th>" + cell + "</th>";
  out += "</tr></thead><tbody>\n";
  for (const Row& row : rows) {
    out += "<tr>";
    for (const auto& cell : row) out += "<td>" + cell + "</td>";
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string section(const std::string& title, const std::string& body) {
  return body.empty() ? "" : "<section><h2>" + title + "</h2>\n" + body + "</section>\n";
}

/// The events of a run, and whether gnuplot drew.
class Page {
 public:
  explicit Page(const Events& events) : events_(events), settings_(events.front()["settings"]) {
    for (const Json& event : events)
      if (event["event"] == "result") results_.push_back(&event);
  }

  std::string text() {
    const std::string plots_and_tables =
        section("Test error", errors()) + section("Differences between normalizations", paired()) +
        section("Test error against images per rank", sweep()) + section("Training loss", losses()) +
        section("How far past statistics are from the truth", past()) +
        section("Running statistics and corrections", corrections());
    std::string page =
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
        "<title>allnorm train</title><style>" +
        std::string(style) + "</style></head><body><main>\n";
    page += "<h1>allnorm train</h1>\n<p class=\"sub\">" + subtitle() + "</p>\n";
    if (no_plots_)
      page +=
          "<section class=\"note\">This page has tables only: gnuplot could not be run where it was "
          "written.</section>\n";
    return page + plots_and_tables + section("What to keep in mind", caveats()) + configuration() +
           "</main></body></html>\n";
  }

 private:
  std::string subtitle() const {
    const auto seeds = settings_["seeds"].get<std::int64_t>();
    return escaped(settings_["data"].get<std::string>()) + " · " + settings_["ranks"].dump() + " ranks · " +
           batches_text() + " per rank · " + settings_["epochs"].dump() + " epochs · " + std::to_string(seeds) +
           (seeds == 1 ? " seed" : " seeds") + splits_text();
  }
  std::string batches_text() const {
    std::string text;
    std::set<std::int64_t> batches;
    for (const Json& batch : settings_["batch_per_rank"]) batches.insert(batch.get<std::int64_t>());
    for (const std::int64_t batch : batches) text += (text.empty() ? "" : ", ") + std::to_string(batch);
    return text + (text == "1" ? " image" : " images");
  }
  std::string splits_text() const {
    std::string text;
    for (const Json& split : settings_["split"])
      if (text.find(split.get<std::string>()) == text.npos)
        text += (text.empty() ? " · split " : ", ") + escaped(split.get<std::string>());
    return text;
  }
  /// Is this event about the same normalization, batch and split as the result?
  static bool same_run(const Json& event, const Json& result) {
    return event["norm"] == result["norm"] && same_scene(event, result);
  }
  static bool same_scene(const Json& a, const Json& b) {
    return a["batch_per_rank"] == b["batch_per_rank"] && a["split"] == b["split"];
  }
  bool is_sweep() const { return settings_["batch_per_rank"].size() > 1; }
  std::string name_of(const Json& result) const {
    const std::string norm = result["norm"];
    if (!is_sweep()) return norm;
    return norm + " ×" + result["batch_per_rank"].dump() +
           (result["split"] == "iid" ? "" : " " + result["split"].get<std::string>());
  }
  std::vector<std::string> norms() const {
    std::vector<std::string> names;
    for (const Json* result : results_)
      if (std::find(names.begin(), names.end(), (*result)["norm"]) == names.end()) names.push_back((*result)["norm"]);
    return names;
  }

  std::string figure(std::string_view name, const std::string& script, int height, const std::string& caption) {
    const auto svg = draw_svg(name, script, 920, height);
    if (!svg) no_plots_ = true;
    return svg ? "<figure>" + *svg + "<figcaption>" + caption + "</figcaption></figure>\n"
               : "<p class=\"note\">" + caption + "</p>\n";
  }

  std::string errors() {
    std::string data = "$errors << EOD\n";
    std::vector<Row> rows;
    for (std::size_t i = 0; i < results_.size(); ++i) {
      const Json& r = *results_[i];
      const Json& deviation = r["test_error_std"];
      data += std::to_string(i) + " " + number(r["test_error_mean"], 6) + " " +
              (deviation.is_null() ? "0" : number(deviation, 6)) + " " +
              std::to_string(std::stoul(std::string(series_colour(colour_of(r["norm"]))).substr(1), nullptr, 16)) +
              " \"" + name_of(r) + "\"\n";
      std::string own = "–";
      if (r.contains("own_statistics_per_seed")) {
        double sum = 0;
        for (const Json& one : r["own_statistics_per_seed"]) sum += one.get<double>();
        own = number(sum / static_cast<double>(r["own_statistics_per_seed"].size()));
      }
      rows.push_back({"<code>" + escaped(r["norm"].get<std::string>()) + "</code>",
                      r["batch_per_rank"].dump() + (r["split"] == "iid" ? "" : ", " + r["split"].get<std::string>()),
                      "<b>" + number(r["test_error_mean"]) + "</b> ± " + number(deviation), own,
                      number(r["seconds"], 1), number(r["exchanges"], 1),
                      number(r["exchange_bytes"].get<double>() / 1024, 1)});
    }
    const std::string script =
        data +
        "EOD\nset style fill solid 0.85\nset boxwidth 0.62\nunset key\nset yrange [0:*]\nset ylabel 'test error, %'\n" +
        "set xtics rotate by -18 noenhanced\nset xrange [-0.6:" + std::to_string(results_.size()) +
        "-0.4]\nset rmargin 12\n" +
        "plot $errors using 1:2:4:xtic(5) with boxes lc rgb variable, '' using 1:($2-$3):(0):(2*$3) with vectors heads "
        "size graph 0.006,90 lc '#222222' lw 1.5, "
        "'' using 1:($2+$3):(sprintf('%.1f',$2)) with labels offset 0,0.8 tc '#222222'";
    const std::string caption =
        "Test error in percent with running statistics, lower is better: mean and one standard "
        "deviation over seeds (none with a single seed).";
    return (is_sweep() ? "<p class=\"note\">" + caption + "</p>\n" : figure("errors", script, 400, caption)) +
           html_table({"normalization", "images per rank", "test error, %", "with own statistics, %", "seconds",
                       "exchanges per update", "KiB per update"},
                      rows) +
           "<p class=\"note\">With own statistics: the same weights, but every test image is normalized with its own "
           "mean and "
           "variance instead of the running ones. Where the first number is high and this one low, the weights are "
           "good and training and testing disagree about the statistics. Exchanges and KiB are what one rank sends "
           "in one update, gradients included; seconds are those of all seeds together.</p>\n";
  }

  std::size_t colour_of(const std::string& norm) const {
    const auto all = norms();
    return static_cast<std::size_t>(std::find(all.begin(), all.end(), norm) - all.begin());
  }

  /// Differences of the same seeds: data, weights and order of images agree, so that they say more than two means.
  std::string paired() {
    if (settings_["seeds"] == 1) return {};
    std::vector<Row> rows;
    for (const Json* a : results_)
      for (const Json* b : results_) {
        if (a >= b || !same_scene(*a, *b)) continue;
        const auto x = (*a)["per_seed"].get<std::vector<double>>(), y = (*b)["per_seed"].get<std::vector<double>>();
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

  std::string sweep() {
    if (!is_sweep()) return {};
    std::string data, plot;
    const auto all = norms();
    for (std::size_t i = 0; i < all.size(); ++i) {
      data += block_name("sweep", i) + " << EOD\n";
      for (const Json* r : results_)
        if ((*r)["norm"] == all[i] && (*r)["split"] == "iid")
          data += (*r)["batch_per_rank"].dump() + " " + number((*r)["test_error_mean"], 6) + " " +
                  ((*r)["test_error_std"].is_null() ? "0" : number((*r)["test_error_std"], 6)) + "\n";
      data += "EOD\n";
      plot += (i ? ", " : "plot ") + block_name("sweep", i) + " using 1:2:3 with yerrorlines lw 2 pt 7 ps 0.6 lc '" +
              std::string(series_colour(i)) + "' title " + plot_text(all[i]);
    }
    return figure(
        "sweep",
        data + "set logscale x 2\nset logscale y\nset xlabel 'images per rank'\nset ylabel 'test error, % (log)'\n" +
            plot,
        420,
        "Small batches per rank are where normalizations differ. The learning rate grows with the images of an "
        "update, and the number of updates falls with them.");
  }

  std::string losses() {
    std::string data, plot;
    for (std::size_t i = 0; i < results_.size(); ++i) {
      const Json& r = *results_[i];
      if (!same_scene(r, *results_.front())) continue;  // of a sweep the first scene: the lines of all hide each other
      std::map<std::int64_t, std::pair<double, int>> by_epoch;
      for (const Json& e : events_)
        if (e["event"] == "epoch" && same_run(e, r) && e["loss"].is_number()) {
          auto& [sum, count] = by_epoch[e["epoch"].get<std::int64_t>()];
          sum += e["loss"].get<double>();
          ++count;
        }
      data += block_name("loss", i) + " << EOD\n";
      for (const auto& [epoch, sum] : by_epoch)
        data += std::to_string(epoch) + " " + number(sum.first / sum.second, 8) + "\n";
      data += "EOD\n";
      plot += (i ? ", " : "plot ") + block_name("loss", i) + " using 1:2 with lines lw 2 lc '" +
              std::string(series_colour(colour_of(r["norm"]))) + "' title " + plot_text(name_of(r));
    }
    return figure("loss", data + "set logscale y\nset xlabel 'epoch'\nset ylabel 'cross entropy (log)'\n" + plot, 420,
                  "Mean cross entropy of the augmented training images, each seen once with the weights of its update, "
                  "averaged over seeds.");
  }

  /// The newest epoch's measurement of every layer and lag.
  std::string past() {
    std::string body;
    for (std::size_t i = 0; i < results_.size(); ++i) {
      const Json& r = *results_[i];
      std::map<std::pair<int, int>, std::array<double, 5>> sums;  // [layer, lag]: four distances and a count
      for (const Json& e : events_) {
        if (e["event"] != "statistics" || !e.contains("past") || !same_run(e, r)) continue;
        for (const Json& lag : e["past"]) {
          auto& sum = sums[{e["layer"].get<int>(), lag["lag"].get<int>()}];
          const std::array<const char*, 4> names{"stale_mean", "compensated_mean", "stale_var", "compensated_var"};
          for (std::size_t k = 0; k < 4; ++k) sum[k] += lag[names[k]].is_number() ? lag[names[k]].get<double>() : 0;
          sum[4] += 1;
        }
      }
      if (sums.empty()) continue;
      body += past_figure(i, name_of(r), sums);
    }
    return body;
  }

  std::string past_figure(std::size_t i, const std::string& name,
                          const std::map<std::pair<int, int>, std::array<double, 5>>& sums) {
    std::set<int> layers;
    for (const auto& [key, sum] : sums) layers.insert(key.first);
    std::string data, means, vars;
    std::vector<Row> rows;
    for (const int layer : layers) {
      const std::string block = block_name("past" + std::to_string(i) + "_", static_cast<std::size_t>(layer));
      data += block + " << EOD\n";
      std::array<double, 5> all{};
      for (const auto& [key, sum] : sums) {
        if (key.first != layer) continue;
        data += std::to_string(key.second);
        for (std::size_t k = 0; k < 4; ++k) data += " " + number(sum[k] / sum[4], 9);
        data += "\n";
        for (std::size_t k = 0; k < 5; ++k) all[k] += sum[k];
      }
      data += "EOD\n";
      const std::string colour = "lw 2 lc '" + std::string(series_colour(static_cast<std::size_t>(layer - 1))) + "'";
      const auto lines = [&](int stale, bool titled) {
        const std::string title = titled ? "title 'layer " + std::to_string(layer) + "'" : "notitle";
        return block + " using 1:" + std::to_string(stale) + " with linespoints pt 6 ps 0.5 dt 2 " + colour +
               " notitle, " + block + " using 1:($" + std::to_string(stale + 1) + ">1e-7?$" +
               std::to_string(stale + 1) + ":1/0) with linespoints pt 7 ps 0.5 " + colour + " " + title;
      };
      means += (means.empty() ? "" : ", ") + lines(2, false);
      vars += (vars.empty() ? "" : ", ") + lines(4, true);
      const auto cell = [&](std::size_t k) { return number(all[k] / all[4], 4); };
      const auto ratio = [&](std::size_t k) {
        return all[k + 1] > 1e-5 * all[k] ? number(all[k] / all[k + 1], 1) : "exact";
      };
      rows.push_back({"layer " + std::to_string(layer), cell(0), cell(1), ratio(0), cell(2), cell(3), ratio(2)});
    }
    const std::string script =
        data +
        "set multiplot layout 1,2\nset logscale y\nset format y '%g'\nset xlabel 'lag, iterations'\nunset key\n"
        "set title 'mean, in standard deviations'\nplot " +
        means + "\nset key outside right top Left reverse noenhanced\nset title 'variance, relative'\nplot " + vars +
        "\nunset multiplot";
    return "<h3><code>" + escaped(name) + "</code></h3>\n" +
           figure("past" + std::to_string(i), script, 380,
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
    std::vector<Row> rows;
    for (const Json* r : results_)
      for (const Json& e : events_) {
        if (e["event"] != "statistics" || e["seed"] != 0 || e["epoch"] != settings_["epochs"] || !same_run(e, *r))
          continue;
        const bool renorm = e.contains("clipped");
        const auto pair = [&](const char* mean, const char* max) {
          return renorm ? number(e[mean]) + " / " + number(e[max]) : "–";
        };
        rows.push_back({escaped(name_of(*r)) + ", layer " + e["layer"].dump(),
                        number(e["mean_gap_mean"]) + " / " + number(e["mean_gap_max"]), pair("r_mean", "r_max"),
                        pair("d_mean", "d_max"), renorm ? number(100 * e["clipped"].get<double>(), 0) + " %" : "–"});
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
  bool no_plots_ = false;
};

}  // namespace

std::string report_page(const Events& events) { return Page(events).text(); }

}  // namespace allnorm::launch::train
