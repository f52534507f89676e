// The optional parts of this build, for people.
#pragma once

#include <string>
#include <string_view>

#include "build_config.hpp"

namespace allnorm::launch {

bool has_part(std::string_view name);
/// What gives a part that this build lacks; empty where nothing is known.
std::string_view remedy_of(const build::Part& part);
/// What was found of it, or why it was not and what to do.
std::string explain(const build::Part& part);

}  // namespace allnorm::launch
