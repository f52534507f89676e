#include "allnorm/dtype.hpp"

#include <string>

namespace allnorm {

f16 to_f16(float value) noexcept {
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

float to_float(f16 value) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x400u) {  // subnormal: a multiple of 2^-24
    const float f = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(f));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

std::string_view to_string(DType dtype) noexcept {
  constexpr std::string_view names[] = {"f64", "f32", "f16", "bf16", "i64"};
  return names[static_cast<int>(dtype)];
}

void refuse_integers(std::string_view name) {
  fail(Code::invalid_argument, std::string(name) + " has dtype i64, must have f64, f32, f16 or bf16");
}

DType parse_dtype(std::string_view name) {
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16})
    if (name == to_string(dtype)) return dtype;
  fail(Code::invalid_argument, "dtype is '" + std::string(name) + "', must be f64, f32, f16 or bf16");
}

}  // namespace allnorm
