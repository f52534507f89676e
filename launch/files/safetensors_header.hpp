// The JSON text at the start of a safetensors file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace allnorm::launch {

/// One tensor as the header describes it. Values are syntactically right, but not checked against each other.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;       // at most Shape::max_rank extents, each at least 0
  std::array<std::int64_t, 2> offset{};  // bytes: begin and end, counted from the end of the header
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

/// Parses the header event by event, so that its depth costs no stack and nothing but what is kept takes memory.
/// Throws invalid_input, naming `path`.
SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& path);

/// A dtype's place in the format's order of dtypes (the last is stored first), and the bytes of its element.
struct SafetensorsType {
  std::size_t order;
  std::size_t bytes;
};
std::optional<SafetensorsType> safetensors_type(std::string_view dtype) noexcept;

}  // namespace allnorm::launch
