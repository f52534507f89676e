// Plots as SVG text, drawn by gnuplot.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace allnorm::launch::train {

/// Draws a gnuplot script (without its terminal) as SVG of that many pixels. Nothing where gnuplot cannot be run. The
/// result can stand in an HTML page: no XML declaration, ids that start with `name`.
std::optional<std::string> draw_svg(std::string_view name, const std::string& script, int width, int height);

/// A colour for the i-th of several series: told apart also by readers who do not see red and green.
std::string_view series_colour(std::size_t i) noexcept;

/// Text as a gnuplot string with its quotes; special characters of enhanced text are kept as they are.
std::string plot_text(std::string_view text);

/// A name for an inline data block of a script.
std::string block_name(std::string_view stem, std::size_t i);

}  // namespace allnorm::launch::train
