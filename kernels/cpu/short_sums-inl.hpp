// Short sums: a few terms are added in f32 and these sums in double, so that values of 16 bits need not be widened
// twice one by one. What f32 was not enough for, the kernels sum again in double. Compiled once per Highway target.
#if defined(ALLNORM_KERNELS_CPU_SHORT_SUMS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ALLNORM_KERNELS_CPU_SHORT_SUMS_INL
#undef ALLNORM_KERNELS_CPU_SHORT_SUMS_INL
#else
#define ALLNORM_KERNELS_CPU_SHORT_SUMS_INL
#endif

#include <cmath>
#include <limits>

#include "kernels/cpu/grid.hpp"
#include "kernels/cpu/vectors-inl.hpp"

#ifndef ALLNORM_KERNELS_CPU_SHORT_SUMS_ONCE
#define ALLNORM_KERNELS_CPU_SHORT_SUMS_ONCE
namespace allnorm::cpu {

constexpr std::int64_t short_sum = 8;  // terms that are added in f32; a GPU's kernels: as many

// Whether f32 was enough. Products of a smaller sum may have been rounded as subnormal numbers, or to 0, and count; a
// larger one has left the range.
constexpr double least_sum = 0x1p-80, most_sum = std::numeric_limits<float>::max();
/// For squares of distances from a pivot, with their sum about the mean, m2: what is rounded are the squares, and m2 is
/// what is left of them where the pivot is far from the mean. It is one of the values, so that few are.
constexpr double least_spread = 1.0 / 16;
inline bool is_enough(double squares, double m2) noexcept {
  return squares >= least_sum && squares <= most_sum && m2 >= least_spread * squares;
}
/// For sums of g and of g times a distance (and of what a level takes, or 0).
inline bool is_enough(double g, double gx, double level) noexcept {
  return std::fabs(g) <= most_sum && std::fabs(level) <= most_sum && std::fabs(gx) >= least_sum &&
         std::fabs(gx) <= most_sum;
}

}  // namespace allnorm::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace allnorm::cpu::HWY_NAMESPACE {

/// Of values of 16 bits, where a vector of floats has more lanes than one of doubles. Those of f32 have digits that
/// short sums would lose: a variance right to 1e-7 where the mean is ten thousand deviations.
template <class T>
constexpr bool has_short_sums = sizeof(T) == 2 && HWY_TARGET != HWY_SCALAR;

/// is_enough for the groups of a vector.
HWY_INLINE hn::Mask<DoubleTag> are_enough(Vec<DoubleTag> squares, Vec<DoubleTag> m2) {
  const DoubleTag dd;
  return hn::And(hn::And(hn::Ge(squares, hn::Set(dd, least_sum)), hn::Le(squares, hn::Set(dd, most_sum))),
                 hn::Ge(m2, hn::Mul(hn::Set(dd, least_spread), squares)));
}

/// The lanes of a vector of floats in two vectors of doubles.
template <class D>
HWY_INLINE Vec<DoubleTag> lower_doubles(D, Vec<D> value) {
  return hn::PromoteTo(DoubleTag(), hn::LowerHalf(value));
}
template <class D>
HWY_INLINE Vec<DoubleTag> upper_doubles(D, Vec<D> value) {
#if HWY_TARGET == HWY_SCALAR
  return hn::PromoteTo(DoubleTag(), value);  // not called: there is no other half
#else
  return hn::PromoteTo(DoubleTag(), hn::UpperHalf(hn::Half<D>(), value));
#endif
}
/// Adds the lanes to sums of their own.
template <class D>
HWY_INLINE void add_wide(D d, Vec<D> value, double* sums) {
  const DoubleTag dd;
  const std::int64_t n = lanes(dd);
  write(dd, hn::Add(read(dd, sums), lower_doubles(d, value)), sums);
  write(dd, hn::Add(read(dd, sums + n), upper_doubles(d, value)), sums + n);
}

/// Two sums of a group, or three.
template <class V, bool has_third = false>
struct Terms {
  V first, second;
};
template <class V>
struct Terms<V, true> {
  V first, second, third;
};
template <bool has_third = false, class D>
HWY_INLINE Terms<Vec<D>, has_third> no_terms(D d) {
  if constexpr (has_third)
    return {hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  else
    return {hn::Zero(d), hn::Zero(d)};
}
/// Of vectors of D, short_sum of them at a time; what is over of several runs goes together.
template <class D, bool has_third = false>
class ShortSums {
  using Vectors = Terms<Vec<D>, has_third>;

 public:
  HWY_INLINE ShortSums() : over_(no_terms<has_third>(D())), totals_(no_terms<has_third>(DoubleTag())) {}

  /// Adds the terms over 0 <= i < length: add_whole(i, terms) those of the vector at i, add_first(i, rest, terms) of
  /// its first lanes.
  template <class AddWhole, class AddFirst>
  HWY_INLINE void add(std::int64_t length, const AddWhole& add_whole, const AddFirst& add_first) {
    const std::int64_t n = lanes(D());
    std::int64_t i = 0;
    for (; i + short_sum * n <= length; i += short_sum * n) {
      auto terms = no_terms<has_third>(D());
      for (std::int64_t u = 0; u < short_sum; ++u) add_whole(i + u * n, terms);
      totals_ = with(terms);
    }
    for (; i < length; i += n) {
      if (i + n <= length)
        add_whole(i, over_);
      else
        add_first(i, length - i, over_);
      if (++count_ == short_sum) totals_ = with(over_), over_ = no_terms<has_third>(D()), count_ = 0;
    }
  }
  HWY_INLINE Terms<double, has_third> totals() const {
    const auto all = with(over_);
    if constexpr (has_third)
      return {sum_of_lanes(all.first), sum_of_lanes(all.second), sum_of_lanes(all.third)};
    else
      return {sum_of_lanes(all.first), sum_of_lanes(all.second)};
  }

 private:
  HWY_INLINE Terms<Vec<DoubleTag>, has_third> with(const Vectors& terms) const {
    const auto add = [](Vec<DoubleTag> total, Vec<D> value) HWY_ATTR {
      return hn::Add(total, hn::Add(lower_doubles(D(), value), upper_doubles(D(), value)));
    };
    auto totals = totals_;
    totals.first = add(totals.first, terms.first), totals.second = add(totals.second, terms.second);
    if constexpr (has_third) totals.third = add(totals.third, terms.third);
    return totals;
  }

  Vectors over_;
  Terms<Vec<DoubleTag>, has_third> totals_;
  std::int64_t count_ = 0;  // of the terms in over_
};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace allnorm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
