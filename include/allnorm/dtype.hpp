// Element types, and the project's only switch over them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "allnorm/error.hpp"

namespace allnorm {

/// i64 is of labels alone: nothing else takes it.
enum class DType : std::uint8_t { f64, f32, f16, bf16, i64 };

/// IEEE 754 binary16 as its bits. Conversions round to nearest even; subnormals, infinities and NaN are kept.
struct f16 {
  std::uint16_t bits = 0;  ///< sign, 5 of the exponent, 10 of the fraction
};

/// bfloat16 as its bits: the upper half of a binary32. Conversion from float rounds to nearest even.
struct bf16 {
  std::uint16_t bits = 0;  ///< sign, 8 of the exponent, 7 of the fraction
};

/// Rounded to nearest even; 65520 and more to infinity.
constexpr f16 to_f16(float value) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude >= 0x7f800000u)  // infinity and NaN
    return {static_cast<std::uint16_t>(sign | 0x7c00u |
                                       (magnitude > 0x7f800000u ? 0x200u | ((magnitude >> 13) & 0x3ffu) : 0u))};
  if (magnitude >= 0x477ff000u)
    return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, and adding 0.5 makes float addition round to one
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(rounded) - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

/// The same value.
constexpr float to_float(f16 value) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x400u) {  // subnormal: a multiple of 2^-24
    const float f = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(f));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

/// Rounded to nearest even; a NaN stays one.
constexpr bf16 to_bf16(float value) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x40u)};  // a NaN stays a NaN
  return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
/// The same value.
constexpr float to_float(bf16 value) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

/// The type that maps over T are computed in: double for double, float for everything narrower.
template <class T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// One element, widened to its compute type.
template <class T>
constexpr compute_t<T> load(T value) noexcept {
  if constexpr (std::is_floating_point_v<T>)
    return value;
  else
    return to_float(value);
}
/// One element, narrowed from its compute type.
template <class T>
constexpr T store(compute_t<T> value) noexcept {
  if constexpr (std::is_floating_point_v<T>)
    return value;
  else if constexpr (std::is_same_v<T, f16>)
    return to_f16(value);
  else
    return to_bf16(value);
}

/// Bytes of one value.
constexpr std::size_t size_of(DType dtype) noexcept {
  return dtype == DType::f64 || dtype == DType::i64 ? 8 : dtype == DType::f32 ? 4 : 2;
}
/// "f64", "f32", "f16", "bf16" or "i64".
std::string_view to_string(DType dtype) noexcept;
/// The inverse of to_string for floating-point types. Throws invalid_argument for anything else.
DType parse_dtype(std::string_view name);

/// Throws invalid_argument for i64, where a floating-point type must be.
[[noreturn]] void refuse_integers(std::string_view name);

/// Calls f(std::type_identity<T>{}) with the C++ type of `dtype`, a floating-point one.
template <class F>
decltype(auto) visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(std::type_identity<double>{});
    case DType::f32:
      return f(std::type_identity<float>{});
    case DType::f16:
      return f(std::type_identity<f16>{});
    case DType::i64:
      refuse_integers("a tensor");
    case DType::bf16:
      break;
  }
  return f(std::type_identity<bf16>{});
}

/// The type of T: double, float, f16, bf16 or std::int64_t.
template <class T>
constexpr DType dtype_of() noexcept {
  if constexpr (std::is_same_v<T, double>)
    return DType::f64;
  else if constexpr (std::is_same_v<T, float>)
    return DType::f32;
  else if constexpr (std::is_same_v<T, f16>)
    return DType::f16;
  else if constexpr (std::is_same_v<T, std::int64_t>)
    return DType::i64;
  else {
    static_assert(std::is_same_v<T, bf16>);
    return DType::bf16;
  }
}

}  // namespace allnorm
