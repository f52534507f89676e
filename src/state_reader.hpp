// Reading entries out of a State: every function throws invalid_input that names the entry, what it is and must be.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "allnorm/error.hpp"
#include "allnorm/state.hpp"

namespace allnorm::state_reader {

inline const StateEntry& find(const State& state, const std::string& name, const Shape& shape) {
  const StateEntry* entry = state.find(name);
  expect(entry != nullptr, Code::invalid_input, [&] { return "state " + name + " is missing"; });
  expect(entry->shape == shape, Code::invalid_input, [&] {
    return "state " + name + " has shape " + to_string(entry->shape) + ", must have " + to_string(shape);
  });
  const std::size_t size = entry->type == StateType::f32 ? 4 : 8;
  expect(entry->data.size() == static_cast<std::size_t>(shape.elements()) * size, Code::invalid_input, [&] {
    return "state " + name + " has " + std::to_string(entry->data.size()) + " bytes, must have " +
           std::to_string(static_cast<std::size_t>(shape.elements()) * size);
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
  expect(entry.type == StateType::f32, Code::invalid_input, [&] { return "state " + name + " holds integers, must hold floats"; });
  std::vector<float> narrow(values.size());
  if (!narrow.empty()) std::memcpy(narrow.data(), entry.data.data(), entry.data.size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = narrow[i];
  return values;
}

inline std::int64_t integer(const State& state, const std::string& name, std::int64_t least) {
  const StateEntry& entry = find(state, name, Shape{});
  expect(entry.type == StateType::i64, Code::invalid_input, [&] { return "state " + name + " holds floats, must hold an integer"; });
  std::int64_t value = 0;
  std::memcpy(&value, entry.data.data(), sizeof value);
  expect(value >= least, Code::invalid_input, [&] {
    return "state " + name + " is " + std::to_string(value) + ", must be at least " + std::to_string(least);
  });
  return value;
}

}  // namespace allnorm::state_reader
