// What a layer takes its statistics over, as a small picture.
#pragma once

#include <string>

#include "allnorm/catalogue.hpp"

namespace allnorm::launch::page {

/// An SVG image of the values of an input, with one of the sets that share statistics marked; of a layer that mixes
/// norms one of each.
std::string picture_of(const Row& row);

}  // namespace allnorm::launch::page
