// Every position's channels by the matrix of their group.
//
// A product of matrices, (channels x channels) by (channels x positions): a block makes a tile of outputs, a group's
// channels tile by tile through shared memory.
#include <algorithm>
#include <type_traits>

#include "allnorm/dtype.hpp"
#include "kernels/cuda/channel_groups.cuh"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"

namespace allnorm::cuda {
namespace {

constexpr int map_threads = 256, own_channels = 4;  // a thread makes four channels of one position
static_assert(map_threads / tile_positions * own_channels == tile_channels);

template <class C>
struct MapTiles {
  C rows[tile_channels][tile_positions + 1];
  C matrix[tile_channels][tile_channels + 1];
};

constexpr int shift_threads = 128;

/// shifts[c]: the shift of channel c, and what rounding the centers takes away.
template <class C>
__global__ void __launch_bounds__(shift_threads)
    shifts_kernel(const __grid_constant__ ChannelMapArgs a, double* shifts) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * shift_threads + threadIdx.x, w = a.groups.width;
  if (c >= a.groups.channels) return;
  double value = a.shift != nullptr ? a.shift[c] : 0;
  for (std::int64_t j = 0; j < w; ++j) {
    const double center = a.center[c / w * w + j], off = static_cast<double>(static_cast<C>(center)) - center;
    value += a.matrix[c * w + j] * (off * a.power[c / w]);
  }
  shifts[c] = value;
}

/// sums[k] += matrix (rows from first_row on) by the channels that value() makes of x, for this thread's outputs.
template <class T, class C, class Value>
__device__ inline void add_mapped(const T* x, const double* matrix, const ChannelGroups& g, std::int64_t group_channel,
                                  std::int64_t first_row, std::int64_t position, MapTiles<C>& tiles,
                                  C (&sums)[own_channels], const Value& value) {
  const int thread = static_cast<int>(threadIdx.x), row = thread / tile_positions * own_channels,
            column = thread % tile_positions;
  for (std::int64_t j = 0; j < g.width; j += tile_channels) {
    load_tile<map_threads>(x, g, group_channel, j, position, g.positions(), tiles.rows, value);
    const std::int64_t r = first_row + thread / tile_channels, c = j + thread % tile_channels;
    tiles.matrix[thread / tile_channels][thread % tile_channels] =
        r < g.width && c < g.width ? static_cast<C>(matrix[(group_channel + r) * g.width + c]) : C{0};
    __syncthreads();
    for (int i = 0; i < tile_channels; ++i)
      for (int k = 0; k < own_channels; ++k) sums[k] = fma(tiles.matrix[row + k][i], tiles.rows[i][column], sums[k]);
    __syncthreads();
  }
}
static_assert(map_threads == tile_channels * tile_channels);  // a thread lays out one value of the matrix

/// Blocks: tiles of positions x groups x tiles of a group's channels.
template <class T>
__global__ void __launch_bounds__(map_threads)
    channel_map_kernel(const __grid_constant__ ChannelMapArgs a, const std::int64_t position_tiles,
                       const std::int64_t channel_tiles, const double* shifts) {
  using C = compute_t<T>;
  auto& tiles = *dynamic_shared<MapTiles<C>>();
  const ChannelGroups& g = a.groups;
  const std::int64_t position = blockIdx.x % position_tiles * tile_positions;
  const std::int64_t group = blockIdx.x / position_tiles / channel_tiles, group_channel = group * g.width;
  const std::int64_t first_row = blockIdx.x / position_tiles % channel_tiles * tile_channels;
  const int thread = static_cast<int>(threadIdx.x), row = thread / tile_positions * own_channels,
            column = thread % tile_positions;
  C sums[own_channels];
  for (int k = 0; k < own_channels; ++k)
    sums[k] = first_row + row + k < g.width ? static_cast<C>(shifts[group_channel + first_row + row + k]) : C{0};
  const C power = static_cast<C>(a.power[group]);
  add_mapped(static_cast<const T*>(a.x), a.matrix, g, group_channel, first_row, position, tiles, sums,
             [&](C value, std::int64_t channel) { return (value - static_cast<C>(a.center[channel])) * power; });
  if (a.of_dy != nullptr)
    add_mapped(static_cast<const T*>(a.dy), a.of_dy, g, group_channel, first_row, position, tiles, sums,
               [](C value, std::int64_t) { return value; });
  for (int k = 0; k < own_channels; ++k) tiles.rows[row + k][column] = sums[k];
  __syncthreads();
  const bool channels_first = g.order == Order::channels_first;
  for (int k = thread; k < tile_channels * tile_positions; k += map_threads) {
    const int c = channels_first ? k / tile_positions : k % tile_channels;
    const int p = channels_first ? k % tile_positions : k / tile_channels;
    if (first_row + c >= g.width || position + p >= g.positions()) continue;
    const std::int64_t channel = group_channel + first_row + c;
    static_cast<T*>(a.y)[offset_of(g, position + p) + channel * (channels_first ? g.space : 1)] =
        narrow<T>(tiles.rows[c][p]);
  }
}

template <class T>
void map_of(const ChannelMapArgs& args, Queue& queue) {
  using C = compute_t<T>;
  const ChannelGroups& g = args.groups;
  Buffer<double> shifts(static_cast<std::size_t>(g.channels), queue, Fill::none);
  launch(queue, (g.channels + shift_threads - 1) / shift_threads, shift_threads, 0, shifts_kernel<C>, args,
         shifts.data());
  const std::int64_t position_tiles = (g.positions() + tile_positions - 1) / tile_positions;
  const std::int64_t channel_tiles = (g.width + tile_channels - 1) / tile_channels;
  launch(queue, position_tiles * channel_tiles * g.groups(), map_threads, sizeof(MapTiles<C>), channel_map_kernel<T>,
         args, position_tiles, channel_tiles, static_cast<const double*>(shifts.data()));
}

}  // namespace

// Blocks read what others write where y is one of the inputs: then they read a copy.
void channel_map(const ChannelMapArgs& args, Queue& queue) {
  const std::size_t bytes =
      static_cast<std::size_t>(args.groups.positions() * args.groups.channels) * size_of(args.dtype);
  if (bytes == 0) return;
  ChannelMapArgs own = args;
  Buffer<std::byte> copy;
  const bool is_x = args.y == args.x, is_dy = args.y == args.dy;
  if (is_x || is_dy) {
    copy = Buffer<std::byte>(bytes, queue, Fill::none);
    copy_on_device(copy.data(), args.y, bytes, queue);
    if (is_x) own.x = copy.data();
    if (is_dy) own.dy = copy.data();
  }
  visit(args.dtype, [&]<class T>(std::type_identity<T>) { map_of<T>(own, queue); });
}

}  // namespace allnorm::cuda
