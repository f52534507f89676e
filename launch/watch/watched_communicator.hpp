// A communicator whose exchanges are told to a watch.
#pragma once

#include <memory>

#include "allnorm/communicator.hpp"

namespace allnorm::launch {

class RankWatch;

/// `group`, and all groups that it is split into. The watch must outlive them.
std::shared_ptr<Communicator> watched(std::shared_ptr<Communicator> group, RankWatch& watch);

}  // namespace allnorm::launch
