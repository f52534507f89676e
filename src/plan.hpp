// How a layer sees one input: its partitions and how they relate.
#pragma once

#include <cstdint>

#include "allnorm/catalogue.hpp"
#include "allnorm/partition.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

struct Plan {
  Partition norm{};             // groups that share a mean and a variance
  Partition fine{};             // common refinement of `norm` and the affine's partition
  Coarsening to_norm{};         // fine group -> group of norm
  Coarsening to_affine{};       // fine group -> parameter
  std::int64_t parameters = 0;  // gammas
  bool rows = false;            // one gamma per column of a row instead: `fine` is unused
};

/// Throws invalid_argument where an attribute does not fit the shape, invalid_input where the shape has too few axes.
Plan plan_for(const Layer& layer, const Shape& shape, Order order);

}  // namespace allnorm
