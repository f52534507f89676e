// Plots as SVG text, drawn by gnuplot.
#include "launch/train/plots.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace allnorm::launch::train {
namespace {

namespace fs = std::filesystem;

// Okabe and Ito's palette without its yellow, which is pale on white.
constexpr std::array<std::string_view, 7> colours{"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                  "#e69f00", "#56b4e9", "#333333"};

/// A directory of its own that disappears with the object.
class Scratch {
 public:
  Scratch() {
    std::error_code error;
    std::string name = (fs::temp_directory_path(error) / "allnorm-plot-XXXXXX").string();
    if (!error && mkdtemp(name.data())) path_ = name;
  }
  ~Scratch() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const fs::path& path() const noexcept { return path_; }

 private:
  fs::path path_;
};

void replace_all(std::string& text, std::string_view from, const std::string& to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

}  // namespace

std::optional<std::string> draw_svg(std::string_view name, const std::string& script, int width, int height) {
  const Scratch scratch;
  if (scratch.path().empty()) return std::nullopt;
  const fs::path script_file = scratch.path() / "plot.gp", output = scratch.path() / "plot.svg";
  std::ofstream(script_file) << "set encoding utf8\nset terminal svg size " << width << ',' << height
                             << " dynamic font 'sans-serif,13' background '#ffffff' name '" << name << "'\nset output '"
                             << output.string() << "'\n"
                             << "set border 3 lc '#888888'\nset tics nomirror out tc '#444444'\n"
                             << "set grid y lc '#dddddd' lt 1\nset key outside right top Left reverse noenhanced\n"
                             << script << "\nunset output\n";
  const std::string command = "gnuplot '" + script_file.string() + "' >/dev/null 2>&1";
  if (std::system(command.c_str()) != 0) return std::nullopt;
  std::ostringstream text;
  text << std::ifstream(output).rdbuf();
  std::string svg = text.str();
  const std::size_t start = svg.find("<svg");
  if (start == std::string::npos) return std::nullopt;
  svg.erase(0, start);
  // Ids are the page's, not the plot's: two plots must not share one.
  const std::string prefix = std::string(name) + "_";
  replace_all(svg, "id='gp", "id='" + prefix + "gp");
  replace_all(svg, "href='#gp", "href='#" + prefix + "gp");
  replace_all(svg, "id=\"gp", "id=\"" + prefix + "gp");
  replace_all(svg, "url(#gp", "url(#" + prefix + "gp");
  return svg;
}

std::string_view series_colour(std::size_t i) noexcept { return colours[i % colours.size()]; }

std::string plot_text(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("''") : std::string(1, c);
  return quoted + "'";
}

std::string block_name(std::string_view stem, std::size_t i) { return "$" + std::string(stem) + std::to_string(i); }

}  // namespace allnorm::launch::train
