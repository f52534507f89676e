// Reading entries out of a State: every function throws invalid_input that names the entry, what it is and must be.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "allnorm/error.hpp"
#include "allnorm/state.hpp"

namespace allnorm::state_reader {

inline const StateEntry& find(const State& state, const std::string& name, const Shape& shape) {
  const StateEntry* entry = state.find(name);
  expect(entry != nullptr, Code::invalid_input, [&] { return "state " + name + " is missing"; });
  expect(entry->shape == shape, Code::invalid_input,
         [&] { return "state " + name + " has shape " + to_string(entry->shape) + ", must have " + to_string(shape); });
  const std::size_t size = entry->type == StateType::f32 ? 4 : 8, bytes = entry->data.size();
  expect(bytes % size == 0 && bytes / size == static_cast<std::size_t>(shape.elements()), Code::invalid_input, [&] {
    return "state " + name + " has " + std::to_string(bytes) + " bytes, must have " + std::to_string(size) +
           " for each of " + std::to_string(shape.elements()) + " values";
  });
  return *entry;
}

/// The values of a floating-point entry; f32 (PyTorch's own) is widened.
inline std::vector<double> doubles(const State& state, const std::string& name, const Shape& shape) {
  const StateEntry& entry = find(state, name, shape);
  std::vector<double> values(static_cast<std::size_t>(shape.elements()));
  if (entry.type == StateType::f64) {
    if (!values.empty()) std::memcpy(values.data(), entry.data.data(), entry.data.size());
    return values;
  }
  expect(entry.type == StateType::f32, Code::invalid_input,
         [&] { return "state " + name + " holds integers, must hold floats"; });
  std::vector<float> narrow(values.size());
  if (!narrow.empty()) std::memcpy(narrow.data(), entry.data.data(), entry.data.size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = narrow[i];
  return values;
}

/// Statistics: finite, and at least `least` (a count, a variance) where that is given.
inline std::vector<double> finite(const State& state, const std::string& name, const Shape& shape,
                                  double least = -std::numeric_limits<double>::infinity()) {
  auto values = doubles(state, name, shape);
  for (std::size_t i = 0; i < values.size(); ++i)
    expect(std::isfinite(values[i]) && values[i] >= least, Code::invalid_input, [&] {
      std::string must = "finite";
      if (std::isfinite(least)) must += least > 0 ? " and positive" : " and at least 0";
      return "state " + name + " has " + std::to_string(values[i]) + " at " + std::to_string(i) + ", must be " + must;
    });
  return values;
}

/// A counter, from `least` to 2^62.
inline std::int64_t integer(const State& state, const std::string& name, std::int64_t least) {
  const StateEntry& entry = find(state, name, Shape{});
  expect(entry.type == StateType::i64, Code::invalid_input,
         [&] { return "state " + name + " holds floats, must hold an integer"; });
  std::int64_t value = 0;
  std::memcpy(&value, entry.data.data(), sizeof value);
  expect(value >= least && value <= std::int64_t{1} << 62, Code::invalid_input, [&] {
    return "state " + name + " is " + std::to_string(value) + ", must be from " + std::to_string(least) + " to 2^62";
  });
  return value;
}

}  // namespace allnorm::state_reader
