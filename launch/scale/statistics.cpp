#include "launch/scale/statistics.hpp"

#include <cmath>
#include <cstddef>
#include <iterator>

namespace allnorm::launch::scale {

namespace {

// Of Student's distribution, two-sided at 95 %. Beyond the table three terms of its expansion in 1 / n, to 0.002.
double student(std::size_t freedom) {
  constexpr double table[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228};
  if (freedom <= std::size(table)) return table[freedom - 1];
  constexpr double z = 1.959964, z3 = z * z * z, z5 = z3 * z * z;
  const auto n = static_cast<double>(freedom);
  return z + (z3 + z) / (4 * n) + (5 * z5 + 16 * z3 + 3 * z) / (96 * n * n);
}

double residual_of(const LatencyBandwidth& model, const std::vector<Sample>& samples) {
  double squares = 0;
  for (const Sample& s : samples) squares += std::pow(1 - model.at(s.bytes) / s.us, 2);
  return std::sqrt(squares / static_cast<double>(samples.size()));
}

}  // namespace

Interval interval_of(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (const double value : values) mean += std::log(value) / count;
  for (const double value : values) squares += std::pow(std::log(value) - mean, 2);
  if (values.size() < 2) return {std::exp(mean), {}, {}};
  const double half = student(values.size() - 1) * std::sqrt(squares / (count - 1) / count);
  return {std::exp(mean), std::exp(mean - half), std::exp(mean + half)};
}

std::optional<LatencyBandwidth> fit(const std::vector<Sample>& samples) {
  double w = 0, wx = 0, wxx = 0, wy = 0, wxy = 0;  // weights are 1 / us^2
  bool differ = false;
  for (const Sample& s : samples) {
    const double weight = 1 / (s.us * s.us);
    w += weight;
    wx += weight * s.bytes;
    wxx += weight * s.bytes * s.bytes;
    wy += weight * s.us;
    wxy += weight * s.bytes * s.us;
    differ |= s.bytes != samples.front().bytes;
  }
  if (!differ) return {};
  LatencyBandwidth model;
  model.us_per_byte = (w * wxy - wx * wy) / (w * wxx - wx * wx);
  model.latency_us = (wy - wx * model.us_per_byte) / w;
  if (model.us_per_byte < 0) model = {wy / w, 0, 0};
  if (model.latency_us < 0) model = {0, wxy / wxx, 0};
  model.residual = residual_of(model, samples);
  return model;
}

}  // namespace allnorm::launch::scale
