// Between the types of files and the types that layers compute with.
#include "launch/files/npy_convert.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>

#include "launch/files/input_file.hpp"

namespace allnorm::launch {
namespace {

template <class T>
T element(const std::byte* data, std::size_t i) noexcept {
  T value;
  std::memcpy(&value, data + i * sizeof(T), sizeof(T));
  return value;
}

// Rounding to odd: exact, or of the two neighbours the one whose last bit is 1. Whoever rounds the result to nearest
// in a format with at least two bits fewer gets what rounding the original at once would give (Boldo and Melquiond,
// "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
float round_to_odd(double value) noexcept {
  const auto nearest = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(nearest) == value) return nearest;
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  if ((bits & 1u) == 0) bits += std::abs(static_cast<double>(nearest)) > std::abs(value) ? 0xffffffffu : 1u;
  return std::bit_cast<float>(bits);
}

// An integer as a double; rounded to odd at 2^11 where 53 bits may not do, which leaves at least 42.
double to_double_odd(std::uint64_t magnitude) noexcept {
  constexpr std::uint64_t step = 1u << 11, low = step - 1;
  if (magnitude >= (std::uint64_t{1} << 53) && (magnitude & low) != 0) magnitude = (magnitude & ~low) | step;
  return static_cast<double>(magnitude);
}

template <class From>
double widen_odd(From value) noexcept {
  if constexpr (std::is_integral_v<From>) {
    if constexpr (std::is_signed_v<From>)
      if (value < 0) return -to_double_odd(0 - static_cast<std::uint64_t>(value));
    return to_double_odd(static_cast<std::uint64_t>(value));
  } else {
    return load(value);
  }
}

template <class To, class From>
To convert(From value) noexcept {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (!std::is_floating_point_v<To>)
    return store<To>(round_to_odd(widen_odd(value)));
  else if constexpr (std::is_integral_v<From>)
    return static_cast<To>(value);
  else
    return static_cast<To>(load(value));
}

// The number of elements, after a look at the array's own consistency.
std::size_t count_of(const NpyArray& array) {
  const auto count = static_cast<std::size_t>(array.shape.elements());
  if (array.data.size() != count * size_of(array.type))
    bad_file(array.file, "holds " + std::to_string(array.data.size()) + " bytes, must hold as many as its shape " +
                             to_string(array.shape) + " needs");
  return count;
}

template <class To>
void convert_all(const NpyArray& array, To* target) {
  const std::size_t count = count_of(array);
  visit(array.type, [&]<class From>(std::type_identity<From>) {
    for (std::size_t i = 0; i < count; ++i) target[i] = convert<To>(element<From>(array.data.data(), i));
  });
}

template <class T>
NpyArray copy_of(const T* data, std::size_t count, NpyType type, const Shape& shape) {
  NpyArray array{type, shape, std::vector<std::byte>(count * sizeof(T))};
  if (count > 0) std::memcpy(array.data.data(), data, count * sizeof(T));
  return array;
}

}  // namespace

std::vector<double> to_doubles(const NpyArray& array) {
  std::vector<double> values(count_of(array));
  convert_all(array, values.data());
  return values;
}

std::vector<std::int64_t> to_int64(const NpyArray& array) {
  if (!is_integer(array.type))
    bad_file(array.file, "has the type " + std::string(to_string(array.type)) + ", must be an integer type");
  std::vector<std::int64_t> values(count_of(array));
  visit(array.type, [&]<class From>(std::type_identity<From>) {
    if constexpr (std::is_integral_v<From>)
      for (std::size_t i = 0; i < values.size(); ++i) {
        const From value = element<From>(array.data.data(), i);
        if constexpr (std::is_same_v<From, std::uint64_t>)
          if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
            bad_file(array.file, "has the value " + std::to_string(value) + ", must be at most 2^63-1");
        values[i] = static_cast<std::int64_t>(+value);
      }
  });
  return values;
}

std::vector<std::byte> to_dtype(const NpyArray& array, DType dtype) {
  std::vector<std::byte> buffer(count_of(array) * size_of(dtype));
  // The memory of a vector of bytes comes from operator new and is aligned for every element type.
  visit(dtype, [&]<class To>(std::type_identity<To>) { convert_all(array, reinterpret_cast<To*>(buffer.data())); });
  return buffer;
}

NpyType file_type(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
      return NpyType::f64;
    case DType::f16:
      return NpyType::f16;
    case DType::i64:
      return NpyType::i64;
    case DType::f32:
    case DType::bf16:
      break;
  }
  return NpyType::f32;
}

NpyArray from_dtype(const void* data, DType dtype, const Shape& shape) {
  const auto count = static_cast<std::size_t>(shape.elements());
  return visit(dtype, [&]<class T>(std::type_identity<T>) {
    if constexpr (std::is_same_v<T, bf16>) {
      std::vector<float> widened(count);
      for (std::size_t i = 0; i < count; ++i) widened[i] = to_float(static_cast<const bf16*>(data)[i]);
      return copy_of(widened.data(), count, NpyType::f32, shape);
    } else {
      return copy_of(static_cast<const T*>(data), count, file_type(dtype), shape);
    }
  });
}

NpyArray from_doubles(std::span<const double> values, const Shape& shape) {
  return copy_of(values.data(), values.size(), NpyType::f64, shape);
}

NpyArray from_int64(std::span<const std::int64_t> values, const Shape& shape) {
  return copy_of(values.data(), values.size(), NpyType::i64, shape);
}

}  // namespace allnorm::launch
