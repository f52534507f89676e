// Running statistics and the pivot of the batch_norm family.
#pragma once

#include <cstdint>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/options.hpp"
#include "allnorm/state.hpp"
#include "history.hpp"

namespace allnorm {

struct Running {
  Buffer<double> mean{};        // (C)
  Buffer<double> spread{};      // (C) the variance, or sigma where the layer keeps that
  std::int64_t tracked = 0;     // updates so far
  std::vector<double> pivot{};  // (C) mean of the last committed training call
  std::int64_t calls = 0;       // training calls that were not empty: what renorm's ramps count
};

/// The running statistics after `values` (section 1), written to next_mean and next_spread (C).
void advance(const Running& running, const RunningValues& values, const NormOptions& options, bool keeps_std,
             Buffer<double>& next_mean, Buffer<double>& next_spread);

/// running_spread as a standard deviation with eps: sigma itself, or sqrt(var + eps).
double running_sigma(const Running& running, std::size_t channel, double eps, bool keeps_std) noexcept;

void save(const Running& running, bool keeps_std, State& state);
/// Checks and reads; throws invalid_input before `running` changes.
void load(Running& running, bool keeps_std, const State& state);

}  // namespace allnorm
