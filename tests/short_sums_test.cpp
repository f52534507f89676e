// Short sums (kernels/cpu/short_sums-inl.hpp) of data for which f32 is not enough: what is summed again in double is as
// near to a plain loop as sums in double are. By every set of instructions that the kernels have and this machine too.
#include <gtest/gtest.h>

#include "kernels/cpu/targets.hpp"
// After targets.hpp, which says what the kernels are compiled for.
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels_support.hpp"

namespace allnorm::kernel_test {
namespace {

template <class T>
constexpr bool is_wide = std::is_same_v<T, bf16>;  // has the range of f32: f16's squares and products never leave that
template <class T>
constexpr double largest = is_wide<T> ? 0x1.fep127 : 65504.0;
template <class T>
constexpr double least = is_wide<T> ? 0x1p-133 : 0x1p-24;

// What sums are off by, of the sizes of their terms. In f32, u = 2^-24: a distance from a pivot or center is rounded
// once, each product (twice of a square) and up to eight additions.
constexpr double in_f32 = 11 * 0x1p-24;
/// In double likewise, with n additions; eps64 is twice the half unit.
double in_double(double n) { return (n + 8) * eps64; }

template <class T>
struct ShortSums : testing::Test {
  Queue queue = backend::queue(1);
  const Calls ops = calls_of(queue);

  ~ShortSums() override { use(0); }
  /// Highway's targets; 0: all that there are.
  static void use(std::int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().DeInit();  // the next call chooses
  }
  template <class Body>
  static void for_targets(const Body& body) {
    use(0);
    for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
      SCOPED_TRACE(hwy::TargetName(target));
      use(target);
      body();
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  /// unit(group): what f32 adds to the error, in_f32 or 0.
  template <class Unit>
  void expect_moments(const Walled<T>& x, const Partition& p, const Unit& unit) {
    struct Group {
      long double n = 0, first = 0, mean = 0, m2 = 0, distances = 0, squares = 0;
    };
    std::vector<Group> groups(static_cast<std::size_t>(p.groups()));
    const auto each = [&](const auto& body) {
      for (std::int64_t i = 0; i < x.size(); ++i) body(groups[static_cast<std::size_t>(p.group_of(i))], x[i]);
    };
    each([](Group& g, long double v) {
      if (g.n++ == 0) g.first = v;
      g.mean += v - g.first, g.distances += std::abs(v - g.first), g.squares += (v - g.first) * (v - g.first);
    });
    for (Group& g : groups) g.mean = g.first + g.mean / g.n;
    each([](Group& g, long double v) { g.m2 += (v - g.mean) * (v - g.mean); });
    for_targets([&] {
      Walled<double> mean(p.groups()), m2(p.groups());
      ops.moments({x.data(), dtype_of<T>(), p, mean.data(), m2.data()}, queue);
      EXPECT_TRUE(mean.intact() && m2.intact());
      for (std::int64_t i = 0; i < p.groups(); ++i) {
        const Group& g = groups[static_cast<std::size_t>(i)];
        const auto truth = static_cast<double>(g.mean), n = static_cast<double>(g.n);
        const double off = unit(i) + in_double(n);
        ASSERT_NEAR(mean[i], truth, off * static_cast<double>(g.distances) / n + 2 * eps64 * std::abs(truth)) << i;
        // squares - sum^2/n, which is the smaller one; it is off by twice as much as the sum
        ASSERT_NEAR(m2[i], static_cast<double>(g.m2), 3 * off * static_cast<double>(g.squares)) << i;
      }
    });
  }
};
using ShortTypes = testing::Types<f16, bf16>;
TYPED_TEST_SUITE(ShortSums, ShortTypes);

/// Along runs and along columns, around vectors (of 2 to 16 values), short sums (8 vectors, or rows), blocks (about
/// 2048 values of runs, 512 rows of columns), tiles (512 columns) and parts. Above 16 values in every group's first
/// block.
std::vector<Partition> cuts() {
  std::vector<Partition> all;
  for (const std::int64_t length : {17, 31, 33, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 4097}) {
    all.push_back({1, 1, 3, length});
    all.push_back({1, 3, 2, length});
  }
  for (const std::int64_t columns : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 511, 513}) all.push_back({1, 17, columns, 1});
  for (const std::int64_t rows : {24, 31, 511, 512, 513, 1030}) all.push_back({1, rows, 9, 1});
  for (const Partition& p : {Partition{3, 40, 9, 1}, Partition{1, 200, 5, 4}, Partition{2, 70, 3, 16},
                             Partition{1, 1, 2, 140000}, Partition{1, 9000, 3, 1}})
    all.push_back(p);
  return all;
}
bool is_by_columns(const Partition& p) { return p.reduce1 <= 16; }
/// Of every value, how many of its group lie before it.
std::vector<std::int64_t> places_of(const Partition& p) {
  std::vector<std::int64_t> places, seen(static_cast<std::size_t>(p.groups()));
  for (std::int64_t i = 0; i < p.elements(); ++i) places.push_back(seen[static_cast<std::size_t>(p.group_of(i))]++);
  return places;
}

// A value far from such ones has distances of 15 digits. Their squares, and sums of eight of these, are all rounded
// down in f32, together by 2.1u: where that value is the pivot, m2 is one of n - 1 squares, and off by 2.1(n - 1)u.
constexpr double near_value = 0x1.f8p-6, far_value = 1;

TYPED_TEST(ShortSums, MomentsWhereFirstValuesLieFarFromTheRest) {
  using T = TypeParam;
  for (const Partition& p : cuts())
    for (const double scale : {0x1p-8, 1.0, 0x1p15})
      for (const bool spread : {false, true}) {
        // Behind the first block short sums of what is spread are enough.
        if (spread && p.group_size() > 512) continue;
        SCOPED_TRACE(text(p) + ", scale " + std::to_string(scale) + (spread ? ", the rest spread" : ""));
        Walled<T> x(p.elements());
        const auto places = places_of(p);
        for (std::int64_t i = 0; i < p.elements(); ++i) {
          // each column has a pivot
          const bool first = places[static_cast<std::size_t>(i)] < (is_by_columns(p) ? p.reduce1 : 1);
          x.set(i, scale * (first ? far_value : near_value - (spread ? 0x1p-11 * static_cast<double>(i % 3) : 0)));
        }
        this->expect_moments(x, p, [](std::int64_t) { return 0.0; });
        if (this->HasFatalFailure()) return;
      }
}

TYPED_TEST(ShortSums, MomentsOfConstantsWithOneOutlierAtEveryPlace) {
  using T = TypeParam;
  const std::pair<double, double> data[] = {
      {near_value, far_value}, {1, largest<T>}, {1, -largest<T>}, {-largest<T>, largest<T>}, {0, least<T>}};
  for (const Partition& p : {Partition{1, 1, 3, 17}, Partition{1, 1, 3, 130}, Partition{1, 1, 3, 2100},
                             Partition{1, 8, 3, 37}, Partition{1, 17, 3, 1}, Partition{1, 600, 3, 1}})
    for (const auto& [value, outlier] : data) {
      if (p.group_size() > 2000 && value != near_value) continue;  // places are many
      this->for_targets([&, value = value, outlier = outlier] {
        SCOPED_TRACE(text(p) + ", " + std::to_string(outlier) + " among " + std::to_string(value));
        Walled<T> x(p.elements());
        for (std::int64_t i = 0; i < p.elements(); ++i) x.set(i, value);
        Walled<double> mean(3), m2(3);
        const auto n = static_cast<double>(p.group_size()), distance = outlier - value;
        for (std::int64_t i = 0; i < p.elements(); ++i) {
          if (p.group_of(i) != 1) continue;
          x.set(i, outlier);
          this->ops.moments({x.data(), dtype_of<T>(), p, mean.data(), m2.data()}, this->queue);
          x.set(i, value);
          for (const std::int64_t constant : {0, 2}) {
            ASSERT_EQ(mean[constant], value) << i;
            ASSERT_EQ(m2[constant], 0) << i;
          }
          // There is one square, or the outlier is the pivot of a block, which is summed in double.
          ASSERT_NEAR(mean[1], value + distance / n, in_f32 * std::abs(distance) / n + 2 * eps64 * std::abs(value))
              << i;
          ASSERT_NEAR(m2[1], distance * distance * ((n - 1) / n), 3 * in_f32 * distance * distance) << i;
        }
      });
    }
}

/// Half of `size` to all of it, one above 0 and one below in every group in turn.
template <class T>
Walled<T> of_size(const Partition& p, unsigned seed, double size) {
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<double> draw(0.5, 1.0);
  const auto places = places_of(p);
  Walled<T> values(p.elements());
  for (std::int64_t i = 0; i < p.elements(); ++i)
    values.set(i, (places[static_cast<std::size_t>(i)] % 2 == 0 ? size : -size) * draw(engine));
  return values;
}

TYPED_TEST(ShortSums, MomentsOfEverySize) {
  using T = TypeParam;
  const double sizes[] = {4 * least<T>, 0x1p-110, 0x1p-70, 0x1p-50, 1, 0x1p70, 0x1p100, largest<T>};
  for (const Partition& p : cuts())
    for (const double size : sizes) {
      if (size < least<T> || size > largest<T>) continue;
      SCOPED_TRACE(text(p) + ", size 2^" + std::to_string(std::log2(size)));
      const bool leaves_f32 = is_wide<T> && size != 1;
      this->expect_moments(of_size<T>(p, 1, size), p, [&](std::int64_t) { return leaves_f32 ? 0 : in_f32; });
      if (this->HasFatalFailure()) return;
    }
}

TYPED_TEST(ShortSums, MomentsOfOneColumnBesideOthers) {
  using T = TypeParam;
  const Partition p{1, 40, 41, 1};
  for (const double size : {far_value, 0x1p-100, 0x1p100})
    for (std::int64_t column = 0; column < p.keep1; ++column) {
      if (size != far_value && !is_wide<T>) continue;
      SCOPED_TRACE("column " + std::to_string(column) + ", size 2^" + std::to_string(std::log2(size)));
      auto x = of_size<T>(p, 1, 1);
      for (std::int64_t row = 0; row < p.reduce0; ++row) {
        const std::int64_t i = row * p.keep1 + column;
        x.set(i, size != far_value ? size * x[i] : row == 0 ? far_value : near_value);
      }
      this->expect_moments(x, p, [&](std::int64_t group) { return group == column ? 0 : in_f32; });
      if (this->HasFatalFailure()) return;
    }
}

/// Sums of g, of g (x - center) and, with a level, of what that takes. g, rest: (elements).
template <class T>
struct ShortGradSums : ShortSums<T> {
  struct Data {
    Partition p;
    Walled<T> x, dy;
    Walled<double> center = Walled<double>(p.groups());
    std::vector<double> g = plain(dy), rest = std::vector<double>(g.size());
    Gate gate{};

    Data(const Partition& cut, double size, double dy_size)
        : p(cut), x(of_size<T>(cut, 2, size)), dy(of_size<T>(cut, 3, dy_size)) {
      for (std::int64_t i = 0; i < p.groups(); ++i) center.set(i, size * (0.75 - 0.1 * static_cast<double>(i % 3)));
    }
    static std::vector<double> plain(const Walled<T>& values) {
      std::vector<double> made;
      for (std::int64_t i = 0; i < values.size(); ++i) made.push_back(values[i]);
      return made;
    }
  };

  template <class Unit>
  void expect_sums(const Data& data, const Unit& unit) {
    struct Group {
      long double n = 0, g = 0, gx = 0, rest = 0, g_size = 0, gx_size = 0, rest_size = 0;
    };
    const Partition& p = data.p;
    std::vector<Group> groups(static_cast<std::size_t>(p.groups()));
    for (std::int64_t i = 0; i < p.elements(); ++i) {
      Group& group = groups[static_cast<std::size_t>(p.group_of(i))];
      const long double g = data.g[static_cast<std::size_t>(i)], rest = data.rest[static_cast<std::size_t>(i)];
      const long double distance = data.x[i] - static_cast<long double>(data.center[p.group_of(i)]);
      group.n += 1, group.g += g, group.gx += g * distance, group.rest += rest;
      group.g_size += std::abs(g), group.gx_size += std::abs(g * distance), group.rest_size += std::abs(rest);
    }
    this->for_targets([&] {
      Walled<double> sum_g(p.groups()), sum_gx(p.groups()), sum_level(p.groups());
      this->ops.moments_grad({.x = data.x.data(),
                              .dy = data.dy.data(),
                              .dtype = dtype_of<T>(),
                              .partition = p,
                              .center = data.center.data(),
                              .gate = data.gate,
                              .sum_g = sum_g.data(),
                              .sum_gx = sum_gx.data(),
                              .sum_level = data.gate.floor.given() ? sum_level.data() : nullptr},
                             this->queue);
      EXPECT_TRUE(sum_g.intact() && sum_gx.intact() && sum_level.intact());
      for (std::int64_t i = 0; i < p.groups(); ++i) {
        const Group& group = groups[static_cast<std::size_t>(i)];
        const auto off = static_cast<long double>(unit(i) + in_double(static_cast<double>(group.n)));
        const auto near = [&](double got, long double want, long double bound) {
          ASSERT_NEAR(got, static_cast<double>(want), static_cast<double>(bound)) << "group " << i;
        };
        near(sum_g[i], group.g, off * group.g_size);
        // Short sums are about the center in f32; the rest of it, times the sum of g, is added afterwards.
        const long double rest_of_center = unit(i) > 0 ? 0x1p-24 * std::abs(data.center[i]) : 0;
        near(sum_gx[i], group.gx, off * (group.gx_size + 2 * rest_of_center * group.g_size));
        if (data.gate.floor.given()) near(sum_level[i], group.rest, off * group.rest_size);
      }
    });
  }
};
TYPED_TEST_SUITE(ShortGradSums, ShortTypes);

TYPED_TEST(ShortGradSums, OfEverySize) {
  using T = TypeParam;
  // Of x and dy. The largest x lie farther from their center than f32 reaches.
  const std::pair<double, double> sizes[] = {{1, 1},
                                             {4 * least<T>, 4 * least<T>},
                                             {largest<T>, largest<T>},
                                             {0x1p-120, 0x1p-10},
                                             {0x1p-70, 0x1p-70},
                                             {0x1p-50, 0x1p-50},
                                             {0x1p70, 0x1p70},
                                             {largest<T>, 0x1p-20}};
  for (const Partition& p : cuts())
    for (const auto& [size, dy_size] : sizes) {
      if (!is_wide<T> && (size < least<T> || size > largest<T>)) continue;
      SCOPED_TRACE(text(p) + ", sizes 2^" + std::to_string(std::log2(size)) + " and 2^" +
                   std::to_string(std::log2(dy_size)));
      const bool leaves_f32 = is_wide<T> && size != 1;
      this->expect_sums({p, size, dy_size}, [&](std::int64_t) { return leaves_f32 ? 0 : in_f32; });
      if (this->HasFatalFailure()) return;
    }
}

/// What is taken about the center in f32 becomes a sum about the center, also where x lies close to it.
TYPED_TEST(ShortGradSums, OfXCloseToACenterThatF32Rounds) {
  for (const Partition& p : cuts()) {
    SCOPED_TRACE(text(p));
    typename TestFixture::Data data(p, 1, 1);
    for (std::int64_t i = 0; i < p.groups(); ++i) data.center.set(i, 1 + 0x1p-9 + 0x1p-25);
    for (std::int64_t i = 0; i < p.elements(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      data.x.set(i, 1), data.dy.set(i, std::abs(data.g[at])), data.g[at] = data.dy[i];
    }
    this->expect_sums(data, [](std::int64_t) { return in_f32; });
    if (this->HasFatalFailure()) return;
  }
}

/// Large gradients, whose products with x - center are not.
TYPED_TEST(ShortGradSums, OfLargeGradientsAlone) {
  using T = TypeParam;
  for (const Partition& p : cuts()) {
    SCOPED_TRACE(text(p));
    typename TestFixture::Data data(p, is_wide<T> ? 0x1p-120 : 0x1p-12, 1);
    for (std::int64_t i = 0; i < p.elements(); ++i) {
      data.dy.set(i, largest<T> / (1 + static_cast<double>(i % 5) / 4));
      data.g[static_cast<std::size_t>(i)] = data.dy[i];
    }
    this->expect_sums(data, [](std::int64_t) { return is_wide<T> ? 0 : in_f32; });
    if (this->HasFatalFailure()) return;
  }
}

/// What a level takes of dy, and nothing of what it leaves.
TYPED_TEST(ShortGradSums, OfLargeGradientsBelowALevel) {
  using T = TypeParam;
  for (const Partition& p : cuts()) {
    SCOPED_TRACE(text(p));
    typename TestFixture::Data data(p, 1, 1);
    Walled<double> one(p.groups()), zero(p.groups());
    for (std::int64_t i = 0; i < p.groups(); ++i) data.center.set(i, 0.01), one.set(i, 1), zero.set(i, 0);
    data.gate = {{}, nullptr, one.data(), zero.data(), {{zero.data(), DType::f64}, {1, p.groups()}}};
    for (std::int64_t i = 0; i < p.elements(); ++i)
      if (data.x[i] < 0) {
        const auto at = static_cast<std::size_t>(i);
        data.dy.set(i, largest<T> * std::abs(data.g[at])), data.rest[at] = data.dy[i], data.g[at] = 0;
      }
    this->expect_sums(data, [](std::int64_t) { return is_wide<T> ? 0 : in_f32; });
    if (this->HasFatalFailure()) return;
  }
}

/// Products below f32 also of f16: behind gates that are closed but for a slope.
TYPED_TEST(ShortGradSums, OfOneClosedGroupBesideOthers) {
  for (const Partition& p : {Partition{1, 40, 41, 1}, Partition{1, 1, 41, 40}})
    for (std::int64_t closed = 0; closed < p.groups(); ++closed) {
      SCOPED_TRACE(text(p) + ", group " + std::to_string(closed));
      typename TestFixture::Data data(p, 1, 1);
      data.center.set(closed, 0x1p-20 * data.center[closed]);
      std::vector<std::uint8_t> mask(static_cast<std::size_t>((p.elements() + 7) / 8), 0xff);
      data.gate.activation = {ActivationKind::leaky_relu, 0x1p-100};
      data.gate.mask = mask.data();
      for (std::int64_t i = 0; i < p.elements(); ++i)
        if (p.group_of(i) == closed) {
          mask[static_cast<std::size_t>(i / 8)] ^= static_cast<std::uint8_t>(1U << (i % 8));
          data.x.set(i, 0x1p-20 * data.x[i]), data.dy.set(i, 0x1p-14 * data.dy[i]);
          data.g[static_cast<std::size_t>(i)] = 0x1p-100 * data.dy[i];
        }
      this->expect_sums(data, [&](std::int64_t group) { return group == closed ? 0 : in_f32; });
      if (this->HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace allnorm::kernel_test
