// The page that shows a training's results.
#pragma once

#include <string>

#include "launch/train/events.hpp"

namespace allnorm::launch::train {

/// One self-contained HTML page: tables, and plots as inline SVG where gnuplot can be run. Otherwise the page says that
/// it has none.
std::string report_page(const Events& events);

}  // namespace allnorm::launch::train
