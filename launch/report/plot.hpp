// Plots as SVG text. Colours are classes of the page's style, so that they follow its light and dark.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace allnorm::launch::pages {

struct Point {
  double x = 0, y = 0;
  double deviation = 0;  ///< a bar of twice that
};
struct Series {
  std::string name{};  ///< in the key; empty: not there
  std::vector<Point> points{};
  std::size_t colour = 0;  ///< of 7, told apart by readers who do not see red and green
  bool dashed = false;
};

struct Axis {
  std::string title{};
  bool log = false;
};
/// Lines through points; what is not finite, or not above 0 on a logarithmic axis, is left out. Nothing where no point
/// is left.
std::string lines_svg(const Axis& x, const Axis& y, const std::vector<Series>& series);

/// One horizontal bar per name and series, with its value behind it: names are long. Every series has as many points as
/// there are names; their x is not read.
std::string bars_svg(const std::string& title, const std::vector<std::string>& names,
                     const std::vector<Series>& series);

/// Text as HTML and SVG have it.
std::string escaped(std::string_view text);

}  // namespace allnorm::launch::pages
