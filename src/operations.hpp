// The operations that rows of the catalogue can make, one maker each, and what they share.
#pragma once

#include <string>
#include <string_view>

#include "allnorm/operation.hpp"
#include "src/failures.hpp"

namespace allnorm {

using OperationMaker = std::unique_ptr<Operation>(const Layer& layer, std::int64_t channels,
                                                  std::shared_ptr<Communicator> group, Queue& queue, std::string name);

OperationMaker make_adaptive_operation;     // src/adaptive_operation.cpp
OperationMaker make_conditional_operation;  // src/conditional_operation.cpp
OperationMaker make_cosine_operation;       // src/cosine_operation.cpp
OperationMaker make_maps_operation;         // src/maps_operation.cpp
OperationMaker make_neighbours_operation;   // src/neighbours_operation.cpp
OperationMaker make_norm_operation;         // src/norm_operation.cpp
OperationMaker make_switchable_operation;   // src/switchable_operation.cpp
OperationMaker make_weight_operation;       // src/weight_operation.cpp
OperationMaker make_whitening_operation;    // src/whitening_operation.cpp

}  // namespace allnorm
