// Sizes of memory: products that cannot overflow unseen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "allnorm/error.hpp"

namespace allnorm {

/// The product of sizes; none where one is negative, or where those that are not 0 multiply to more than 2^63-1, so
/// that no partial product overflows either.
constexpr std::optional<std::int64_t> product(std::span<const std::int64_t> sizes) noexcept {
  std::int64_t all = 1;
  bool empty = false;
  for (const std::int64_t size : sizes) {
    if (size < 0 || (size > 0 && __builtin_mul_overflow(all, size, &all))) return std::nullopt;
    empty |= size == 0;
  }
  return empty ? 0 : all;
}
/// The same.
constexpr std::optional<std::int64_t> product(std::initializer_list<std::int64_t> sizes) noexcept {
  return product(std::span(sizes.begin(), sizes.size()));
}

/// Throws Error{code} that names `name` where `value` times the product of `bytes_each` (all at least 1) is over
/// 2^63-1.
inline void expect_fits(std::string_view name, std::int64_t value, std::initializer_list<std::int64_t> bytes_each,
                        Code code = Code::invalid_argument, Where where = Where::here()) {
  const std::int64_t most =
      std::numeric_limits<std::int64_t>::max() / product(bytes_each).value_or(std::numeric_limits<std::int64_t>::max());
  expect(
      value <= most, code,
      [&] {
        return std::string(name) + " is " + std::to_string(value) + ", must be at most " + std::to_string(most) +
               ": sizes that follow from it would pass 2^63-1";
      },
      where);
}

/// The bytes of `count` values of `size` bytes. Throws invalid_argument where they are more than 2^62.
inline std::size_t bytes_of(std::size_t count, std::size_t size) {
  std::size_t bytes = 0;
  expect(!__builtin_mul_overflow(count, size, &bytes) && bytes <= std::size_t{1} << 62, Code::invalid_argument, [&] {
    return "memory for " + std::to_string(count) + " values of " + std::to_string(size) +
           " bytes is asked for, must have at most 2^62 bytes";
  });
  return bytes;
}

}  // namespace allnorm
