// Events as train and bench write them, and what is said of them in a table and on a page.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace allnorm::launch {

using Json = nlohmann::ordered_json;
using Events = std::vector<Json>;

/// With so many digits behind the point.
std::string fixed(double value, int digits);

/// What a reader of a training's results must know, line by line.
std::vector<std::string> remarks_of(const Events& events);

}  // namespace allnorm::launch
