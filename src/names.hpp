// The words for the values of options, in the order of their enumerations: for attributes, help and messages.
#pragma once

#include <array>
#include <string_view>

namespace allnorm::names {

inline constexpr std::array<std::string_view, 3> activations{"identity", "relu", "leaky_relu"};
inline constexpr std::array<std::string_view, 2> variants{"paper", "var"};
inline constexpr std::array<std::string_view, 2> weightings{"uniform", "count"};
inline constexpr std::array<std::string_view, 2> running_updates{"last", "every"};
inline constexpr std::array<std::string_view, 2> guards{"clamp", "drop"};
inline constexpr std::array<std::string_view, 2> running_sources{"current", "window"};

}  // namespace allnorm::names
