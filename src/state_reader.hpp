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

/// Bytes of a value.
inline std::size_t size_of(StateType type) noexcept {
  switch (type) {
    case StateType::f16:
    case StateType::bf16:
      return 2;
    case StateType::f32:
      return 4;
    case StateType::f64:
    case StateType::i64:
      break;
  }
  return 8;
}

inline const StateEntry& find(const State& state, const std::string& name, const Shape& shape) {
  const StateEntry* entry = state.find(name);
  expect(entry != nullptr, Code::invalid_input, [&] { return "state " + name + " is missing"; });
  expect(entry->shape == shape, Code::invalid_input,
         [&] { return "state " + name + " has shape " + to_string(entry->shape) + ", must have " + to_string(shape); });
  const std::size_t size = size_of(entry->type), bytes = entry->data.size();
  expect(bytes % size == 0 && bytes / size == static_cast<std::size_t>(shape.elements()), Code::invalid_input, [&] {
    return "state " + name + " has " + std::to_string(bytes) + " bytes, must have " + std::to_string(size) +
           " for each of " + std::to_string(shape.elements()) + " values";
  });
  return *entry;
}

/// The values of a floating-point entry; what is narrower (PyTorch's own f32, f16, bf16) is widened.
inline std::vector<double> doubles(const State& state, const std::string& name, const Shape& shape) {
  const StateEntry& entry = find(state, name, shape);
  std::vector<double> values(static_cast<std::size_t>(shape.elements()));
  const auto widen = [&]<class T>(T value) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&value, entry.data.data() + i * sizeof value, sizeof value);
      values[i] = static_cast<double>(load(value));
    }
  };
  switch (entry.type) {
    case StateType::f64:
      widen(double{});
      break;
    case StateType::f32:
      widen(float{});
      break;
    case StateType::f16:
      widen(f16{});
      break;
    case StateType::bf16:
      widen(bf16{});
      break;
    case StateType::i64:
      fail(Code::invalid_input, "state " + name + " holds integers, must hold floats");
  }
  return values;
}

/// Throws unless all values of `name` are finite, and at least `least` (a count, a variance) where that is given; or
/// NaN, where a batch or a window may hold it for channels that no call may use (formulas::kept).
inline void expect_finite(const std::vector<double>& values, const std::string& name, double least,
                          bool or_nan = false) {
  for (std::size_t i = 0; i < values.size(); ++i)
    expect((std::isfinite(values[i]) && values[i] >= least) || (or_nan && std::isnan(values[i])), Code::invalid_input,
           [&] {
             std::string must = "finite";
             if (std::isfinite(least)) must += least > 0 ? " and positive" : " and at least 0";
             if (or_nan) must += ", or nan";
             return name + " has " + std::to_string(values[i]) + " at " + std::to_string(i) + ", must be " + must;
           });
}

constexpr double any = -std::numeric_limits<double>::infinity();

/// Statistics of type `doubles`, checked as by expect_finite.
inline std::vector<double> finite(const State& state, const std::string& name, const Shape& shape, double least = any) {
  auto values = doubles(state, name, shape);
  expect_finite(values, "state " + name, least);
  return values;
}
inline std::vector<double> finite_or_nan(const State& state, const std::string& name, const Shape& shape,
                                         double least = any) {
  auto values = doubles(state, name, shape);
  expect_finite(values, "state " + name, least, true);
  return values;
}

constexpr std::int64_t most_calls = std::int64_t{1} << 62;

/// A counter, from `least` to 2^62: a scalar, or of shape (1,) as some frameworks save it.
inline std::int64_t integer(const State& state, const std::string& name, std::int64_t least) {
  const StateEntry* given = state.find(name);
  const StateEntry& entry = find(state, name, given && given->shape == Shape{1} ? Shape{1} : Shape{});
  expect(entry.type == StateType::i64, Code::invalid_input,
         [&] { return "state " + name + " holds floats, must hold an integer"; });
  std::int64_t value = 0;
  std::memcpy(&value, entry.data.data(), sizeof value);
  expect(value >= least && value <= most_calls, Code::invalid_input, [&] {
    return "state " + name + " is " + std::to_string(value) + ", must be from " + std::to_string(least) + " to 2^62";
  });
  return value;
}

}  // namespace allnorm::state_reader
