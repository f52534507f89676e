// Seeded cases: sizes, fills, splits and the relative error.
#include "cases.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

namespace cases {

double Random::uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

std::int64_t Random::integer(std::int64_t low, std::int64_t high) {
  const auto width = static_cast<std::uint64_t>(high - low) + 1;
  return low + static_cast<std::int64_t>(engine_() % width);
}

double Random::normal() {
  constexpr double two_pi = 6.283185307179586;
  const double radius = std::sqrt(-2 * std::log(1 - uniform()));  // 1 - uniform() is never 0
  return radius * std::cos(two_pi * uniform());
}

const std::vector<Size>& sizes() {
  static const std::vector<Size> table{
      {"no sample", {0, 3, 2, 2}},
      {"no sample, no space axis", {0, 5}},
      {"no position", {2, 3, 0}},
      {"one element", {1, 1}},
      {"one element with space axes", {1, 1, 1, 1}},
      {"one value per channel", {1, 17}},
      {"one value per channel with space axes", {1, 3, 1, 1}},
      {"two values per channel", {2, 3}},
      {"one channel, no space axis", {7, 1}},
      {"no space axis, odd channels", {9, 17}},
      {"no space axis, one channel over a power of two", {5, 257}},
      {"one space axis", {3, 3, 11}},
      {"one space axis, one channel", {4, 1, 13}},
      {"two space axes", {4, 3, 5, 7}},
      {"one sample", {1, 3, 6, 6}},
      {"three space axes", {2, 3, 3, 4, 5}},
      {"a plane of exactly eight vectors of 8", {2, 4, 8, 8}},
      {"a plane one below a vector of 16", {2, 3, 15}},
      {"a plane one above a vector of 16", {2, 3, 17}},
      {"odd channels, odd plane", {3, 17, 5, 3}},
      {"many channels, tiny plane", {2, 257, 3}},
      {"a plane one above a block of 2048", {2, 3, 2049}},
      {"many samples of one position", {2051, 3}},
      {"rows of several blocks", {3, 5, 63, 65}},
  };
  return table;
}

std::vector<Size> sizes_up_to(std::int64_t limit) {
  std::vector<Size> small;
  for (const Size& size : sizes())
    if (reference::elements(size.shape) <= limit) small.push_back(size);
  return small;
}

Array normal(Random& random, Extents shape, double mean, double std) {
  Array array = reference::zeros(std::move(shape));
  for (double& v : array.v) v = mean + std * random.normal();
  return array;
}

Doubles gammas(Random& random, std::int64_t channels) {
  Doubles values(static_cast<std::size_t>(channels));
  for (double& v : values) v = random.uniform(0.5, 1.5) * (random.integer(0, 3) == 0 ? -1 : 1);
  return values;
}

Doubles betas(Random& random, std::int64_t channels) {
  Doubles values(static_cast<std::size_t>(channels));
  for (double& v : values) v = random.uniform(-1, 1);
  return values;
}

Array constant(Extents shape, double value) {
  Array array = reference::zeros(std::move(shape));
  std::fill(array.v.begin(), array.v.end(), value);
  return array;
}

Array channelwise(Random& random, Extents shape, double mean, double std) {
  Array array = reference::zeros(std::move(shape));
  const std::int64_t samples = array.shape.at(0), channels = array.shape.at(1);
  const std::int64_t space = reference::elements(Extents(array.shape.begin() + 2, array.shape.end()));
  Doubles means, stds;  // (C)
  for (std::int64_t c = 0; c < channels; ++c) {
    means.push_back(mean + 2 * std * random.normal());
    stds.push_back(std * random.uniform(0.5, 2));
  }
  std::size_t i = 0;
  for (std::int64_t n = 0; n < samples; ++n)
    for (std::size_t c = 0; c < means.size(); ++c)
      for (std::int64_t s = 0; s < space; ++s) array.v[i++] = means[c] + stds[c] * random.normal();
  return array;
}

Array rounded_to_float(Array array) {
  for (double& v : array.v) v = static_cast<double>(static_cast<float>(v));
  return array;
}

std::vector<float> as_floats(const Array& array) {
  std::vector<float> floats;
  for (const double v : array.v) floats.push_back(static_cast<float>(v));
  return floats;
}

std::vector<std::int64_t> split(Random& random, std::int64_t n, int ranks) {
  const auto k = static_cast<std::size_t>(ranks);
  std::vector<std::size_t> places;  // in drawn order
  for (std::size_t r = 0; r < k; ++r) {
    const auto at = random.integer(0, static_cast<std::int64_t>(r));
    places.insert(places.begin() + at, r);
  }
  const std::size_t empty = k >= 3 ? 1 : 0;
  const std::size_t single = k >= 2 && n >= 1 ? 1 : 0;
  std::vector<std::int64_t> counts(k, 0);
  std::int64_t left = n;
  if (single == 1) {
    counts[places[empty]] = 1;
    left -= 1;
  }
  for (std::size_t i = empty + single; i + 1 < k; ++i) {
    counts[places[i]] = random.integer(0, left);
    left -= counts[places[i]];
  }
  counts[places[k - 1]] += left;
  return counts;
}

Ranks cut(const Array& whole, const std::vector<std::int64_t>& counts) {
  const auto sample = reference::elements(Extents(whole.shape.begin() + 1, whole.shape.end()));
  Ranks parts;
  auto from = whole.v.begin();
  for (const std::int64_t n : counts) {
    if (n * sample > whole.v.end() - from) throw std::invalid_argument("cut: more samples than there are");
    Array part{whole.shape, Doubles(from, from + n * sample)};
    part.shape[0] = n;
    parts.push_back(std::move(part));
    from += n * sample;
  }
  if (from != whole.v.end()) throw std::invalid_argument("cut: samples left over");
  return parts;
}

Ranks scatter(Random& random, const Array& whole, int ranks) {
  return cut(whole, split(random, whole.shape.at(0), ranks));
}

double relative_error(const Doubles& a, const Doubles& b) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (a.size() != b.size()) return infinity;
  double difference = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) {
      if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
      return infinity;
    }
    difference = std::max(difference, std::abs(a[i] - b[i]));
    largest = std::max(largest, std::abs(b[i]));
  }
  return largest > 0 ? difference / largest : difference;
}

double relative_error(const Array& a, const Array& b) {
  return a.shape == b.shape ? relative_error(a.v, b.v) : std::numeric_limits<double>::infinity();
}

double relative_error(const Ranks& a, const Ranks& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  Doubles all_a, all_b;
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (a[k].shape != b[k].shape) return std::numeric_limits<double>::infinity();
    all_a.insert(all_a.end(), a[k].v.begin(), a[k].v.end());
    all_b.insert(all_b.end(), b[k].v.begin(), b[k].v.end());
  }
  return relative_error(all_a, all_b);
}

}  // namespace cases
