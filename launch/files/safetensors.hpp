// The safetensors format: named tensors and text in one file. Layers' states and checkpoints are kept in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "allnorm/tensor.hpp"
#include "launch/files/atomic_file.hpp"

namespace allnorm::launch {

struct StoredTensor {
  std::string name;
  std::string dtype;  // "F64", "F32", "F16", "BF16", "I64", ... "U8", "BOOL"
  Shape shape;
  std::vector<std::byte> data;  // shape.elements() elements, C order, little endian
};

struct TensorFile {
  std::vector<StoredTensor> tensors;            // read: in the order of their data
  std::map<std::string, std::string> metadata;  // the entry __metadata__
  std::string file = "(not a file)";            // where it was read from, for messages

  /// The tensor of that name, or null.
  const StoredTensor* find(std::string_view name) const noexcept;
  /// The tensor of that name; throws invalid_input, naming the file, when it is missing or has another dtype or shape.
  const StoredTensor& require(std::string_view name, std::string_view dtype, const Shape& shape) const;
};

/// The format's name of a C++ type.
template <class T>
constexpr std::string_view safetensors_dtype() noexcept {
  if constexpr (std::is_same_v<T, double>)
    return "F64";
  else if constexpr (std::is_same_v<T, float>)
    return "F32";
  else if constexpr (std::is_same_v<T, f16>)
    return "F16";
  else if constexpr (std::is_same_v<T, bf16>)
    return "BF16";
  else if constexpr (std::is_same_v<T, std::int64_t>)
    return "I64";
  else if constexpr (std::is_same_v<T, std::uint64_t>)
    return "U64";
  else if constexpr (std::is_same_v<T, std::int32_t>)
    return "I32";
  else {
    static_assert(std::is_same_v<T, std::uint8_t>);
    return "U8";
  }
}

/// A tensor that holds a copy of `values`, shape.elements() of them.
template <class T>
StoredTensor stored(std::string name, const Shape& shape, std::span<const T> values) {
  const auto bytes = std::as_bytes(values);
  return {std::move(name), std::string(safetensors_dtype<T>()), shape, {bytes.begin(), bytes.end()}};
}

/// The elements of the tensor of that name; throws as TensorFile::require.
template <class T>
std::vector<T> values_of(const TensorFile& file, std::string_view name, const Shape& shape) {
  const StoredTensor& tensor = file.require(name, safetensors_dtype<T>(), shape);
  std::vector<T> values(tensor.data.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

/// Reads a file with every check of the format: a header of at most 100 MB, keys that occur once, known dtypes, data
/// that the tensors cover without a hole or an overlap, and the checksums, where the file has them. Throws
/// invalid_input, naming the file and the tensor.
TensorFile read_safetensors(const std::string& path);

/// Writes tensors in the format's order (dtypes of more bytes first, then by name), so that equal content gives equal
/// files, with a checksum of each and of the header in the metadata. Throws invalid_input for names that occur twice or
/// are not UTF-8 and for data that do not fit the shape.
void write_safetensors(AtomicFile& file, const TensorFile& content);
/// As above, and commits.
void write_safetensors(const std::string& path, const TensorFile& content);

}  // namespace allnorm::launch
