// What a few measurements say, and how surely.
#pragma once

#include <optional>
#include <vector>

namespace allnorm::launch::scale {

/// A geometric mean and, of two values or more, its interval at 95 %: of values whose logarithms scatter normally, by
/// Student's t.
struct Interval {
  double mean = 0;
  std::optional<double> low{}, high{};
};
/// Of values above 0, at least one.
Interval interval_of(const std::vector<double>& values);

/// time = latency + bytes / bandwidth.
struct LatencyBandwidth {
  double latency_us = 0, us_per_byte = 0;
  double residual = 0;  ///< root of the mean square of (measured - fitted) / measured

  double at(double bytes) const noexcept { return latency_us + bytes * us_per_byte; }
};
struct Sample {
  double bytes = 0, us = 0;
};
/// Least squares of the relative residuals; neither term is below 0. Nothing without two different sizes.
std::optional<LatencyBandwidth> fit(const std::vector<Sample>& samples);

}  // namespace allnorm::launch::scale
