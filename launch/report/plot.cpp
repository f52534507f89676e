#include "launch/report/plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string_view>

namespace allnorm::launch::pages {

namespace {

constexpr std::size_t colours = 7;
constexpr double width = 640, left = 64, right = 12, top = 26, bottom = 44;  // units of the view, about pixels
constexpr double letter = 9;  // of a width on a narrow screen, where letters are larger

std::string number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), std::abs(value) >= 1e4 && std::abs(value) < 1e7 ? "%.0f" : "%.4g", value);
  return text.data();
}
std::string at(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f", value);
  return text.data();
}

std::string text_at(double x, double y, std::string_view anchor, std::string_view text, std::string_view more = {}) {
  return "<text x=\"" + at(x) + "\" y=\"" + at(y) + "\" text-anchor=\"" + std::string(anchor) + "\"" +
         std::string(more) + ">" + escaped(text) + "</text>\n";
}
std::string line_at(double x1, double y1, double x2, double y2, std::string_view kind) {
  return "<line class=\"" + std::string(kind) + "\" x1=\"" + at(x1) + "\" y1=\"" + at(y1) + "\" x2=\"" + at(x2) +
         "\" y2=\"" + at(y2) + "\"/>\n";
}
std::string colour_of(const Series& series) { return "s" + std::to_string(series.colour % colours); }

std::string svg(double height, const std::string& body) {
  return "<svg viewBox=\"0 0 " + at(width) + " " + at(height) + "\" role=\"img\">\n" + body + "</svg>\n";
}

// From values to places, from `low` to `high`.
class Scale {
 public:
  Scale(const Axis& axis, double least, double most, double from, double to) : log_(axis.log), from_(from), to_(to) {
    low_ = log_ ? std::log10(least) : std::min(least, most);
    high_ = log_ ? std::log10(most) : most;
    if (high_ - low_ < 1e-12) high_ = low_ + 1;
    const double raw = (high_ - low_) / 5, power = std::pow(10, std::floor(std::log10(raw)));
    for (const double step : {1., 2., 5., 10.})
      if ((step_ = step * power) >= raw) break;
    if (log_) step_ = std::max(1., std::round(step_));
  }
  double operator()(double value) const {
    return from_ + ((log_ ? std::log10(value) : value) - low_) / (high_ - low_) * (to_ - from_);
  }
  std::vector<double> ticks() const {
    std::vector<double> made;
    for (double tick = std::ceil(low_ / step_ - 1e-9) * step_; tick <= high_ + 1e-9; tick += step_)
      made.push_back(log_ ? std::pow(10, tick) : std::abs(tick) < 1e-12 ? 0 : tick);
    if (log_ && made.size() < 2) made = {std::pow(10, low_), std::pow(10, high_)};
    return made;
  }

 private:
  bool log_;
  double from_, to_, low_ = 0, high_ = 1, step_ = 1;
};

bool is_shown(double value, const Axis& axis) { return std::isfinite(value) && (!axis.log || value > 0); }

std::string key_of(const std::vector<Series>& series, double& y) {
  std::string body;
  double x = 0;
  for (const Series& one : series) {
    if (one.name.empty()) continue;
    const double wide = 24 + letter * static_cast<double>(one.name.size()) + 16;
    if (x > 0 && x + wide > width) {
      x = 0;
      y += 22;
    }
    body += line_at(x, y - 4, x + 18, y - 4, colour_of(one) + (one.dashed ? " dashed" : "")) +
            text_at(x + 24, y, "start", one.name);
    x += wide;
  }
  return body;
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text)
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&quot;" : std::string(1, c);
  return out;
}

std::string lines_svg(const Axis& x, const Axis& y, const std::vector<Series>& series) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  double x0 = infinity, x1 = -infinity, y0 = y.log ? infinity : 0, y1 = -infinity;
  const auto shows = [&](const Point& point) { return is_shown(point.x, x) && is_shown(point.y, y); };
  for (const Series& one : series)
    for (const Point& point : one.points) {
      if (!shows(point)) continue;
      x0 = std::min(x0, point.x);
      x1 = std::max(x1, point.x);
      y0 = std::min(y0, point.y);
      y1 = std::max(y1, point.y + (y.log ? 0 : point.deviation));
    }
  if (!(x0 <= x1)) return {};

  constexpr double plot_height = 300;
  const double base = top + plot_height;
  const Scale to_x(x, x0, x1, left + 8, width - right - 8), to_y(y, y0, y1, base - 4, top + 6);
  std::string body;
  for (const double tick : to_y.ticks())
    body += line_at(left, to_y(tick), width - right, to_y(tick), "grid") +
            text_at(left - 6, to_y(tick) + 4, "end", number(tick));
  for (const double tick : to_x.ticks())
    body += line_at(to_x(tick), base, to_x(tick), base + 5, "axis") +
            text_at(to_x(tick), base + 20, "middle", number(tick));
  body += line_at(left, base, width - right, base, "axis") + text_at((left + width) / 2, base + 38, "middle", x.title) +
          text_at(4, 16, "start", y.title);
  for (const Series& one : series) {
    std::string path, marks;
    for (const Point& point : one.points) {
      if (!shows(point)) continue;
      const std::string px = at(to_x(point.x)), py = at(to_y(point.y));
      path += (path.empty() ? "M" : "L") + px + " " + py;
      marks += "<circle class=\"" + colour_of(one) + "\" cx=\"" + px + "\" cy=\"" + py + "\" r=\"2.5\"/>\n";
      const double below = point.y - point.deviation;
      if (point.deviation > 0 && is_shown(below, y))
        marks += line_at(to_x(point.x), to_y(below), to_x(point.x), to_y(point.y + point.deviation), colour_of(one));
    }
    if (!path.empty())
      body += "<path class=\"" + colour_of(one) + (one.dashed ? " dashed" : "") + "\" d=\"" + path + "\"/>\n" + marks;
  }
  double height = base + bottom + 16;
  body += key_of(series, height);
  return svg(height + 8, body);
}

std::string bars_svg(const std::string& title, const std::vector<std::string>& names,
                     const std::vector<Series>& series) {
  double most = 0;
  for (const Series& one : series)
    for (const Point& point : one.points)
      if (std::isfinite(point.y)) most = std::max(most, point.y + point.deviation);
  if (names.empty() || !(most > 0)) return {};

  constexpr double thick = 18, line = 20, gap = 12, room = width - 100;
  double y = 16;
  std::string body = text_at(0, y, "start", title);
  y += 8;
  for (std::size_t i = 0; i < names.size(); ++i) {
    body += text_at(0, y + line - 5, "start", names[i], " class=\"name\"");
    y += line;
    for (const Series& one : series) {
      const Point& point = one.points[i];
      if (!std::isfinite(point.y)) continue;
      const double end = room * point.y / most, spread = room * point.deviation / most;
      body += "<rect class=\"" + colour_of(one) + "\" x=\"0\" y=\"" + at(y + 1) + "\" width=\"" + at(end) +
              "\" height=\"" + at(thick - 2) + "\"/>\n";
      if (spread > 0) body += line_at(end - spread, y + thick / 2, end + spread, y + thick / 2, "axis");
      body += text_at(end + spread + 6, y + thick - 4, "start", number(point.y));
      y += thick;
    }
    y += gap;
  }
  if (const std::string key = key_of(series, y += 12); !key.empty()) return svg(y + 8, body + key);
  return svg(y - 12, body);
}

}  // namespace allnorm::launch::pages
