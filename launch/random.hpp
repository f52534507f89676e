// Random numbers that depend on a key alone: the same on every rank, transport and machine, and after a resume.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

namespace allnorm::launch {

/// What a stream is for; the first word of its key.
enum class Purpose : std::uint64_t { split, augment_train, augment_test, order, weights, verify };

/// A stream of numbers. Streams of different keys are independent, so nothing about the generators' state is ever
/// saved. The engine is the standard's, whose sequence is fixed; the transforms are here, as the standard's are not.
class Random {
 public:
  Random(Purpose purpose, std::initializer_list<std::uint64_t> key);

  /// In [0, 1), 53 bits.
  double uniform();
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Normal with mean 0 and deviation 1 (Box and Muller).
  double normal();
  /// In [0, n), every value equally often.
  std::uint64_t below(std::uint64_t n);
  /// Puts `items` in random order (Fisher and Yates).
  void shuffle(std::vector<std::int64_t>& items);

 private:
  std::mt19937_64 engine_;
  double spare_ = 0;  // the second of Box and Muller's two numbers
  bool has_spare_ = false;
};

}  // namespace allnorm::launch
