// How a layer sees one input: its partitions and how they relate.
#pragma once

#include <cstdint>

#include "allnorm/catalogue.hpp"
#include "allnorm/partition.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

struct Plan {
  Partition norm{};        // groups that share a mean and a variance
  Partition affine{};      // groups that share a gamma
  Partition fine{};        // their common refinement, into whose coefficients gamma is folded; or norm
  Coarsening to_norm{};    // fine group -> group of norm
  Coarsening to_affine{};  // fine group -> gamma
  bool along = false;      // the refinement has groups of one value: gamma is read by each instead of folded
};

/// Throws invalid_argument where an attribute does not fit the shape, invalid_input where the shape has too few axes.
Plan plan_for(const Layer& layer, const Shape& shape, Order order);

}  // namespace allnorm
