// What products and maps of the channels of a group share: where a tile of one group's channels and some positions
// lies, and how it comes to shared memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/vectors.cuh"
#include "kernels/ops.hpp"

namespace allnorm::cuda {

constexpr int tile_channels = 16, tile_positions = 64;  // of a tile in shared memory

/// The offset of channel 0 at a position.
__device__ inline std::int64_t offset_of(const ChannelGroups& g, std::int64_t position) {
  if (g.order == Order::channels_last) return position * g.channels;
  return position / g.space * g.channels * g.space + position % g.space;
}

/// tile[c][p], for channels first_channel + c of a group that begins at `group_channel` and positions first + p: values
/// that value(x, channel) makes, 0 beyond the group's channels and the end of the positions. Neighbouring threads read
/// neighbouring memory.
template <int threads, class T, class C, class Value>
__device__ inline void load_tile(const T* x, const ChannelGroups& g, std::int64_t group_channel,
                                 std::int64_t first_channel, std::int64_t first, std::int64_t end,
                                 C (&tile)[tile_channels][tile_positions + 1], const Value& value) {
  const bool channels_first = g.order == Order::channels_first;
  for (int k = static_cast<int>(threadIdx.x); k < tile_channels * tile_positions; k += threads) {
    const int c = channels_first ? k / tile_positions : k % tile_channels;
    const int p = channels_first ? k % tile_positions : k / tile_channels;
    const std::int64_t in_group = first_channel + c, channel = group_channel + in_group, position = first + p;
    const bool inside = in_group < g.width && position < end;
    const std::int64_t at = inside ? offset_of(g, position) + channel * (channels_first ? g.space : 1) : 0;
    tile[c][p] = inside ? value(widen(x[at]), channel) : C{0};
  }
}

}  // namespace allnorm::cuda
