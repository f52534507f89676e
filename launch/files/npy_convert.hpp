// Between the types of files and the types that layers compute with. Every conversion rounds once, to nearest even.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "allnorm/dtype.hpp"
#include "launch/files/npy.hpp"

namespace allnorm::launch {

/// The elements in C order. Exact but for 64-bit integers over 2^53.
std::vector<double> to_doubles(const NpyArray& array);

/// The elements of an integer array in C order. Throws invalid_input for other types and for values over 2^63-1.
std::vector<std::int64_t> to_int64(const NpyArray& array);

/// The elements in C order as `dtype`. A value that has no neighbour in `dtype` becomes infinite, as IEEE 754 has it.
std::vector<std::byte> to_dtype(const NpyArray& array, DType dtype);

/// The file type that stores every value of `dtype`: itself, and f32 for bf16, which .npy does not have.
NpyType file_type(DType dtype) noexcept;

/// An array for a file from the shape.elements() elements at `data`. Exact.
NpyArray from_dtype(const void* data, DType dtype, const Shape& shape);
NpyArray from_doubles(std::span<const double> values, const Shape& shape);
NpyArray from_int64(std::span<const std::int64_t> values, const Shape& shape);

}  // namespace allnorm::launch
