// How the kernels cut a partition into tasks, and the coefficients of one group. Everything here follows from the shape
// alone, so the order of every sum, and with it every bit of a result, is independent of the number of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>

#include "allnorm/partition.hpp"
#include "kernels/ops.hpp"
#include "src/runtime/parallel.hpp"

namespace allnorm::cpu {

constexpr std::int64_t block_values = 2048;      // summed about one pivot
constexpr std::int64_t part_values = 64 * 2048;  // summed by one task, at most
constexpr std::int64_t task_values = 16 * 2048;  // worth waking a thread for
constexpr std::int64_t stream_bytes =
    16 << 20;  // a map's output of this size bypasses the caches, which it would only flush
constexpr std::int64_t tile_columns = 512;  // accumulators of a column tile: two arrays of 4 KiB

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept { return (a + b - 1) / b; }
constexpr std::int64_t min_of(std::int64_t a, std::int64_t b) noexcept { return a < b ? a : b; }
constexpr std::int64_t max_of(std::int64_t a, std::int64_t b) noexcept { return a < b ? b : a; }

/// Runs task(0) ... task(tasks - 1) on the queue's threads, without any allocation.
template <class Task>
void for_tasks(Queue& queue, std::int64_t tasks, const Task& task) {
  if (tasks == 1)
    task(std::int64_t{0});
  else if (tasks > 1)
    parallel(queue, tasks, std::cref(task));
}

/// Runs item(i) for all i < items, `grain` of them per task.
template <class Item>
void for_items(Queue& queue, std::int64_t items, std::int64_t grain, const Item& item) {
  for_tasks(queue, ceil_div(items, grain), [&](std::int64_t task) {
    const std::int64_t end = min_of(items, (task + 1) * grain);
    for (std::int64_t i = task * grain; i < end; ++i) item(i);
  });
}

/// The same with item(context, i), in order and with the task's own copy of `context`.
template <class Context, class Item>
void for_items(Queue& queue, std::int64_t items, std::int64_t grain, const Context& context, const Item& item) {
  for_tasks(queue, ceil_div(items, grain), [&](std::int64_t task) {
    Context own = context;
    const std::int64_t end = min_of(items, (task + 1) * grain);
    for (std::int64_t i = task * grain; i < end; ++i) item(own, i);
  });
}

/// The same groups in the same order with the fewest extents above 1: adjacent reduced (kept) extents become one.
constexpr Partition canonical(Partition p) noexcept {
  if (p.keep1 == 1) p = {p.keep0, 1, 1, p.reduce0 * p.reduce1};
  if (p.reduce0 == 1) p = {1, 1, p.keep0 * p.keep1, p.reduce1};
  return p;
}

/// Whether to walk a canonical partition as matrices whose columns belong to groups (short runs, many of them), and not
/// run by run. A map only needs its coefficients per column; a sum also keeps accumulators per column.
constexpr bool by_columns(const Partition& p) noexcept {
  return p.reduce1 == 1 || (p.reduce1 <= 32 && p.reduce0 >= 4 * p.reduce1);
}

/// A reduction run by run. The values of a group, in memory order, are cut into blocks of about block_values (pieces of
/// one run, or several whole runs), and the blocks of a group into parts: the unit of work.
struct RunGrid {
  Partition p{};
  std::int64_t pieces = 1, piece = 0;  // blocks per run and their length, where a run exceeds one block
  std::int64_t runs = 1;               // runs per block, otherwise
  std::int64_t blocks = 0, blocks_per_part = 1, parts = 0;

  explicit RunGrid(const Partition& partition) noexcept : p(partition) {
    if (p.reduce1 > block_values) {
      pieces = ceil_div(p.reduce1, block_values);
      piece = ceil_div(p.reduce1, pieces);
      blocks = p.reduce0 * pieces;
    } else {
      piece = p.reduce1;
      runs = block_values / p.reduce1;
      blocks = ceil_div(p.reduce0, runs);
    }
    blocks_per_part = max_of(1, part_values / (piece * runs));
    parts = ceil_div(blocks, blocks_per_part);
  }

  /// One block: `runs` runs of `length` values from `offset` on, stride() apart.
  struct Block {
    std::int64_t offset, runs, length;
    std::int64_t values() const noexcept { return runs * length; }
  };

  std::int64_t units() const noexcept { return p.groups() * parts; }
  std::int64_t units_per_task() const noexcept {
    return max_of(1, task_values / min_of(p.group_size(), blocks_per_part * piece * runs));
  }
  /// A group is a run, and a block: to find it among others would take as long as to sum a short one.
  bool is_of_runs() const noexcept { return blocks == 1 && p.reduce0 == 1 && p.keep0 == 1; }
  Block run(std::int64_t group) const noexcept { return {group * p.reduce1, 1, p.reduce1}; }
  std::int64_t stride() const noexcept { return p.keep1 * p.reduce1; }  // between the runs of a group
  std::int64_t first_of(std::int64_t group) const noexcept {
    if (p.keep0 == 1) return group * p.reduce1;  // a division costs as much as a short run
    return group / p.keep1 * p.reduce0 * stride() + group % p.keep1 * p.reduce1;
  }
  Block block(std::int64_t group, std::int64_t b) const noexcept {
    const std::int64_t first = first_of(group);
    if (pieces == 1) {
      const std::int64_t run = b * runs;
      return {first + run * stride(), min_of(runs, p.reduce0 - run), p.reduce1};
    }
    const std::int64_t begin = b % pieces * piece;
    return {first + b / pieces * stride() + begin, 1, min_of(piece, p.reduce1 - begin)};
  }
};

/// A walk column by column: `matrices` matrices of `rows` x `width` values. A unit of work is a tile of columns in a
/// part of the rows of one matrix.
struct ColumnGrid {
  std::int64_t matrices = 0, rows = 0, width = 0;
  std::int64_t group_width = 1;  // adjacent columns of one group
  std::int64_t tiles = 0, tile = 0, block_rows = 0, part_rows = 0, parts = 0;

  /// Parts have whole blocks of that many rows, which moments are summed about one pivot of.
  explicit ColumnGrid(const Partition& p, std::int64_t block = 512) noexcept
      : matrices(p.keep0), rows(p.reduce0), width(p.keep1 * p.reduce1), group_width(p.reduce1), block_rows(block) {
    tiles = ceil_div(width, tile_columns);
    tile = ceil_div(ceil_div(width, tiles), 16) * 16;
    tiles = ceil_div(width, tile);
    part_rows = ceil_div(part_values, tile * block_rows) * block_rows;
    parts = ceil_div(rows, part_rows);
  }

  std::int64_t units() const noexcept { return matrices * parts * tiles; }
  std::int64_t units_per_task() const noexcept {
    return max_of(1, task_values / (min_of(tile, width) * min_of(part_rows, rows)));
  }
  struct Unit {
    std::int64_t matrix, part, row, rows, column, columns;
  };
  Unit unit(std::int64_t u) const noexcept {
    const std::int64_t t = u % tiles, part = u / tiles % parts;
    return {u / tiles / parts, part,
            part * part_rows,  min_of(part_rows, rows - part * part_rows),
            t * tile,          min_of(tile, width - t * tile)};
  }
  std::int64_t group(std::int64_t matrix, std::int64_t column) const noexcept {
    return (matrix * width + column) / group_width;
  }
};

/// For the gradients of gamma and beta along groups: small parts, since a thread takes one at a time with all that is
/// done to its rows.
inline ColumnGrid along_grid(const Partition& affine) noexcept {
  constexpr std::int64_t block = 64;
  ColumnGrid grid(affine, block);
  grid.part_rows = ceil_div(ceil_div(grid.rows, max_of(1, grid.parts)), block) * block;
  grid.parts = ceil_div(grid.rows, grid.part_rows);
  return grid;
}

/// A map run by run: whole runs in memory order, long ones in pieces.
struct MapGrid {
  Partition p{};
  std::int64_t pieces = 1, piece = 0, units = 0, grain = 1;

  explicit MapGrid(const Partition& partition) noexcept : p(partition) {
    pieces = ceil_div(p.reduce1, task_values);
    piece = ceil_div(p.reduce1, pieces);
    units = p.keep0 * p.reduce0 * p.keep1 * pieces;
    grain = max_of(1, task_values / piece);
  }

  /// Calls body(context, group, offset, length) for every piece, `grain` of them per task, in memory order and with the
  /// task's own copy of `context`; after() at the end of each task.
  template <class Context, class Body, class After>
  void for_pieces(Queue& queue, const Context& context, const Body& body, const After& after) const {
    for_tasks(queue, ceil_div(units, grain), [&](std::int64_t task) {
      Context own = context;
      const std::int64_t end = min_of(units, (task + 1) * grain), first = task * grain;
      std::int64_t run = first / pieces,
                   i = first % pieces;  // and by steps from here: divisions cost as much as short runs
      std::int64_t kept = run % p.keep1, outer = run / p.keep1, reduced = outer % p.reduce0,
                   base = outer / p.reduce0 * p.keep1;
      for (std::int64_t unit = first; unit < end; ++unit) {
        body(own, base + kept, run * p.reduce1 + i * piece, min_of(piece, p.reduce1 - i * piece));
        if (++i < pieces) continue;
        i = 0, ++run;
        if (++kept < p.keep1) continue;
        kept = 0;
        if (++reduced < p.reduce0) continue;
        reduced = 0, base += p.keep1;
      }
      after();
    });
  }
};

/// The coefficients of (x - center) * scale + shift as the kernels compute it: center and scale rounded to C, the scale
/// in two steps, and a shift that takes back what rounding the center did. fma, so that every translation of this line
/// gives the same bits.
template <class C>
struct Affine {
  C center, power, scale, shift;
};
template <class C>
Affine<C> affine(double center, formulas::Split scale, double shift) noexcept {
  constexpr double most = sizeof(C) == 4 ? 0x1p126 : 0x1p1000;  // a normal number of C, like its inverse
  const C c = static_cast<C>(center);
  const double power = formulas::clip(scale.power, 1 / most, most);
  const double rest = power == scale.power ? scale.rest : scale.rest * (scale.power / power);
  const double rounded = (static_cast<double>(c) - center) * scale.power;
  return {c, static_cast<C>(power), static_cast<C>(rest), static_cast<C>(std::fma(scale.rest, rounded, shift))};
}
template <class C>
Affine<C> affine(double center, double scale, double shift) noexcept {
  return affine<C>(center, formulas::split(scale), shift);
}
/// Given shifts, or 0; given powers, or 1.
inline double shift_of(const double* shift, std::int64_t group) noexcept { return shift != nullptr ? shift[group] : 0; }
inline double power_of(const double* power, std::int64_t group) noexcept { return power != nullptr ? power[group] : 1; }

/// What a map makes of z: itself, something else where it is not above 0, or the level that it falls below.
enum class ZKind : std::uint8_t { plain, active, level };

/// Where backward's gate comes from; identity needs none.
enum class GateKind : std::uint8_t { open, sign, mask, level };
inline GateKind kind_of(const Gate& gate) noexcept {
  if (gate.floor.given()) return GateKind::level;
  if (gate.activation.kind == ActivationKind::identity) return GateKind::open;
  return gate.mask != nullptr ? GateKind::mask : GateKind::sign;
}

/// Calls f with `kind` as a constant.
template <class F>
void visit_gate(GateKind kind, F&& f) {
  switch (kind) {
    case GateKind::open:
      return f(std::integral_constant<GateKind, GateKind::open>{});
    case GateKind::sign:
      return f(std::integral_constant<GateKind, GateKind::sign>{});
    case GateKind::mask:
      return f(std::integral_constant<GateKind, GateKind::mask>{});
    case GateKind::level:
      return f(std::integral_constant<GateKind, GateKind::level>{});
  }
}

}  // namespace allnorm::cpu
