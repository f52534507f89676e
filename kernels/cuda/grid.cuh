// How reductions on a GPU cut a partition into blocks of threads: plain arithmetic on the host, and each thread's walk
// over its part. Everything follows from the shape and what the GPU holds at once, so the order of every sum does.
#pragma once

#include <bit>
#include <cstdint>

#include "allnorm/partition.hpp"
#include "kernels/formulas.hpp"

namespace allnorm::cuda {

constexpr int warp_threads = 32;
constexpr int block_threads = 512;                          // of a reduction
constexpr int runs_batch = 4;                               // vectors that a thread of it has in flight, run by run
constexpr std::int64_t part_minimum = 8 * block_threads;    // values: less is not worth a block of its own
constexpr std::int64_t warp_maximum = 4096;                 // values: more is not left to one warp
constexpr std::int64_t tile_maximum = 128;                  // vectors across a tile of columns
constexpr std::int64_t short_run = 64, shortest_runs = 16;  // values: walked as columns if many, or always

ALLNORM_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
ALLNORM_HOST_DEVICE constexpr std::int64_t min_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
ALLNORM_HOST_DEVICE constexpr std::int64_t max_of(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

/// Division by a number that all threads share, in the place of the GPU's own, which is 20 instructions.
struct Divisor {
  std::uint32_t by = 1, inverse = ~std::uint32_t{0};  // (2^32 - 1) / by

  Divisor() = default;
  explicit Divisor(std::int64_t divisor)
      : by(static_cast<std::uint32_t>(divisor)), inverse(~std::uint32_t{0} / static_cast<std::uint32_t>(divisor)) {}
  ALLNORM_HOST_DEVICE std::uint32_t operator()(std::uint32_t a) const {
    const auto quotient = static_cast<std::uint32_t>(std::uint64_t{a} * inverse >> 32);  // or one too few
    return a - quotient * by < by ? quotient : quotient + 1;
  }
};

/// The same groups in the same order with the fewest extents above 1: adjacent reduced (kept) extents become one.
constexpr Partition canonical(Partition p) noexcept {
  if (p.keep1 == 1) p = {p.keep0, 1, 1, p.reduce0 * p.reduce1};
  if (p.reduce0 == 1) p = {1, 1, p.keep0 * p.keep1, p.reduce1};
  return p;
}

/// Whether to walk a canonical partition as matrices whose columns belong to groups, and not run by run: where runs are
/// of `always` values or less, and those of up to `most` where there are `rows` of them.
constexpr bool by_columns(const Partition& p, std::int64_t always = shortest_runs, std::int64_t most = short_run,
                          std::int64_t rows = 4) noexcept {
  return p.elements() > 0 && (p.reduce1 <= always || (p.reduce1 <= most && p.reduce0 >= rows));
}
/// Whether n adjacent values are then read at once.
constexpr bool in_vectors(const Partition& p, int n) noexcept {
  return by_columns(p) ? p.keep1 * p.reduce1 % n == 0 : p.reduce1 % n == 0;
}

/// The parts to cut something into, of which `others` are cut alike: blocks run in waves of `wanted`, and a wave takes
/// as long as a part. `begin`: the most that fit into one wave, or 1; up to 8 of at most `most` are taken instead where
/// they save an eighth of the time, the price of joining them. `length_of(parts)`: what a part is then long, and how
/// many parts come of it.
struct Cut {
  std::int64_t length = 0, parts = 1;
};
template <class LengthOf>
std::int64_t parts_of(std::int64_t others, std::int64_t wanted, std::int64_t most, const LengthOf& length_of) {
  constexpr std::int64_t enough = 8;
  const auto time_of = [&](std::int64_t parts) {
    const Cut cut = length_of(parts);
    return static_cast<double>(ceil_div(others * cut.parts, wanted)) * static_cast<double>(cut.length);
  };
  std::int64_t best = max_of(1, min_of(wanted / max_of(1, others), most));
  double least = time_of(best);
  for (std::int64_t parts = best + 1; parts <= min_of(enough, most); ++parts)
    if (const double time = time_of(parts); time < least * (1 - 1.0 / enough)) {
      best = parts;
      least = time;
    }
  return best;
}

// ---- run by run ----------------------------------------------------------------------------------------------------

/// One thread's way through the runs of its part, there and back: in each of them `per_run` vectors `step` apart, and
/// `hop` more from one run to the next.
struct RunWalk {
  static constexpr bool straight = false;
  std::int64_t at = 0, count = 0;  // offset of the vector in memory; vectors in all
  std::int64_t step = 0, hop = 0, per_run = 1, in_run = 0;

  ALLNORM_HOST_DEVICE void next() {
    at += step;
    if (++in_run < per_run) return;
    in_run = 0;
    at += hop;
  }
  ALLNORM_HOST_DEVICE void back() {
    if (in_run == 0) {
      in_run = per_run;
      at -= hop;
    }
    --in_run;
    at -= step;
  }
  /// From the first vector to the last.
  ALLNORM_HOST_DEVICE void to_last() {
    at += (count - 1) * step + (count / per_run - 1) * hop;
    in_run = per_run - 1;
  }
};

/// A part of a group: some of its runs, or a piece of each. A block, or a warp of it, sums a part.
struct RunPlan {
  Partition p{};                                            // canonical
  int vector = 1;                                           // adjacent values read at once; divides reduce1
  int lanes = block_threads;                                // threads per part
  int across = 1;                                           // of them along a run, a power of two
  int step_bits = 0, down_bits = 0;                         // across * vector and lanes / across are 1 << these
  std::int64_t part_runs = 1, part_length = 0, pieces = 1;  // runs per part, values of each; parts along a run
  std::int64_t parts = 1;                                   // of a group
  std::int64_t blocks = 0;

  struct Part {
    std::int64_t offset = 0, runs = 0, length = 0;
    ALLNORM_HOST_DEVICE std::int64_t values() const { return runs * length; }
  };
  ALLNORM_HOST_DEVICE std::int64_t units() const { return p.groups() * parts; }
  ALLNORM_HOST_DEVICE std::int64_t stride() const { return p.keep1 * p.reduce1; }  // between the runs of a group
  ALLNORM_HOST_DEVICE std::int64_t first_of(std::int64_t group) const {
    return group / p.keep1 * p.reduce0 * stride() + group % p.keep1 * p.reduce1;
  }
  ALLNORM_HOST_DEVICE Part part(std::int64_t group, std::int64_t index) const {
    const std::int64_t run = index / pieces * part_runs, begin = index % pieces * part_length;
    return {first_of(group) + run * stride() + begin, min_of(part_runs, p.reduce0 - run),
            min_of(part_length, p.reduce1 - begin)};
  }
  /// Values of every group's part `index`, without a long division: there are fewer than 2^31 parts.
  ALLNORM_HOST_DEVICE std::int64_t values_of(std::int64_t index) const {
    const auto of = static_cast<std::uint32_t>(index), along = static_cast<std::uint32_t>(pieces);
    return min_of(part_runs, p.reduce0 - of / along * part_runs) *
           min_of(part_length, p.reduce1 - of % along * part_length);
  }
  ALLNORM_HOST_DEVICE RunWalk walk(const Part& part, int lane) const {
    const std::int64_t first = static_cast<std::int64_t>(lane % across) * vector, run = lane / across,
                       down = lanes / across;
    RunWalk w;
    w.step = static_cast<std::int64_t>(across) * vector;
    w.at = part.offset + run * stride() + first;
    if (first >= part.length || run >= part.runs) return w;
    w.per_run = (part.length - first + w.step - 1) >> step_bits;
    w.hop = down * stride() - w.per_run * w.step;
    w.count = w.per_run * ((part.runs - run + down - 1) >> down_bits);
    return w;
  }
  /// The most vectors that a thread has of one part.
  std::int64_t most_of_unit() const {
    return ceil_div(part_length, std::int64_t{across} * vector) * ceil_div(part_runs, lanes / across);
  }
};

/// `vector`, a power of two, divides reduce1, and the arrays are aligned to it. `wanted`: blocks that fill the GPU.
inline RunPlan plan_runs(const Partition& p, int vector, std::int64_t wanted) {
  RunPlan plan;
  plan.p = p;
  plan.vector = vector;
  const std::int64_t groups = p.groups(), size = p.group_size();
  plan.part_runs = p.reduce0;
  plan.part_length = p.reduce1;
  if (size <= block_threads || (size <= warp_maximum && groups >= wanted)) {
    plan.lanes = warp_threads;
  } else {
    const auto cut = [&](std::int64_t parts) {
      plan.part_runs = ceil_div(p.reduce0, min_of(p.reduce0, parts));
      const std::int64_t bands = ceil_div(p.reduce0, plan.part_runs);
      plan.part_length = ceil_div(ceil_div(p.reduce1, max_of(1, parts / bands)), vector) * vector;
      plan.pieces = ceil_div(p.reduce1, plan.part_length);
      plan.parts = bands * plan.pieces;
      return Cut{plan.part_runs * plan.part_length, plan.parts};
    };
    cut(parts_of(groups, wanted, size / part_minimum, cut));
  }
  // across: a whole warp along a run if it is long enough; of the powers of two the one that idles the fewest threads
  const std::int64_t vectors = ceil_div(plan.part_length, vector);
  std::int64_t best = 0;
  for (int across = plan.lanes; across >= 1; across /= 2) {
    if (across < warp_threads && vectors > across && best > 0) break;
    const std::int64_t down = plan.lanes / across;
    const std::int64_t steps = ceil_div(vectors, across) * ceil_div(plan.part_runs, down);
    if (best != 0 && steps >= best) continue;
    best = steps;
    plan.across = across;
  }
  plan.step_bits = std::countr_zero(static_cast<unsigned>(plan.across * vector));
  plan.down_bits = std::countr_zero(static_cast<unsigned>(plan.lanes / plan.across));
  plan.blocks = ceil_div(plan.units(), block_threads / plan.lanes);
  return plan;
}

// ---- column by column ----------------------------------------------------------------------------------------------

/// One thread's way down its part of the rows of its columns, and back.
struct ColumnWalk {
  static constexpr bool straight = true;
  std::int64_t at = 0, count = 0, step = 0;

  ALLNORM_HOST_DEVICE void next() { at += step; }
  ALLNORM_HOST_DEVICE void back() { at -= step; }
  ALLNORM_HOST_DEVICE void to_last() { at += (count - 1) * step; }
};

/// Matrices of `rows` x `width` values, `group_width` adjacent columns to a group. A block sums a tile of columns over
/// a part of the rows: `down` rows at a time, `across` vectors of each.
struct ColumnPlan {
  std::int64_t matrices = 0, rows = 0, width = 0, group_width = 1;
  std::int64_t matrix_groups = 0, tile_groups = 0;
  int vector = 1;
  int across = 1, down = 1;
  std::int64_t tiles = 0, part_rows = 0, parts = 1;
  std::int64_t blocks = 0;

  ALLNORM_HOST_DEVICE std::int64_t tile() const { return static_cast<std::int64_t>(across) * vector; }  // columns
  /// The group of a column within its matrix or tile, without a division where none is needed; its first column.
  ALLNORM_HOST_DEVICE std::int64_t group_of(std::int64_t column) const {
    return group_width == 1 ? column : column / group_width;
  }
  ALLNORM_HOST_DEVICE std::int64_t first_column(std::int64_t column) const { return group_of(column) * group_width; }
  struct Unit {
    std::int64_t matrix = 0, part = 0, row = 0, rows = 0, column = 0, columns = 0;
  };
  ALLNORM_HOST_DEVICE std::int64_t rows_of(std::int64_t part) const {
    return min_of(part_rows, rows - part * part_rows);
  }
  ALLNORM_HOST_DEVICE Unit unit(std::int64_t block) const {
    const std::int64_t t = block % tiles, part = block / tiles % parts;
    return {block / tiles / parts, part,       part * part_rows,
            rows_of(part),         t * tile(), min_of(tile(), width - t * tile())};
  }
  ALLNORM_HOST_DEVICE std::int64_t group_of(std::int64_t matrix, std::int64_t column) const {
    return matrix * matrix_groups + group_of(column);
  }
  /// The first value of a group.
  ALLNORM_HOST_DEVICE std::int64_t first_of(std::int64_t matrix, std::int64_t column) const {
    return matrix * rows * width + first_column(column);
  }
  /// A thread's row among those that are read at a time, and its first column in the tile.
  ALLNORM_HOST_DEVICE int row(int thread) const { return thread / across; }
  ALLNORM_HOST_DEVICE std::int64_t column(int thread) const {
    return static_cast<std::int64_t>(thread % across) * vector;
  }
  ALLNORM_HOST_DEVICE bool works(const Unit& u, int thread) const {
    return row(thread) < down && column(thread) < u.columns;
  }
  ALLNORM_HOST_DEVICE ColumnWalk walk(const Unit& u, int thread) const {
    const int r = row(thread);
    ColumnWalk w;
    w.step = down * width;
    w.at = (u.matrix * rows + u.row + r) * width + u.column + column(thread);
    if (works(u, thread) && r < u.rows) w.count = (u.rows - r + down - 1) / down;
    return w;
  }
  std::int64_t most_of_unit() const { return ceil_div(part_rows, down); }
  /// Doubles of shared memory in which a tile is summed: a value per column of half the rows, or two per thread.
  ALLNORM_HOST_DEVICE std::int64_t value_doubles() const { return max_of(2 * block_threads, (down + 1) / 2 * tile()); }
  /// And four per column of the tile.
  std::int64_t shared_doubles() const { return value_doubles() + 4 * tile(); }
};

constexpr std::int64_t common_multiple(std::int64_t a, std::int64_t b) noexcept {
  std::int64_t x = a, y = b;
  while (y != 0) {
    const std::int64_t rest = x % y;
    x = y;
    y = rest;
  }
  return a / x * b;
}

/// `vector` divides the width keep1 * reduce1, and the arrays are aligned to it. `wanted`: blocks that fill the GPU.
inline ColumnPlan plan_columns(const Partition& p, int vector, std::int64_t wanted) {
  ColumnPlan plan;
  plan.matrices = p.keep0;
  plan.rows = p.reduce0;
  plan.width = p.keep1 * p.reduce1;
  plan.group_width = p.reduce1;
  plan.vector = vector;
  // a tile holds whole groups in whole vectors
  const std::int64_t unit = common_multiple(p.reduce1, vector) / vector, vectors = ceil_div(plan.width, vector);
  const auto whole = [unit](std::int64_t n) { return ceil_div(n, unit) * unit; };
  std::int64_t across = unit < warp_threads ? warp_threads / unit * unit : unit;
  while (2 * across <= tile_maximum && across < vectors && plan.rows * across < 4 * block_threads) across *= 2;
  plan.tiles = ceil_div(vectors, across);
  plan.across = static_cast<int>(whole(ceil_div(vectors, plan.tiles)));
  plan.tiles = ceil_div(vectors, plan.across);
  plan.down = block_threads / plan.across;
  plan.matrix_groups = p.keep1;
  plan.tile_groups = plan.tile() / plan.group_width;
  const std::int64_t most = plan.rows * min_of(plan.tile(), plan.width) / part_minimum;
  const auto cut = [&plan](std::int64_t parts) {
    plan.part_rows = ceil_div(plan.rows, parts);
    plan.parts = ceil_div(plan.rows, plan.part_rows);
    return Cut{plan.part_rows, plan.parts};
  };
  cut(parts_of(plan.matrices * plan.tiles, wanted, most, cut));
  plan.blocks = plan.matrices * plan.tiles * plan.parts;
  return plan;
}

}  // namespace allnorm::cuda
