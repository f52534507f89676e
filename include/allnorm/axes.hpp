// Which axes of an input tell its elements apart: "one mean for each sample and channel".
#pragma once

#include <cstdint>
#include <initializer_list>

namespace allnorm {

/// An input is seen as (N, C, space...), its channels in groups of adjacent ones, or as (leading..., trailing...),
/// where attribute normalized_shape says which axes are trailing; a weight as the rows along its axis `dim`. A layer
/// that mixes the statistics of three norms has one index for each of them, which no input has; one that mixes the
/// channels of a group has, for each channel, one for each of its group: its partners.
enum class Axis : std::uint8_t { sample, group, channel, space, leading, trailing, row, statistic, partner };

/// A set of axes: an array over it has one value for each of their indices. Without any it has one value.
struct Axes {
  std::uint16_t bits = 0;  ///< a bit for each Axis

  constexpr Axes() = default;
  /// The set of these axes.
  constexpr Axes(std::initializer_list<Axis> axes) noexcept {
    for (const Axis axis : axes) bits = static_cast<std::uint16_t>(bits | 1u << static_cast<unsigned>(axis));
  }
  /// The axis, or all of these axes, are in the set.
  constexpr bool has(Axis axis) const noexcept { return (bits >> static_cast<unsigned>(axis) & 1u) != 0; }
  /// \copybrief has(Axis) const
  constexpr bool has(Axes axes) const noexcept { return (axes.bits & ~bits) == 0; }
  /// The same axes.
  friend constexpr bool operator==(const Axes&, const Axes&) noexcept = default;
  /// Both sets together.
  friend constexpr Axes operator|(Axes a, Axes b) noexcept {
    a.bits = static_cast<std::uint16_t>(a.bits | b.bits);
    return a;
  }
};

/// Of an array with a value for each channel.
inline constexpr Axes each_channel{Axis::channel}, each_instance{Axis::sample, Axis::channel};  ///< ... of each sample
/// Of an array shaped like the input.
inline constexpr Axes every_axis{Axis::sample, Axis::channel, Axis::space, Axis::leading, Axis::trailing, Axis::row};

}  // namespace allnorm
