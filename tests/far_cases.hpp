// Data far from 0: ranks together against one rank on all of it, within what doubles can hold. The same body for
// threads, MPI and GPUs.
#pragma once

#include <vector>

#include "allnorm/dtype.hpp"
#include "harness.hpp"

namespace far_cases {

/// What one rank computed, to compare bits.
using Trace = std::vector<double>;

/// sync_batch_norm of this rank's part of batches whose |mean|/std goes up to what the type allows (1e8 in f64): a
/// first call, a jump of the mean, one that is spoiled by a NaN in one channel, and one value per rank; uneven parts,
/// on rank 0 none; a constant channel. Mean, var, y and dx against a lone rank's. All ranks have the same bits.
Trace check(allnorm::DType dtype, const harness::World& world, allnorm::Queue& queue);

}  // namespace far_cases
