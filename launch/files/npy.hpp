// NumPy's .npy files: one dense array, its type and its shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "allnorm/tensor.hpp"
#include "launch/files/atomic_file.hpp"

namespace allnorm::launch {

enum class NpyType : std::uint8_t { f64, f32, f16, i8, i16, i32, i64, u8, u16, u32, u64, b1 };

/// "f64", ..., "b1".
std::string_view to_string(NpyType type) noexcept;
/// Bytes of one element.
std::size_t size_of(NpyType type) noexcept;
/// Signed or unsigned integers; b1 is not one.
bool is_integer(NpyType type) noexcept;

/// Calls f(std::type_identity<T>{}) with the C++ type of `type`; a b1 is a std::uint8_t that holds 0 or 1.
template <class F>
decltype(auto) visit(NpyType type, F&& f) {
  switch (type) {
    case NpyType::f64:
      return f(std::type_identity<double>{});
    case NpyType::f32:
      return f(std::type_identity<float>{});
    case NpyType::f16:
      return f(std::type_identity<f16>{});
    case NpyType::i8:
      return f(std::type_identity<std::int8_t>{});
    case NpyType::i16:
      return f(std::type_identity<std::int16_t>{});
    case NpyType::i32:
      return f(std::type_identity<std::int32_t>{});
    case NpyType::i64:
      return f(std::type_identity<std::int64_t>{});
    case NpyType::u16:
      return f(std::type_identity<std::uint16_t>{});
    case NpyType::u32:
      return f(std::type_identity<std::uint32_t>{});
    case NpyType::u64:
      return f(std::type_identity<std::uint64_t>{});
    case NpyType::u8:
    case NpyType::b1:
      break;
  }
  return f(std::type_identity<std::uint8_t>{});
}

struct NpyArray {
  NpyType type = NpyType::f64;
  Shape shape;
  std::vector<std::byte> data;        // shape.elements() elements, C order, native byte order
  std::string file = "(not a file)";  // where it was read from, for messages
};

/// Reads format versions 1.0, 2.0 and 3.0, C and Fortran order, either byte order. Everything else is refused with
/// invalid_input, before memory is taken: objects, structures, text and complex types, more than eight axes, a file
/// that is longer or shorter than its header says. Takes no more memory than the file is long.
NpyArray read_npy(const std::string& path);

/// The bytes of format version 1.0, C order, into a file that the caller commits or stages.
void write_npy(AtomicFile& file, const NpyArray& array);
/// As above, and commits.
void write_npy(const std::string& path, const NpyArray& array);

}  // namespace allnorm::launch
