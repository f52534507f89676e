// Which elements share a mean and a variance, and which share a gamma and a beta.
#pragma once

#include <cstdint>

#include "allnorm/axes.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

/// A partition of the elements of a dense tensor, seen in memory order as [keep0][reduce0][keep1][reduce1]: elements
/// with the same two kept indices form one group. Every normalization of the catalogue that centres or scales by
/// moments reduces over such a partition:
///
///   batch_norm,  channels first   1   N    C      S
///   batch_norm,  channels last    1   N*S  C      1
///   layer_norm                    1   1    rows   columns
///   group_norm,  channels first   1   1    N*G    C/G*S
///   group_norm,  channels last    N   S    G      C/G
struct Partition {
  std::int64_t keep0 = 1;    ///< the outermost extent; its index is the first of a group
  std::int64_t reduce0 = 1;  ///< the next, over which groups extend
  std::int64_t keep1 = 1;    ///< the next; its index is the second of a group
  std::int64_t reduce1 = 1;  ///< the innermost, over which groups extend

  /// How many.
  constexpr std::int64_t groups() const noexcept { return keep0 * keep1; }
  /// Elements of one.
  constexpr std::int64_t group_size() const noexcept { return reduce0 * reduce1; }
  /// Elements of the tensor.
  constexpr std::int64_t elements() const noexcept { return groups() * group_size(); }
  /// The group of the element at memory offset i.
  constexpr std::int64_t group_of(std::int64_t i) const noexcept {
    return i / reduce1 / keep1 / reduce0 * keep1 + i / reduce1 % keep1;
  }
  /// The same extents.
  friend constexpr bool operator==(const Partition&, const Partition&) noexcept = default;
};

/// How an input's axes are cut further.
struct Cut {
  std::int64_t groups = 1;  ///< of channels; a divisor of C
  int trailing = 0;         ///< axes that are trailing ones
  int row = 0;              ///< the axis of the rows
};

/// One group for each index of the `kept` axes. Where these have leading or trailing ones, or rows, the order of axes
/// is the file's; otherwise the shape is (N, C, space...). Throws unsupported where the memory order interleaves kept
/// and other axes more than twice.
Partition partition(Axes kept, const Shape& shape, Order order, const Cut& cut = {});

/// How the groups of a fine partition (the common refinement of a norm's and its affine part's) map to those of a
/// coarser one: fine group f lies in coarse group (f + first) / divide % modulo.
struct Coarsening {
  std::int64_t divide = 1;  ///< fine groups in a row that have one coarse group
  std::int64_t modulo = 1;  ///< coarse groups
  std::int64_t first = 0;   ///< fine groups before those of this part of a tensor
  /// The coarse group of fine group f.
  constexpr std::int64_t operator()(std::int64_t f) const noexcept {
    f += first;
    const std::int64_t whole = divide == 1 ? f : f / divide;  // a division costs as much as what is done with a group
    return whole < modulo ? whole : whole % modulo;
  }
};
/// From the groups of `fine` axes to those of `coarse` ones, a part of them. Throws unsupported where an axis between
/// two coarse ones is dropped.
Coarsening coarsening(Axes fine, Axes coarse, const Shape& shape, Order order, const Cut& cut = {});

}  // namespace allnorm
