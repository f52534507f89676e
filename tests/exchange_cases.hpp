// What every transport must do, as functions of one rank: threads and MPI run the same ones.
#pragma once

#include "harness.hpp"

namespace exchange_cases {

/// Sums of 0, 1, 7 and 5000 whole numbers are exact, and flags are united.
void sums_are_exact(const harness::World& world, allnorm::Queue& queue);
/// Sums of numbers of very different size have the bits of adding in rank order.
void sums_are_in_rank_order(const harness::World& world, allnorm::Queue& queue);
/// Moments at the front of a message are merged in rank order, squares and blocks of products; ranks without values add
/// nothing to them, a NaN stays in its group, and the rest of the payload is added.
void moments_are_merged(const harness::World& world, allnorm::Queue& queue);
/// Several exchanges in flight, large and small, of two groups, asked for in another order, come out right.
void exchanges_overlap(const harness::World& world, allnorm::Queue& queue);
/// Halves, then pairs within them; every subgroup adds its own and the world still works.
void splits_are_independent(const harness::World& world, allnorm::Queue& queue);
/// A rank that cannot take part says so and why, to every peer, and the group goes on.
void a_rank_may_decline(const harness::World& world, allnorm::Queue& queue);
/// Every rank is told which rank differs, and how, for fields, lengths, names, directions and calls.
void mismatches_are_named(const harness::World& world, allnorm::Queue& queue);

}  // namespace exchange_cases
