#include "allnorm/state.hpp"

#include <algorithm>
#include <cstring>

namespace allnorm {

namespace {

template <class T>
StateEntry entry(std::string name, StateType type, const T* values, const Shape& shape, bool per_rank) {
  StateEntry made{std::move(name), type, shape, {}, per_rank};
  made.data.resize(static_cast<std::size_t>(shape.elements()) * sizeof(T));
  if (!made.data.empty()) std::memcpy(made.data.data(), values, made.data.size());
  return made;
}

}  // namespace

const StateEntry* State::find(std::string_view name) const noexcept {
  for (const StateEntry& e : entries)
    if (e.name == name) return &e;
  return nullptr;
}

bool State::has_history() const noexcept {
  return std::any_of(entries.begin(), entries.end(), [](const StateEntry& e) {
    return (e.name == "allnorm.window.entries" || e.name == "allnorm.batch.done") &&
           std::any_of(e.data.begin(), e.data.end(), [](std::byte b) { return b != std::byte{0}; });
  });
}

void State::add(std::string name, const double* values, const Shape& shape, bool per_rank) {
  entries.push_back(entry(std::move(name), StateType::f64, values, shape, per_rank));
}
void State::add(std::string name, const float* values, const Shape& shape, bool per_rank) {
  entries.push_back(entry(std::move(name), StateType::f32, values, shape, per_rank));
}
void State::add(std::string name, std::int64_t value) {
  entries.push_back(entry(std::move(name), StateType::i64, &value, Shape{}, false));
}

}  // namespace allnorm
