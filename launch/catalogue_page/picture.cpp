#include "launch/catalogue_page/picture.hpp"

#include <cstdio>
#include <vector>

namespace allnorm::launch::page {

namespace {

// An input (N, C, space) as a block of cells: channels to the right, positions downwards, samples away from the eye.
constexpr int samples = 4, channels = 6, positions = 5, group = 2;
constexpr double cell = 14, away_x = 7, away_y = 6;  // pixels; of one cell, and of one sample further away
constexpr double margin = 6, text_height = 15;
constexpr double block_width = channels * cell + samples * away_x, block_height = positions * cell + samples * away_y;

std::string format(const char* text, double a, double b) {
  char made[64];
  std::snprintf(made, sizeof made, text, a, b);
  return made;
}

class Picture {
 public:
  Picture(double width, double height) : width_(width), height_(height) {}

  void quad(const double (&x)[4], const double (&y)[4], bool marked) {
    shapes_ += marked ? "<path class=\"set\" d=\"" : "<path d=\"";
    for (int i = 0; i < 4; ++i) shapes_ += format(i == 0 ? "M%g %g" : "L%g %g", x[i], y[i]);
    shapes_ += "z\"/>\n";
  }
  void text(double x, double y, const std::string& words, bool upwards = false) {
    const std::string turn = upwards ? format(" transform=\"rotate(-90 %g %g)\"", x, y) : "";
    shapes_ += "<text" + format(" x=\"%g\" y=\"%g\"", x, y) + turn + ">" + words + "</text>\n";
  }
  std::string svg(const std::string& title) const {
    return "<svg xmlns=\"http://www.w3.org/2000/svg\"" + format(" width=\"%g\" height=\"%g\"", width_, height_) +
           format(" viewBox=\"0 0 %g %g\">\n", width_, height_) + "<title>" + title +
           "</title>\n<style>\n"
           "path { fill: #f2f4f7; stroke: #8a94a3; stroke-width: 0.8; stroke-linejoin: round }\n"
           "path.set { fill: #2f7ed8 }\n"
           "text { fill: #4a5462; font: 11px sans-serif }\n"
           "@media (prefers-color-scheme: dark) {\n"
           "path { fill: #2a3038; stroke: #7b8696 }\npath.set { fill: #58a6ff }\ntext { fill: #b6c0cc }\n}\n"
           "</style>\n" +
           shapes_ + "</svg>\n";
  }

 private:
  double width_, height_;
  std::string shapes_{};
};

// The set of the nearest sample, the last channel (or group of channels) and the topmost position: in sight from here.
struct Set {
  Axes kept;
  bool has(int n, int c, int s) const {
    if (kept.has(Axis::partner)) return c >= channels - group;  // channels of a group, with each other
    return (!kept.has(Axis::sample) || n == 0) && (!kept.has(Axis::channel) || c == channels - 1) &&
           (!kept.has(Axis::group) || c >= channels - group) && (!kept.has(Axis::space) || s == 0);
  }
};

template <class Has>
void draw_block(Picture& picture, double left, double top, const Has& has) {
  const double near_y = top + samples * away_y;
  const auto x = [&](int c, int n) { return left + c * cell + n * away_x; };
  const auto y = [&](int s, int n) { return near_y + s * cell - n * away_y; };
  for (int c = 0; c < channels; ++c)
    for (int s = 0; s < positions; ++s)  // the nearest sample
      picture.quad({x(c, 0), x(c + 1, 0), x(c + 1, 0), x(c, 0)}, {y(s, 0), y(s, 0), y(s + 1, 0), y(s + 1, 0)},
                   has(0, c, s));
  for (int n = 0; n < samples; ++n) {
    for (int c = 0; c < channels; ++c)  // the topmost position
      picture.quad({x(c, n), x(c + 1, n), x(c + 1, n + 1), x(c, n + 1)}, {y(0, n), y(0, n), y(0, n + 1), y(0, n + 1)},
                   has(n, c, 0));
    for (int s = 0; s < positions; ++s)  // the last channel
      picture.quad({x(channels, n), x(channels, n + 1), x(channels, n + 1), x(channels, n)},
                   {y(s, n), y(s, n + 1), y(s + 1, n + 1), y(s + 1, n)}, has(n, channels - 1, s));
  }
  picture.text(left - 4, y(positions, 0) - 18, "space", true);
  picture.text(x(channels, samples / 2) + 4, y(positions, samples / 2) + 8, "N");
}

std::string blocks(const std::vector<Set>& sets, const std::vector<std::string>& captions, const std::string& title) {
  const double each = block_width + 3 * margin + text_height;
  Picture picture(static_cast<double>(sets.size()) * each, block_height + 2 * margin + text_height);
  for (std::size_t i = 0; i < sets.size(); ++i) {
    const double left = static_cast<double>(i) * each + margin + text_height;
    draw_block(picture, left, margin, [&](int n, int c, int s) { return sets[i].has(n, c, s); });
    picture.text(left, block_height + margin + text_height - 2, captions[i]);
  }
  return picture.svg(title);
}

// Rows of values, which lie as they lie; one of them, or one of each of two matrices.
std::string rows(const std::vector<std::string>& captions, const std::string& title) {
  constexpr int count = 5, width = 8, marked = 1;
  const double each = width * cell + 2 * margin;
  Picture picture(static_cast<double>(captions.size()) * each, count * cell + 2 * margin + text_height);
  for (std::size_t i = 0; i < captions.size(); ++i) {
    const double left = static_cast<double>(i) * each + margin;
    for (int r = 0; r < count; ++r)
      for (int k = 0; k < width; ++k) {
        const double x = left + k * cell, y = margin + r * cell;
        picture.quad({x, x + cell, x + cell, x}, {y, y, y + cell, y + cell}, r == marked);
      }
    picture.text(left, count * cell + margin + text_height - 2, captions[i]);
  }
  return picture.svg(title);
}

}  // namespace

std::string picture_of(const Row& row) {
  const std::string title(row.name);
  const Axes axes = row.statistics;
  if (row.vectors() != nullptr) return rows({"rows of input", "rows of " + std::string(row.vectors()->name)}, title);
  if (axes.has(Axis::row)) return rows({"one row of weight"}, title);
  if (axes.has(Axis::leading)) return rows({"one leading index"}, title);
  if (row.operation == OperationKind::neighbours) {
    Picture picture(block_width + 3 * margin + text_height, block_height + 2 * margin + text_height);
    const int ahead = 3;  // a window of as many channels
    draw_block(picture, margin + text_height, margin,
               [&](int n, int c, int s) { return n == 0 && s == 1 && c >= 1 && c <= 1 + ahead; });
    picture.text(margin + text_height, block_height + margin + text_height - 2, "C");
    return picture.svg(title);
  }
  if (row.operation == OperationKind::switchable)
    return blocks({{{Axis::sample, Axis::channel}}, {{Axis::sample}}, {{Axis::channel}}},
                  {"C: instance", "C: layer", "C: batch"}, title);
  return blocks({{axes}}, {"C"}, title);
}

}  // namespace allnorm::launch::page
