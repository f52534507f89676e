// Which elements share a mean and a variance, and which share a gamma and a beta.
#pragma once

#include <cstdint>

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
  std::int64_t keep0 = 1, reduce0 = 1, keep1 = 1, reduce1 = 1;

  constexpr std::int64_t groups() const noexcept { return keep0 * keep1; }
  constexpr std::int64_t group_size() const noexcept { return reduce0 * reduce1; }
  constexpr std::int64_t elements() const noexcept { return groups() * group_size(); }
  /// The group of the element at memory offset i.
  constexpr std::int64_t group_of(std::int64_t i) const noexcept {
    return i / reduce1 / keep1 / reduce0 * keep1 + i / reduce1 % keep1;
  }
  friend constexpr bool operator==(const Partition&, const Partition&) noexcept = default;
};

/// One group per channel: BN's partition, and that of a per-channel gamma.
Partition per_channel(const Shape& shape, Order order) noexcept;
/// One group per sample and block of C/blocks channels: GN's (blocks = G) and IN's (blocks = C) partition.
/// `blocks` divides C.
Partition per_sample_block(const Shape& shape, Order order, std::int64_t blocks) noexcept;
/// One group per leading index, over the trailing `axes` axes: LN's partition (the order is that of the file).
Partition per_row(const Shape& shape, int axes) noexcept;

/// How the groups of a fine partition (the common refinement of a norm's and its affine part's) map to those of a
/// coarser one: fine group f lies in coarse group f / divide % modulo.
struct Coarsening {
  std::int64_t divide = 1, modulo = 1;
  constexpr std::int64_t operator()(std::int64_t f) const noexcept { return f / divide % modulo; }
};

}  // namespace allnorm
