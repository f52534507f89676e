// Conversions between the types of files and of layers: every value rounds once, to nearest even.
#include "launch/files/npy_convert.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "files_support.hpp"

namespace allnorm::launch {
namespace {

using files_support::expect_refused;

template <class T>
T converted(const NpyArray& array, std::size_t i = 0) {
  T value;
  std::memcpy(&value, to_dtype(array, dtype_of<T>()).data() + i * sizeof(T), sizeof(T));
  return value;
}
template <class T>
NpyArray array_of(NpyType type, std::initializer_list<T> values) {
  NpyArray array{type, Shape{static_cast<std::int64_t>(values.size())}, {}};
  const auto bytes = std::as_bytes(std::span(values.begin(), values.size()));
  array.data.assign(bytes.begin(), bytes.end());
  return array;
}

// Around every midpoint of two neighbours of T, which a double holds exactly: below it the lower, above it the upper,
// on it the even one. The step from the largest number to infinity is treated as one more step of the same width.
template <class T>
void check_every_midpoint(std::uint16_t infinity) {
  std::vector<double> values;
  std::vector<std::uint16_t> wanted;
  for (std::uint16_t bits = 0; bits < infinity; ++bits) {
    const double low = to_float(T{bits});
    const double high = bits + 1 < infinity ? to_float(T{static_cast<std::uint16_t>(bits + 1)})
                                            : 2 * low - to_float(T{static_cast<std::uint16_t>(bits - 1)});
    const double middle = (low + high) / 2;
    const auto upper = static_cast<std::uint16_t>(bits + 1);
    for (const double sign : {1.0, -1.0}) {
      const std::uint16_t sign_bit = sign < 0 ? 0x8000 : 0;
      const auto add = [&](double value, std::uint16_t result) {
        values.push_back(sign * value);
        wanted.push_back(result | sign_bit);
      };
      add(low, bits);
      add(std::nextafter(middle, 0.0), bits);
      add(middle, bits % 2 == 0 ? bits : upper);
      add(std::nextafter(middle, 1e300), upper);
    }
  }
  values.insert(values.end(), {1e300, -1e300, std::numeric_limits<double>::infinity(), 5e-324, -5e-324});
  wanted.insert(wanted.end(), {infinity, static_cast<std::uint16_t>(infinity | 0x8000), infinity, 0, 0x8000});
  const auto buffer = to_dtype(from_doubles(values, Shape{static_cast<std::int64_t>(values.size())}), dtype_of<T>());
  for (std::size_t i = 0; i < values.size(); ++i) {
    T result;
    std::memcpy(&result, buffer.data() + i * sizeof(T), sizeof(T));
    ASSERT_EQ(result.bits, wanted[i]) << values[i];
  }
}

TEST(NpyConvert, RoundsDoublesToF16Once) { check_every_midpoint<f16>(0x7c00); }
TEST(NpyConvert, RoundsDoublesToBf16Once) { check_every_midpoint<bf16>(0x7f80); }

TEST(NpyConvert, RoundsLongIntegersOnce) {
  // One above the midpoint of two bf16 neighbours: rounding to f64 or f32 first would fall onto the midpoint.
  const std::int64_t middle = (std::int64_t{1} << 62) + (std::int64_t{1} << 54);
  const auto array = array_of<std::int64_t>(NpyType::i64, {middle, middle + 1, -middle - 1, middle - 1});
  EXPECT_EQ(converted<bf16>(array, 0).bits, to_bf16(0x1p62f).bits);
  EXPECT_EQ(converted<bf16>(array, 1).bits, to_bf16(0x1p62f).bits + 1);
  EXPECT_EQ(converted<bf16>(array, 2).bits, (to_bf16(0x1p62f).bits + 1) | 0x8000);
  EXPECT_EQ(converted<bf16>(array, 3).bits, to_bf16(0x1p62f).bits);
  const auto extreme = array_of<std::int64_t>(NpyType::i64, {std::numeric_limits<std::int64_t>::min()});
  EXPECT_EQ(to_float(converted<bf16>(extreme)), -0x1p63f);
  EXPECT_EQ(converted<float>(extreme), -0x1p63f);
  const auto unsigned_extreme = array_of<std::uint64_t>(NpyType::u64, {~std::uint64_t{0}});
  EXPECT_EQ(to_float(converted<bf16>(unsigned_extreme)), 0x1p64f);
  EXPECT_EQ(converted<f16>(unsigned_extreme).bits, 0x7c00);
  const auto f32_middle = array_of<std::int64_t>(NpyType::i64, {(std::int64_t{1} << 60) + (std::int64_t{1} << 36) + 1});
  EXPECT_EQ(converted<float>(f32_middle), std::nextafter(0x1p60f, 2e30f));
  // 2049 lies between the f16 neighbours 2048 and 2050.
  EXPECT_EQ(to_float(converted<f16>(array_of<std::int16_t>(NpyType::i16, {2049}))), 2048.0f);
}

TEST(NpyConvert, ConvertsEveryTypeToEveryOther) {
  const auto check = [](const NpyArray& array, double wanted) {
    EXPECT_EQ(to_doubles(array)[0], wanted);
    EXPECT_EQ(converted<double>(array), wanted);
    EXPECT_EQ(converted<float>(array), static_cast<float>(wanted));
    EXPECT_EQ(to_float(converted<f16>(array)), static_cast<float>(wanted));
    EXPECT_EQ(to_float(converted<bf16>(array)), static_cast<float>(wanted));
    if (is_integer(array.type)) {
      EXPECT_EQ(to_int64(array)[0], static_cast<std::int64_t>(wanted));
    }
  };
  check(array_of<double>(NpyType::f64, {-1.5}), -1.5);
  check(array_of<float>(NpyType::f32, {-1.5f}), -1.5);
  check(array_of<f16>(NpyType::f16, {to_f16(-1.5f)}), -1.5);
  check(array_of<std::int8_t>(NpyType::i8, {-7}), -7);
  check(array_of<std::int16_t>(NpyType::i16, {-7}), -7);
  check(array_of<std::int32_t>(NpyType::i32, {-7}), -7);
  check(array_of<std::int64_t>(NpyType::i64, {-7}), -7);
  check(array_of<std::uint8_t>(NpyType::u8, {200}), 200);
  check(array_of<std::uint16_t>(NpyType::u16, {200}), 200);
  check(array_of<std::uint32_t>(NpyType::u32, {200}), 200);
  check(array_of<std::uint64_t>(NpyType::u64, {200}), 200);
  check(array_of<std::uint8_t>(NpyType::b1, {1}), 1);
}

TEST(NpyConvert, KeepsNaNsAndInfinities) {
  const double inf = std::numeric_limits<double>::infinity();
  const NpyArray array = array_of<double>(NpyType::f64, {std::numeric_limits<double>::quiet_NaN(), inf, -inf, -0.0});
  EXPECT_TRUE(std::isnan(converted<float>(array)));
  EXPECT_TRUE(std::isnan(to_float(converted<f16>(array))));
  EXPECT_TRUE(std::isnan(to_float(converted<bf16>(array))));
  EXPECT_EQ(converted<f16>(array, 1).bits, 0x7c00);
  EXPECT_EQ(converted<f16>(array, 2).bits, 0xfc00);
  EXPECT_EQ(converted<bf16>(array, 3).bits, 0x8000);
}

TEST(NpyConvert, RefusesIntegersThatAreNone) {
  const NpyArray real = array_of<double>(NpyType::f64, {1});
  expect_refused([&] { to_int64(real); }, real.file, "must be an integer type");
  const NpyArray boolean = array_of<std::uint8_t>(NpyType::b1, {1});
  expect_refused([&] { to_int64(boolean); }, boolean.file, "has the type b1");
  const NpyArray large = array_of<std::uint64_t>(NpyType::u64, {std::uint64_t{1} << 63});
  expect_refused([&] { to_int64(large); }, large.file, "9223372036854775808");
}

TEST(NpyConvert, WritesBf16AsF32) {
  const bf16 values[] = {to_bf16(1.5f), to_bf16(-3.0f)};
  const NpyArray array = from_dtype(values, DType::bf16, Shape{2});
  EXPECT_EQ(array.type, NpyType::f32);
  EXPECT_EQ(to_doubles(array), (std::vector<double>{1.5, -3.0}));
  const f16 halves[] = {to_f16(1.5f)};
  EXPECT_EQ(from_dtype(halves, DType::f16, Shape{1}).type, NpyType::f16);
  const std::int64_t integers[] = {-4, 5};
  EXPECT_EQ(to_int64(from_int64(integers, Shape{2})), (std::vector<std::int64_t>{-4, 5}));
}

}  // namespace
}  // namespace allnorm::launch
