// All trials of some layers on one device and transport: what came out of them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "launch/ranks.hpp"
#include "launch/verify/script.hpp"

namespace allnorm::launch::verify {

/// An error in units of what rounding may do, and where it came up.
struct Place {
  double error = 0;
  std::string device{}, transport{}, dtype{}, layout{}, attributes{}, tensor{};
  int rank = 0;
  std::int64_t step = 0, value = 0;  ///< value: of the tensor, as the rank has it, in logical order
  std::string reason{};              ///< in place of an error: what kept the trial from its end
};

/// The worst value of an array, in units of what that one may be off.
struct Off {
  double error = 0;
  std::int64_t value = 0;
};
Off worst_of(const reference::Doubles& got, const reference::Doubles& want, const reference::Doubles& tolerances);

struct Outcome {
  const Row* row = nullptr;
  std::int64_t runs = 0, failed = 0;
  Place worst{};
  std::vector<Place> failures{};  ///< the first of them
};

/// How many runs a sweep of these layers has.
std::int64_t runs_of(const std::vector<const Row*>& layers);

/// Every trial of the layers with every type and layout, on the ranks of `rank`: each run is told to `tick`, by what
/// has come out of its layer so far. All ranks return the same. A run that threw is one that failed, and the next one
/// follows, but where the group is over: then it throws. An output that no run of a layer compares is a failure too.
std::vector<Outcome> sweep(const std::vector<const Row*>& layers, Rank& rank,
                           const std::function<void(const Outcome&)>& tick, const Draws& draws = {});

}  // namespace allnorm::launch::verify
