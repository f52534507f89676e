// What the tests of the kernels share: walled tensors, the partitions and activations they run over, rounding units.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/dtype.hpp"
#include "allnorm/partition.hpp"
#include "backend.hpp"
#include "kernels/ops.hpp"

namespace allnorm::kernel_test {

inline constexpr double eps64 = std::numeric_limits<double>::epsilon();
/// Half a unit in the last place, relative: of what a map over T is computed in, and of what it is stored in.
template <class T>
inline constexpr double compute_unit = static_cast<double>(std::numeric_limits<compute_t<T>>::epsilon()) / 2;
template <class T>
inline constexpr double store_unit = std::is_same_v<T, f16>    ? 0x1p-11
                                     : std::is_same_v<T, bf16> ? 0x1p-8
                                                               : compute_unit<T>;
inline constexpr double store_floor = 0x1p-25;  // half the least subnormal of f16

/// Values of T between walls of NaN, that show a read outside as NaN and a write outside as a damaged wall.
template <class T>
class Walled {
 public:
  explicit Walled(std::int64_t size) : data_(static_cast<std::size_t>(size + 2 * wall), nan()), size_(size) {}
  T* data() { return data_.data() + wall; }
  const T* data() const { return data_.data() + wall; }
  std::int64_t size() const { return size_; }
  double operator[](std::int64_t i) const { return static_cast<double>(load(data()[i])); }
  void set(std::int64_t i, double value) { data()[i] = store<T>(static_cast<compute_t<T>>(value)); }
  bool intact() const {
    const T expected = nan();
    for (std::int64_t i = 0; i < wall; ++i)
      for (const std::int64_t at : {i, wall + size_ + i})
        if (std::memcmp(&data_[static_cast<std::size_t>(at)], &expected, sizeof(T)) != 0) return false;
    return true;
  }
  bool same_bits(const Walled& other) const {
    return size_ == 0 || std::memcmp(data(), other.data(), static_cast<std::size_t>(size_) * sizeof(T)) == 0;
  }

 private:
  static constexpr std::int64_t wall = 64;
  static T nan() { return store<T>(std::numeric_limits<compute_t<T>>::quiet_NaN()); }
  backend::Array<T> data_;
  std::int64_t size_;
};

template <class T>
Walled<T> normal(std::int64_t size, unsigned seed, double mean = 0.0, double deviation = 1.0) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> draw(mean, deviation);
  Walled<T> values(size);
  for (std::int64_t i = 0; i < size; ++i) values.set(i, draw(engine));
  return values;
}

inline std::string text(const Partition& p) {
  return std::to_string(p.keep0) + "x" + std::to_string(p.reduce0) + "x" + std::to_string(p.keep1) + "x" +
         std::to_string(p.reduce1);
}

/// Vectors, tails, tiles of columns, blocks, parts, short runs as columns, both kept extents above 1, and empty ones.
inline const Partition partitions[] = {
    {1, 5, 3, 49},   {1, 33, 17, 1}, {1, 300, 257, 1}, {2, 7, 3, 1},     {3, 40, 4, 2},     {2, 70, 5, 16},
    {1, 1, 7, 3},    {1, 1, 5, 257}, {1, 2, 3, 5000},  {1, 1, 1, 1},     {4, 1, 3, 1},      {2, 3, 4, 33},
    {1, 3000, 2, 1}, {1, 1, 64, 1},  {1, 9, 1030, 1},  {1, 3, 2, 70000}, {1, 150000, 3, 1}, {1, 900, 37, 16},
    {5, 17, 1, 3},   {1, 0, 3, 5},   {0, 2, 3, 5},     {1, 4, 0, 3},     {2, 3, 4, 0}};
inline const Activation activations[] = {{}, {ActivationKind::relu, 0.0}, {ActivationKind::leaky_relu, 0.125}};

inline double activated(double z, const Activation& a) {
  if (a.kind == ActivationKind::identity || z > 0) return z;
  return a.kind == ActivationKind::relu ? 0.0 : a.slope * z;
}

/// Coefficients of every group, all of them different.
struct Coefficients {
  Walled<double> center, scale, shift, gain, slope, offset;
  explicit Coefficients(std::int64_t groups)
      : center(normal<double>(groups, 11, 0.4, 0.3)),
        scale(normal<double>(groups, 12)),
        shift(normal<double>(groups, 13)),
        gain(normal<double>(groups, 14)),
        slope(normal<double>(groups, 15)),
        offset(normal<double>(groups, 16)) {}
};

/// Bit i%8 of byte i/8 = !(y[i] <= 0): what backward needs of an activation.
template <class T>
backend::Array<std::uint8_t> sign_mask(const Walled<T>& y) {
  backend::Array<std::uint8_t> mask(static_cast<std::size_t>((y.size() + 7) / 8));
  for (std::int64_t i = 0; i < y.size(); ++i)
    if (!(y[i] <= 0)) mask[static_cast<std::size_t>(i / 8)] |= static_cast<std::uint8_t>(1U << (i % 8));
  return mask;
}

/// A function of the backend that waits for its work, so that the host may look at the result.
template <class Args>
struct Call {
  void (*function)(const Args&, Queue&);
  void operator()(const Args& args, Queue& queue) const {
    function(args, queue);
    queue.wait();
  }
};
struct Calls {
  Call<MomentsArgs> moments;
  Call<ApplyArgs> apply;
  Call<MomentsGradArgs> moments_grad;
  Call<AffineGradArgs> affine_grad;
  Call<ApplyGradArgs> apply_grad;
  Call<PatchSumsArgs> patch_sums;
};
inline Calls calls_of(const Queue& queue) {
  const Ops& ops = queue.ops();
  return {{ops.moments},          {ops.apply},      {ops.moments_grad},
          {backend::affine_grad}, {ops.apply_grad}, {backend::patch_sums}};
}

/// A test of every element type, with a queue of the program's device (on the CPU: of two threads).
template <class T>
struct OverTypes : testing::Test {
  Queue queue = backend::queue(2);
  const Calls ops = calls_of(queue);
};
using Types = testing::Types<double, float, f16, bf16>;

}  // namespace allnorm::kernel_test
