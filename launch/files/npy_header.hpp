// The text inside a .npy file that says what its bytes are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "launch/files/npy.hpp"

namespace allnorm::launch {

struct NpyHeader {
  NpyType type = NpyType::f64;
  bool swapped = false;  // the file's byte order is not this machine's
  bool fortran_order = false;
  std::vector<std::int64_t> shape;  // at most Shape::max_rank extents, each at least 0
};

/// Parses the dictionary literal: exactly the keys descr, fortran_order and shape, once each, in any order. Throws
/// invalid_input, naming `path`.
NpyHeader parse_npy_header(std::string_view text, const std::string& path);

/// The literal that NumPy writes for a little- or big-endian machine's own byte order, without padding.
std::string npy_header_text(NpyType type, const Shape& shape);

}  // namespace allnorm::launch
