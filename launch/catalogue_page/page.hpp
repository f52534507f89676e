// docs/catalogue.md, made from the catalogue.
#pragma once

#include <string>

namespace allnorm::launch::page {

/// The page; pictures are catalogue/NAME.svg beside it.
std::string catalogue_page();

}  // namespace allnorm::launch::page
