// Sums of a convolution's patches, and of their products with its output: what the derivatives of the output's
// statistics by the weights are made of.
//
// A weight gradient as a product of matrices: (channels x positions) by (positions x fan-in), tile by tile, with the
// patches laid out in shared memory only. What bounds it is the FP32 pipe at best (four fused multiply-adds per value
// read from shared memory are too few to reach it) and the gather of the patches: every tile of channels gathers them
// anew. Tensor cores are out, TF32 would cost the derivatives 13 bits.
#include <algorithm>
#include <type_traits>

#include "allnorm/dtype.hpp"
#include "kernels/cuda/halves.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vectors.cuh"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda {
namespace {

constexpr int tile_channels = 32, tile_values = 64, tile_positions = 32;  // of a block, and per pass over shared memory
constexpr int patch_threads = 256;
constexpr int own_channels = 2, own_values = 4;  // sums of a thread: 16 x 16 threads cover the tile
constexpr int passes_per_sum = 2;                // up to 64 products are added in the compute type
constexpr std::int64_t least_positions = 256;    // of a part: below, its second stage costs more than it brings

/// How the work is cut: tiles of one conv group's channels and fan-in, and parts of all samples' positions.
struct PatchGrid {
  std::int64_t group_in = 0, group_out = 0, taps = 0, fan_in = 0, positions = 0, in_space = 0, all_positions = 0;
  std::int64_t channel_tiles = 0, value_tiles = 0, tiles = 0, parts = 1, part = 0;

  PatchGrid(const PatchSumsArgs& a, int multiprocessors)
      : group_in(a.in_channels / a.groups),
        group_out(a.channels / a.groups),
        taps(a.kernel[0] * a.kernel[1] * a.kernel[2]),
        fan_in(group_in * taps),
        positions(a.out[0] * a.out[1] * a.out[2]),
        in_space(a.in[0] * a.in[1] * a.in[2]),
        all_positions(a.samples * positions),
        channel_tiles((group_out + tile_channels - 1) / tile_channels),
        value_tiles((fan_in + tile_values - 1) / tile_values),
        tiles(a.groups * channel_tiles * value_tiles) {
    if (tiles == 0) return;
    const std::int64_t wanted = (4 * multiprocessors + tiles - 1) / tiles;
    const std::int64_t most = (all_positions + least_positions - 1) / least_positions;
    parts = std::max<std::int64_t>(1, std::min(wanted, most));
    constexpr std::int64_t step = tile_positions * passes_per_sum;
    part = (all_positions + parts * step - 1) / (parts * step) * step;
  }
  /// Doubles of one part's sums: product (C, fan_in), then patch_sum (groups, fan_in).
  ALLNORM_HOST_DEVICE std::int64_t sums(const PatchSumsArgs& a) const { return (a.channels + a.groups) * fan_in; }
};

/// Where one output position's values lie.
struct Position {
  std::int64_t x = 0, in = 0;  // offsets of channel 0 of the output, of the input's conv group
  std::int64_t origin[3] = {};
  bool inside = false;
};

/// One channel-major tile of shared memory.
template <class C>
struct PatchTiles {
  Position position[tile_positions];
  C factor[tile_positions][tile_channels + 1];  // x - center
  C patch[tile_positions][tile_values + 1];     // 0 outside of the input
};

__device__ inline Position position_of(const PatchSumsArgs& a, const PatchGrid& grid, std::int64_t group,
                                       std::int64_t index, std::int64_t end) {
  Position at;
  at.inside = index < end;
  if (!at.inside) return at;
  const bool channels_first = a.order == Order::channels_first;
  const std::int64_t sample = index / grid.positions, p = index % grid.positions;
  at.x = channels_first ? sample * a.channels * grid.positions + p : index * a.channels;
  at.in = sample * a.in_channels * grid.in_space + group * grid.group_in * (channels_first ? grid.in_space : 1);
  at.origin[0] = p / (a.out[1] * a.out[2]) * a.stride[0] - a.padding[0];
  at.origin[1] = p / a.out[2] % a.out[1] * a.stride[1] - a.padding[1];
  at.origin[2] = p % a.out[2] * a.stride[2] - a.padding[2];
  return at;
}

/// grid.parts x grid.tiles blocks; sums: (parts, sums of a part) or, with one part, the results themselves.
template <class T>
__global__ void __launch_bounds__(patch_threads)
    patch_sums_kernel(const PatchSumsArgs a, const PatchGrid grid, const Turn* turn, double* product,
                      double* patch_sum) {
  using C = compute_t<T>;
  if (turn != nullptr && !turn->derives) return;
  auto& tiles = *dynamic_shared<PatchTiles<C>>();
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t part = blockIdx.x / grid.tiles, tile = blockIdx.x % grid.tiles;
  const std::int64_t group = tile / (grid.channel_tiles * grid.value_tiles);
  const std::int64_t first_channel = tile / grid.value_tiles % grid.channel_tiles * tile_channels;  // of the group
  const std::int64_t first_value = tile % grid.value_tiles * tile_values;
  const bool channels_first = a.order == Order::channels_first;
  product += part * grid.sums(a);
  patch_sum += part * grid.sums(a);

  // the value of the patch that this thread lays out
  const std::int64_t value = first_value + thread % tile_values, tap = value % grid.taps;
  const std::int64_t shift[3] = {tap / (a.kernel[1] * a.kernel[2]) * a.dilation[0],
                                 tap / a.kernel[2] % a.kernel[1] * a.dilation[1], tap % a.kernel[2] * a.dilation[2]};
  const std::int64_t channel_at = value / grid.taps * (channels_first ? grid.in_space : 1);
  const std::int64_t space_step = channels_first ? 1 : a.in_channels;

  const int column = thread % 16, row = thread / 16;
  double sums[own_channels][own_values] = {}, patches = 0;
  C some[own_channels][own_values] = {};
  const auto flush = [&] {
    for (int c = 0; c < own_channels; ++c)
      for (int i = 0; i < own_values; ++i) {
        sums[c][i] += static_cast<double>(some[c][i]);
        some[c][i] = 0;
      }
  };
  const std::int64_t begin = part * grid.part;
  const std::int64_t end = begin + grid.part < grid.all_positions ? begin + grid.part : grid.all_positions;
  int passes = 0;
  for (std::int64_t p = begin; p < end; p += tile_positions) {
    if (thread < tile_positions) tiles.position[thread] = position_of(a, grid, group, p + thread, end);
    __syncthreads();
    for (int k = thread; k < tile_positions * tile_channels; k += patch_threads) {
      // neighbouring threads read neighbouring memory
      const int q = channels_first ? k % tile_positions : k / tile_channels;
      const int c = channels_first ? k / tile_positions : k % tile_channels;
      const std::int64_t in_group = first_channel + c, channel = group * grid.group_out + in_group;
      const Position& at = tiles.position[q];
      tiles.factor[q][c] = at.inside && in_group < grid.group_out
                               ? static_cast<C>(static_cast<double>(widen(static_cast<const T*>(
                                                    a.x)[at.x + channel * (channels_first ? grid.positions : 1)])) -
                                                a.center[channel])
                               : C{0};
    }
    for (int q = thread / tile_values; q < tile_positions; q += patch_threads / tile_values) {
      const Position& at = tiles.position[q];
      const std::int64_t z = at.origin[0] + shift[0], y = at.origin[1] + shift[1], x = at.origin[2] + shift[2];
      const bool inside =
          at.inside && value < grid.fan_in && z >= 0 && z < a.in[0] && y >= 0 && y < a.in[1] && x >= 0 && x < a.in[2];
      const std::int64_t from = at.in + channel_at + ((z * a.in[1] + y) * a.in[2] + x) * space_step;
      tiles.patch[q][thread % tile_values] = inside ? widen(static_cast<const T*>(a.conv_input)[from]) : C{0};
    }
    __syncthreads();
    for (int q = 0; q < tile_positions; ++q) {
      C factor[own_channels], patch[own_values];
      for (int c = 0; c < own_channels; ++c) factor[c] = tiles.factor[q][row * own_channels + c];
      for (int i = 0; i < own_values; ++i) patch[i] = tiles.patch[q][column + 16 * i];
      for (int c = 0; c < own_channels; ++c)
        for (int i = 0; i < own_values; ++i) some[c][i] = fma(factor[c], patch[i], some[c][i]);
    }
    if (first_channel == 0 && thread < tile_values)
      for (int q = 0; q < tile_positions; ++q) patches += static_cast<double>(tiles.patch[q][thread]);
    if (++passes % passes_per_sum == 0) flush();
    __syncthreads();
  }
  flush();
  for (int c = 0; c < own_channels; ++c)
    for (int i = 0; i < own_values; ++i) {
      const std::int64_t in_group = first_channel + row * own_channels + c, at = first_value + column + 16 * i;
      if (in_group < grid.group_out && at < grid.fan_in)
        product[(group * grid.group_out + in_group) * grid.fan_in + at] = sums[c][i];
    }
  if (first_channel == 0 && thread < tile_values && value < grid.fan_in)
    patch_sum[group * grid.fan_in + value] = patches;
}

/// The parts of every sum, in their order.
__global__ void __launch_bounds__(patch_threads)
    add_parts_kernel(const double* sums, std::int64_t parts, std::int64_t products, std::int64_t size, const Turn* turn,
                     double* product, double* patch_sum) {
  if (turn != nullptr && !turn->derives) return;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * patch_threads + threadIdx.x;
  if (i >= size) return;
  double sum = 0;
  for (std::int64_t part = 0; part < parts; ++part) sum += sums[part * size + i];
  (i < products ? product[i] : patch_sum[i - products]) = sum;
}

template <class T>
void patch_sums_of(const PatchSumsArgs& args, const PatchGrid& grid, const Turn* turn, Queue& queue) {
  const std::size_t shared = sizeof(PatchTiles<compute_t<T>>);
  const std::int64_t blocks = grid.tiles * grid.parts;
  if (grid.parts == 1)
    return launch(queue, blocks, patch_threads, shared, patch_sums_kernel<T>, args, grid, turn, args.product,
                  args.patch_sum);
  const std::int64_t size = grid.sums(args), products = args.channels * grid.fan_in;
  Buffer<double> sums(static_cast<std::size_t>(grid.parts * size), queue, Fill::none);
  launch(queue, blocks, patch_threads, shared, patch_sums_kernel<T>, args, grid, turn, sums.data(),
         sums.data() + products);
  launch(queue, (size + patch_threads - 1) / patch_threads, patch_threads, 0, add_parts_kernel,
         static_cast<const double*>(sums.data()), grid.parts, products, size, turn, args.product, args.patch_sum);
}

}  // namespace

void patch_sums(const PatchSumsArgs& args, const Turn* turn, Queue& queue) {
  if (args.channels == 0 || args.groups == 0) return;
  const PatchGrid grid(args, properties_of(queue).multiProcessorCount);
  if (grid.tiles == 0) return;
  visit(args.dtype, [&]<class T>(std::type_identity<T>) { patch_sums_of<T>(args, grid, turn, queue); });
}

}  // namespace allnorm::cuda
