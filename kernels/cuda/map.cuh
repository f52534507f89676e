// How a map walks a partition: run by run or column by column, in the opposite direction of the reductions before it,
// whose last values the L2 cache still holds. One kernel each, for every map and every source of coefficients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/maps.cuh"
#include "src/runtime/cuda/errors.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda {

constexpr int map_threads = 256;
constexpr int map_unroll = 4;      // vectors that a thread loads before it stores the first
constexpr int map_runs = 256;      // coefficients in shared memory of a walk by runs
constexpr int map_columns = 512;   // of a walk by columns
constexpr int mask_byte = 8;       // values; tiles begin at multiples of it, and of any vector's width
constexpr int block_granule = 64;  // values; lines of the L2 cache have 128 bytes

/// A walk by runs: blocks own `per_block` adjacent values each and cut them into tiles of at most map_runs runs.
struct RunTiles {
  Partition p{};
  std::int64_t elements = 0, per_block = 0, tile = 0;
  Divisor by_run{};  // by the length of a run, as far as a tile can tell
  std::int64_t blocks = 1;

  /// `width`: values per thread and step; `most`: blocks that the device runs at a time.
  RunTiles(const Partition& partition, int width, std::int64_t most) : p(partition), elements(partition.elements()) {
    const std::int64_t step = std::int64_t{map_threads} * width;
    blocks = std::clamp((elements + step - 1) / step, std::int64_t{1}, most);
    per_block = round_up((elements + blocks - 1) / blocks, block_granule);
    if (per_block > 0) blocks = (elements + per_block - 1) / per_block;
    // a tile that begins inside a run touches two runs more than it could hold
    const std::int64_t longest = std::int64_t{1} << 30;  // offsets in a tile have 32 bits
    const bool is_short = p.reduce1 <= longest / (map_runs - 2);
    tile = is_short ? std::max<std::int64_t>(mask_byte, (map_runs - 2) * p.reduce1 / mask_byte * mask_byte) : longest;
    by_run = Divisor(std::clamp(p.reduce1, std::int64_t{1}, tile));
  }
  static constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b * b; }
  /// The group of a run.
  __device__ __forceinline__ std::int64_t group(std::int64_t run) const {
    return run / p.keep1 / p.reduce0 * p.keep1 + run % p.keep1;
  }
};

/// `uniform`: runs are multiples of the map's width, so that a vector has one group.
template <class Map, class Source, bool uniform>
__global__ void __launch_bounds__(map_threads)
    map_by_runs(const Map map, const __grid_constant__ Source source, const RunTiles tiles) {
  using C = typename Map::C;
  using K = typename Source::template Coefficients<C>;
  constexpr int n = Map::n;
  ALLNORM_SHARED(shared, typename Source::Shared);
  ALLNORM_SHARED(coefficients, K[map_runs]);

  source.begin(shared);
  const std::int64_t begin = (gridDim.x - 1 - static_cast<std::int64_t>(blockIdx.x)) * tiles.per_block;
  const std::int64_t end = min(tiles.elements, begin + tiles.per_block);
  const std::int64_t steps = (end - begin + tiles.tile - 1) / tiles.tile;
  for (std::int64_t step = steps - 1; step >= 0; --step) {
    const std::int64_t first = begin + step * tiles.tile;
    const int length = static_cast<int>(min(end - first, tiles.tile));
    const std::int64_t first_run = first / tiles.p.reduce1;
    const int runs = static_cast<int>((first + length - 1) / tiles.p.reduce1 - first_run) + 1;
    __syncthreads();  // the coefficients of the tile before are still read
    for (int r = static_cast<int>(threadIdx.x); r < runs; r += map_threads)
      coefficients[r] = source.template coefficients<C>(shared, tiles.group(first_run + r));
    __syncthreads();

    // values of the first run in this tile
    const int head =
        static_cast<int>(min((first_run + 1) * tiles.p.reduce1 - first, static_cast<std::int64_t>(length)));
    constexpr int stride = map_threads * n;
    const int last = (length - 1) / stride;
    for (int from = last; from >= 0; from -= map_unroll) {
      typename Map::Loaded loaded[map_unroll] = {};
      unrolled<map_unroll>([&](auto u) {
        const int i = (from - u) * stride + static_cast<int>(threadIdx.x) * n;
        if (from - u >= 0 && i < length) loaded[u] = map.load(first + i, min(n, length - i));
      });
      unrolled<map_unroll>([&](auto u) {
        const int i = (from - u) * stride + static_cast<int>(threadIdx.x) * n;
        if (from - u < 0 || i >= length) return;
        unsigned r = 0, left = static_cast<unsigned>(head - i);  // values of run r from i on
        if (i >= head) {
          const auto beyond = static_cast<unsigned>(i - head);
          r = tiles.by_run(beyond);
          left = (r + 1) * tiles.by_run.by - beyond;
          ++r;
        }
        K k = coefficients[r];
        map.store(loaded[u], first + i, min(n, length - i), [&](int e) {
          if (!uniform && static_cast<unsigned>(e) == left) {
            left += tiles.by_run.by;
            if (e < length - i) k = coefficients[++r];
          }
          return k;
        });
      });
    }
  }
  source.end(shared);
}

/// A walk by columns: `matrices` matrices whose columns belong to groups. Rows are joined until their width is a
/// multiple of the vector's, so only a matrix's last row may be incomplete. A block owns a tile of columns in a part of
/// the rows, and a thread n columns, whose coefficients it keeps in registers.
struct ColumnTiles {
  Partition p{};
  std::int64_t width = 0;   // columns that have groups of their own
  std::int64_t matrix = 0;  // values
  std::int64_t joined = 0, rows = 0, part_rows = 0, parts = 0, tiles = 0;
  int tile_vectors = 0, tile_rows = 0;

  ColumnTiles(const Partition& partition, int n, std::int64_t most)
      : p(partition), width(p.keep1 * p.reduce1), matrix(p.reduce0 * width) {
    joined = width / std::gcd(width, std::int64_t{n}) * n;
    rows = (matrix + joined - 1) / joined;
    const std::int64_t vectors = joined / n, limit = map_columns / n;
    tiles = (vectors + limit - 1) / limit;
    tile_vectors = static_cast<int>((vectors + tiles - 1) / tiles);
    tiles = (vectors + tile_vectors - 1) / tile_vectors;
    tile_rows = map_threads / tile_vectors;
    const std::int64_t wanted = std::max(std::int64_t{1}, most / (p.keep0 * tiles));  // no second wave of few blocks
    parts = std::clamp((rows + tile_rows - 1) / tile_rows, std::int64_t{1}, wanted);
    part_rows = RunTiles::round_up((rows + parts - 1) / parts, tile_rows);
    parts = (rows + part_rows - 1) / part_rows;
  }
  std::int64_t blocks() const { return p.keep0 * parts * tiles; }
  int threads() const { return (tile_vectors * tile_rows + 31) / 32 * 32; }
  /// Whether vectors of n values start at multiples of n in every matrix, and the grid is one that can be launched.
  bool fits(int n) const { return (p.keep0 == 1 || matrix % n == 0) && blocks() < (std::int64_t{1} << 31); }
};

template <class Map, class Source>
__global__ void __launch_bounds__(map_threads)
    map_by_columns(const Map map, const __grid_constant__ Source source, const ColumnTiles tiles) {
  using C = typename Map::C;
  using K = typename Source::template Coefficients<C>;
  constexpr int n = Map::n;
  ALLNORM_SHARED(shared, typename Source::Shared);
  ALLNORM_SHARED(coefficients, K[map_columns]);

  source.begin(shared);
  const std::int64_t block = gridDim.x - 1 - static_cast<std::int64_t>(blockIdx.x);
  const std::int64_t first_column = block % tiles.tiles * tiles.tile_vectors * n, unit = block / tiles.tiles;
  const std::int64_t matrix = unit / tiles.parts, part = unit % tiles.parts;
  const int columns =
      static_cast<int>(min(static_cast<std::int64_t>(tiles.tile_vectors) * n, tiles.joined - first_column));
  for (int j = static_cast<int>(threadIdx.x); j < columns; j += static_cast<int>(blockDim.x))
    coefficients[j] = source.template coefficients<C>(
        shared, matrix * tiles.p.keep1 + (first_column + j) % tiles.width / tiles.p.reduce1);
  __syncthreads();

  const int row_in_tile = static_cast<int>(threadIdx.x) / tiles.tile_vectors;
  const int column = (static_cast<int>(threadIdx.x) - row_in_tile * tiles.tile_vectors) * n;
  if (row_in_tile < tiles.tile_rows && column < columns) {
    K k[n];
    for (int e = 0; e < n; ++e) k[e] = coefficients[column + e];
    const std::int64_t origin = matrix * tiles.matrix, at = first_column + column;
    const std::int64_t begin = part * tiles.part_rows + row_in_tile;
    const std::int64_t end = min(tiles.rows, (part + 1) * tiles.part_rows);
    const std::int64_t last = end > begin ? (end - 1 - begin) / tiles.tile_rows : -1;
    for (std::int64_t from = last; from >= 0; from -= map_unroll) {
      typename Map::Loaded loaded[map_unroll] = {};
      std::int64_t offset[map_unroll] = {};  // in the matrix
      const auto count = [&](int u) {
        return static_cast<int>(min(tiles.matrix - offset[u], static_cast<std::int64_t>(n)));
      };
      unrolled<map_unroll>([&](auto u) {
        offset[u] = from < u ? tiles.matrix : (begin + (from - u) * tiles.tile_rows) * tiles.joined + at;
        if (offset[u] < tiles.matrix) loaded[u] = map.load(origin + offset[u], count(u));
      });
      unrolled<map_unroll>([&](auto u) {
        if (offset[u] < tiles.matrix) map.store(loaded[u], origin + offset[u], count(u), [&](int e) { return k[e]; });
      });
    }
  }
  source.end(shared);
}

// ---- launchers -----------------------------------------------------------------------------------------------------

template <bool uniform, class Map, class Source>
void walk_runs(Queue& queue, const Partition& p, const Map& map, const Source& source) {
  constexpr auto kernel = map_by_runs<Map, Source, uniform>;
  static const std::int64_t most = resident_blocks(kernel, map_threads, queue);
  const RunTiles tiles(p, Map::n, most);
  launch(queue, tiles.blocks, map_threads, 0, kernel, map, source, tiles);
}

/// Runs `map` over the partition in one launch of at least one block.
template <class Map, class Source>
void run_map(Queue& queue, const Partition& partition, const Map& map, const Source& source) {
  constexpr int n = Map::n;
  const Partition p = canonical(partition);
  if (by_columns(p, 1, 32, 4 * p.reduce1)) {  // so that columns, whose coefficients are a thread's, come often
    constexpr auto kernel = map_by_columns<Map, Source>;
    static const std::int64_t most = resident_blocks(kernel, map_threads, queue);
    const ColumnTiles tiles(p, n, most);
    if (tiles.fits(n)) return launch(queue, tiles.blocks(), tiles.threads(), 0, kernel, map, source, tiles);
  }
  p.reduce1 % n == 0 ? walk_runs<true>(queue, p, map, source) : walk_runs<false>(queue, p, map, source);
}

/// What the results of a map over `partition` say to the caches: they stay where they fit.
inline Hint result_hint(Queue& queue, const Partition& partition, std::size_t value_bytes) {
  const auto bytes = static_cast<double>(partition.elements()) * static_cast<double>(value_bytes);
  return bytes > static_cast<double>(properties_of(queue).l2CacheSize) ? Hint::last : Hint::keep;
}

/// y = activation(...), with the mask of y where one is given.
template <bool with_mask, class Source>
void run_apply(Queue& queue, const ApplyArgs& args, std::uint8_t* mask, const Source& source) {
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool whole = is_vector_aligned(args.x) && is_vector_aligned(args.residual) && is_vector_aligned(args.y);
    const auto run = [&](auto width) {
      visit_gammas<false>(args.along, args.floor, args.partition, args.partition, width(), [&](const auto& gammas) {
        const ApplyMap<T, width(), std::remove_cvref_t<decltype(gammas)>> map{
            static_cast<const T*>(args.x),
            static_cast<const T*>(args.residual),
            static_cast<T*>(args.y),
            mask,
            Below<compute_t<T>>(args.activation),
            whole,
            result_hint(queue, args.partition, sizeof(T)),
            gammas};
        run_map(queue, args.partition, map, source);
      });
    };
    if constexpr (with_mask) {
      if (mask != nullptr) return run(std::integral_constant<int, mask_byte>{});
    }
    run(std::integral_constant<int, vector_width<T>>{});
  });
}

/// dx and dresidual; of args all but the coefficients are read.
template <class Source>
void run_apply_grad(Queue& queue, const ApplyGradArgs& args, const Source& source) {
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool whole = is_vector_aligned(args.x) && is_vector_aligned(args.dy) && is_vector_aligned(args.dx) &&
                       is_vector_aligned(args.dresidual);
    visit_gammas<false>(args.along, args.gate.floor, args.partition, args.partition, vector_width<T>,
                        [&](const auto& gammas) {
                          const GradMap<T, vector_width<T>, std::remove_cvref_t<decltype(gammas)>> map{
                              static_cast<const T*>(args.x),
                              static_cast<const T*>(args.dy),
                              static_cast<T*>(args.dx),
                              static_cast<T*>(args.dresidual),
                              Gating<compute_t<T>>(args.gate.activation, args.gate.mask),
                              whole,
                              result_hint(queue, args.partition, sizeof(T)),
                              gammas};
                          run_map(queue, args.partition, map, source);
                        });
  });
}

}  // namespace allnorm::cuda
