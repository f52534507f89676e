// The links between ranks that are threads of one process.
#pragma once

#include <memory>
#include <vector>

#include "src/exchange.hpp"

namespace allnorm {

/// [r] for rank r, what threads() makes its communicators of. Throws invalid_argument for ranks < 1.
std::vector<std::shared_ptr<Links>> thread_links(int ranks);

}  // namespace allnorm
