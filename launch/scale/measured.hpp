// The sweep on this machine: bench, once for each point and repeat, in processes of its own.
#pragma once

#include <cstdint>

#include "launch/scale/sweep_file.hpp"

namespace allnorm::launch::scale {

/// Makes all runs whose rows the file lacks. Throws what bench said where it failed.
void measure(const Plan& plan, SweepFile& file);

/// Starts `allnorm bench` with these words, under mpirun where `transport` is mpi, and returns its events. Each run is
/// a job as a user would start it: no rank of a larger job waits beside it for its turn. Throws what it said where it
/// failed.
enum class Exchanges : std::uint8_t { as_they_are, by_messages };  ///< the latter as between hosts
std::vector<Json> run_bench(Arguments words, const std::string& transport, std::int64_t ranks,
                            Exchanges exchanges = Exchanges::as_they_are);

}  // namespace allnorm::launch::scale
