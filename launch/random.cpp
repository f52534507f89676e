// Random numbers that depend on a key alone.
#include "launch/random.hpp"

#include <cmath>
#include <numbers>
#include <utility>

namespace allnorm::launch {
namespace {

// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): neighbouring keys give unrelated seeds.
std::uint64_t mix(std::uint64_t word) {
  word += 0x9e3779b97f4a7c15u;
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
  return word ^ (word >> 31);
}

std::uint64_t seed_of(Purpose purpose, std::initializer_list<std::uint64_t> key) {
  std::uint64_t seed = mix(static_cast<std::uint64_t>(purpose));
  for (const std::uint64_t word : key) seed = mix(seed ^ word);
  return seed;
}

}  // namespace

Random::Random(Purpose purpose, std::initializer_list<std::uint64_t> key) : engine_(seed_of(purpose, key)) {}

double Random::uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

double Random::normal() {
  if (std::exchange(has_spare_, false)) return spare_;
  const double radius = std::sqrt(-2 * std::log(1 - uniform()));  // of (0, 1]
  const double angle = 2 * std::numbers::pi * uniform();
  spare_ = radius * std::sin(angle);
  has_spare_ = true;
  return radius * std::cos(angle);
}

std::uint64_t Random::below(std::uint64_t n) {
  const std::uint64_t uneven = (0 - n) % n;  // 2^64 mod n values would come up once more often than the others
  std::uint64_t word = engine_();
  while (word < uneven) word = engine_();
  return word % n;
}

void Random::shuffle(std::vector<std::int64_t>& items) {
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
}

}  // namespace allnorm::launch
