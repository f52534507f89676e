// The operations that rows of the catalogue can make, one maker each.
#pragma once

#include "allnorm/operation.hpp"

namespace allnorm {

using OperationMaker = std::unique_ptr<Operation>(const Layer& layer, std::int64_t channels,
                                                  std::shared_ptr<Communicator> group, Queue& queue, std::string name);

OperationMaker make_norm_operation;  // src/norm_operation.cpp

}  // namespace allnorm
