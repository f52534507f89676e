// Seeded cases that the tests share: sizes by the edge that each is for, fills, splits over ranks, and the one error.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "launch/reference/reference.hpp"

namespace cases {

using reference::Array;
using reference::Doubles;
using reference::Ranks;
using Extents = std::vector<std::int64_t>;

/// A source of numbers that gives the same ones with every standard library: only the engine, whose sequence the
/// standard fixes, is the library's.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  /// In [0, 1), 53 bits.
  double uniform();
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// In [low, high], both included.
  std::int64_t integer(std::int64_t low, std::int64_t high);
  double normal();

 private:
  std::mt19937_64 engine_;
};

/// A shape (N, C, space...) and the edge that it stands for.
struct Size {
  const char* edge;
  Extents shape;
};
/// From no element to a few ten thousand, with and without space.
const std::vector<Size>& sizes();
/// The rows of sizes() with at most `limit` elements, for what costs elements squared (central differences).
std::vector<Size> sizes_up_to(std::int64_t limit);

/// Normally distributed values.
Array normal(Random& random, Extents shape, double mean = 0, double std = 1);
/// (C) values of magnitude 0.5 to 1.5, about one in four negative: no channel vanishes in a comparison.
Doubles gammas(Random& random, std::int64_t channels);
/// (C) values in [-1, 1).
Doubles betas(Random& random, std::int64_t channels);
/// The same value everywhere: variance 0.
Array constant(Extents shape, double value);
/// Values with a mean and a deviation of its own in every channel: mean + 2 * std * N(0,1), std * U(0.5, 2).
Array channelwise(Random& random, Extents shape, double mean = 0, double std = 1);

/// Every value rounded to a float, so that a test in single precision and the oracle read the same input.
Array rounded_to_float(Array array);
std::vector<float> as_floats(const Array& array);

/// n samples over `ranks` ranks, unevenly. Of three ranks or more one gets nothing, and of two or more another one gets
/// a single sample (where n allows it); the places are drawn.
std::vector<std::int64_t> split(Random& random, std::int64_t n, int ranks);
/// The samples of `whole` cut into counts[0], counts[1], ... along axis 0; they sum to N.
Ranks cut(const Array& whole, const std::vector<std::int64_t>& counts);
/// cut with a drawn split.
Ranks scatter(Random& random, const Array& whole, int ranks);

/// max|a - b| / max|b|, or max|a - b| where b is 0 throughout. Infinite when the sizes differ or where one of the two
/// is not finite and the other is not the same.
double relative_error(const Doubles& a, const Doubles& b);
double relative_error(const Array& a, const Array& b);
/// Over the concatenation of the ranks.
double relative_error(const Ranks& a, const Ranks& b);

}  // namespace cases
