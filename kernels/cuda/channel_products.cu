// Sums of products of two channels of a group: a covariance, or what a gradient has of one.
//
// A product of matrices, (channels x positions) by (positions x channels), tile by tile of one group's pairs, over
// parts of the positions that a second kernel adds in their order. Differences are rounded to the compute type,
// products and sums are double: the square of an f32 need not be one.
#include <algorithm>
#include <type_traits>

#include "allnorm/dtype.hpp"
#include "kernels/cuda/channel_groups.cuh"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda {
namespace {

constexpr int product_threads = 64, product_side = 8, own_pairs = 2;  // 8 x 8 threads with 2 x 2 sums cover the tile
constexpr std::int64_t least_positions = 512;  // of a part: below, adding the parts costs more than they bring
static_assert(product_side * own_pairs == tile_channels);

struct ProductGrid {
  std::int64_t tiles = 0, all_tiles = 0, parts = 1,
               part = 0;  // tiles along one side of a group's matrix; of all groups

  ProductGrid(const ChannelGroups& g, int multiprocessors)
      : tiles((g.width + tile_channels - 1) / tile_channels), all_tiles(g.groups() * tiles * tiles) {
    if (all_tiles == 0) return;
    const std::int64_t wanted = (8 * multiprocessors + all_tiles - 1) / all_tiles;
    parts = std::clamp<std::int64_t>((g.positions() + least_positions - 1) / least_positions, 1, wanted);
    part = (g.positions() + parts * tile_positions - 1) / (parts * tile_positions) * tile_positions;
  }
  /// Doubles of one part's sums: products (C, width), then sums (C).
  static ALLNORM_HOST_DEVICE std::int64_t size(const ChannelGroups& g) { return g.channels * (g.width + 1); }
};

template <class C>
struct ProductTiles {
  C left[tile_channels][tile_positions + 1], right[tile_channels][tile_positions + 1];
};

/// grid.parts x grid.all_tiles blocks; products, sums: of all parts, or with one part the results themselves. Of x
/// alone the tiles below the diagonal are those above it.
template <class T>
__global__ void __launch_bounds__(product_threads)
    channel_products_kernel(const __grid_constant__ ChannelProductsArgs a, const __grid_constant__ ProductGrid grid,
                            double* products, double* sums) {
  using C = compute_t<T>;
  auto& tiles = *dynamic_shared<ProductTiles<C>>();
  const ChannelGroups& g = a.groups;
  const std::int64_t part = blockIdx.x / grid.all_tiles, tile = blockIdx.x % grid.all_tiles;
  const std::int64_t group_channel = tile / (grid.tiles * grid.tiles) * g.width;
  const std::int64_t first_row = tile / grid.tiles % grid.tiles * tile_channels,
                     first_column = tile % grid.tiles * tile_channels;
  const bool symmetric = a.sums == nullptr;
  if (symmetric && first_column < first_row) return;
  products += part * ProductGrid::size(g);
  sums += part * ProductGrid::size(g);
  const auto centred = [&](C value, std::int64_t channel) {
    return static_cast<C>(static_cast<double>(value) - a.center[channel]);
  };
  const auto plain = [](C value, std::int64_t) { return value; };

  const int thread = static_cast<int>(threadIdx.x), row = thread / product_side * own_pairs,
            column = thread % product_side * own_pairs;
  double all[own_pairs][own_pairs] = {}, sum = 0;
  const std::int64_t begin = part * grid.part;
  const std::int64_t end = begin + grid.part < g.positions() ? begin + grid.part : g.positions();
  for (std::int64_t p = begin; p < end; p += tile_positions) {
    const auto* x = static_cast<const T*>(a.x);
    load_tile<product_threads>(x, g, group_channel, first_column, p, end, tiles.right, centred);
    if (symmetric)
      load_tile<product_threads>(x, g, group_channel, first_row, p, end, tiles.left, centred);
    else
      load_tile<product_threads>(static_cast<const T*>(a.dy), g, group_channel, first_row, p, end, tiles.left, plain);
    __syncthreads();
    for (int k = 0; k < tile_positions; ++k)
      for (int i = 0; i < own_pairs; ++i)
        for (int j = 0; j < own_pairs; ++j)
          all[i][j] = fma(static_cast<double>(tiles.left[row + i][k]), static_cast<double>(tiles.right[column + j][k]),
                          all[i][j]);
    if (!symmetric && first_column == 0 && thread < tile_channels)
      for (int k = 0; k < tile_positions; ++k) sum += static_cast<double>(tiles.left[thread][k]);
    __syncthreads();
  }
  for (int i = 0; i < own_pairs; ++i)
    for (int j = 0; j < own_pairs; ++j) {
      const std::int64_t r = first_row + row + i, c = first_column + column + j;
      if (r >= g.width || c >= g.width) continue;
      products[(group_channel + r) * g.width + c] = all[i][j];
      if (symmetric && first_row < first_column) products[(group_channel + c) * g.width + r] = all[i][j];
    }
  if (!symmetric && first_column == 0 && thread < tile_channels && first_row + thread < g.width)
    sums[group_channel + first_row + thread] = sum;
}

constexpr int add_threads = 256;

/// The parts of every sum, in their order. `sums` is null where there is no dy.
__global__ void __launch_bounds__(add_threads)
    add_product_parts_kernel(const double* parts, std::int64_t count, std::int64_t pairs, std::int64_t size,
                             double* products, double* sums) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * add_threads + threadIdx.x;
  if (i >= (sums != nullptr ? size : pairs)) return;
  double sum = 0;
  for (std::int64_t part = 0; part < count; ++part) sum += parts[part * size + i];
  (i < pairs ? products[i] : sums[i - pairs]) = sum;
}

template <class T>
void products_of(const ChannelProductsArgs& args, const ProductGrid& grid, Queue& queue) {
  const std::size_t shared = sizeof(ProductTiles<compute_t<T>>);
  const std::int64_t blocks = grid.all_tiles * grid.parts;
  if (grid.parts == 1)
    return launch(queue, blocks, product_threads, shared, channel_products_kernel<T>, args, grid, args.products,
                  args.sums);
  const std::int64_t size = ProductGrid::size(args.groups), pairs = args.groups.channels * args.groups.width;
  Buffer<double> parts(static_cast<std::size_t>(grid.parts * size), queue, Fill::none);
  launch(queue, blocks, product_threads, shared, channel_products_kernel<T>, args, grid, parts.data(),
         parts.data() + pairs);
  launch(queue, (size + add_threads - 1) / add_threads, add_threads, 0, add_product_parts_kernel,
         static_cast<const double*>(parts.data()), grid.parts, pairs, size, args.products, args.sums);
}

}  // namespace

void channel_products(const ChannelProductsArgs& args, Queue& queue) {
  const ProductGrid grid(args.groups, properties_of(queue).multiProcessorCount);
  if (grid.all_tiles == 0) return;
  visit(args.dtype, [&]<class T>(std::type_identity<T>) { products_of<T>(args, grid, queue); });
}

}  // namespace allnorm::cuda
