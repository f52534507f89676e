// One entry of `allnorm train --norm`: the layers that every block of the network has.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "allnorm/catalogue.hpp"

namespace allnorm::launch::train {

/// What makes the weight of a convolution, and what normalizes its output: at least one of them.
struct Layers {
  std::optional<Layer> weights, norm;

  /// Those of the norm, or where there is none those of no norm in particular.
  const NormOptions& options() const noexcept;
};

/// The attributes that the network sets itself, and no entry may.
inline constexpr std::array<std::string_view, 9> network_attributes{"activation",       "slope",         "conv_stride",
                                                                    "conv_padding",     "conv_dilation", "conv_groups",
                                                                    "normalized_shape", "training",      "dim"};

struct NormChoice {
  std::string label;                      ///< as it was written
  Layers layers{};                        ///< with the rows' own defaults where no attribute was given
  std::string meaning{};                  ///< the same for entries that differ in how they are written alone
  std::vector<std::string> attributes{};  ///< names of those that were given for the norm

  bool sets(std::string_view attribute) const;
};

/// Reads LIST, "NAME[:attr=value...]" separated by commas, with '+' between a layer of weights and a norm of one block;
/// "all": every row that needs nothing but its input, and the pairs that papers have. Throws invalid_argument
/// for what the catalogue or the network does not know, and for one entry twice.
std::vector<NormChoice> parse_norms(std::string_view list);

/// The layers of a choice with the experiment's attributes where none were given; schedules and burn-in are shares of
/// `updates`, those of the whole training, of `calls` calls of `batch` images each.
Layers layers_of(const NormChoice& choice, std::int64_t batch, std::int64_t calls, std::int64_t updates);

}  // namespace allnorm::launch::train
