// Gamma and beta of samples that take rows of tables, by label or by weights: gathered, and their gradients added up;
// host and device. Section 9 of docs/equations.md.
#pragma once

#include <cstdint>
#include <limits>

#include "allnorm/record.hpp"
#include "kernels/heads.hpp"
#include "kernels/layer_state.hpp"

namespace allnorm::steps {

/// A matrix (rows, columns) in tiles of (tall, wide), one for each call of a step: a CPU walks along rows, and a thread
/// of a GPU has one value.
struct Tiles {
  std::int64_t rows = 0, columns = 0, tall = 1, wide = 1;

  struct Range {
    std::int64_t begin = 0, end = 0;
  };
  ALLNORM_HOST_DEVICE std::int64_t across() const { return (columns + wide - 1) / wide; }
  ALLNORM_HOST_DEVICE std::int64_t count() const { return (rows + tall - 1) / tall * across(); }
  ALLNORM_HOST_DEVICE Range rows_of(std::int64_t tile) const { return cut(tile / across() * tall, tall, rows); }
  ALLNORM_HOST_DEVICE Range columns_of(std::int64_t tile) const { return cut(tile % across() * wide, wide, columns); }

 private:
  ALLNORM_HOST_DEVICE static Range cut(std::int64_t begin, std::int64_t size, std::int64_t all) {
    return {begin, begin + size < all ? begin + size : all};
  }
};

/// Sample n takes sum over k of a_nk * row k: the row of its label, all rows by its weights, or the only one.
struct Shares {
  const std::int64_t* labels = nullptr;  // (samples)
  Parameter weights{};                   // (samples, rows)
  std::int64_t rows = 1;                 // of weights
  bool weighted = false;

  ALLNORM_HOST_DEVICE std::int64_t label(std::int64_t n) const { return labels != nullptr ? labels[n] : 0; }
  ALLNORM_HOST_DEVICE double of(std::int64_t n, std::int64_t k) const { return weighted ? weights[n * rows + k] : 1; }
  /// Those of `range` that sample n takes.
  ALLNORM_HOST_DEVICE Tiles::Range taken(std::int64_t n, const Tiles::Range& range) const {
    if (weighted) return range;
    const std::int64_t row = label(n);
    return range.begin <= row && row < range.end ? Tiles::Range{row, row + 1} : Tiles::Range{};
  }
};

/// Forward, of a tile of (samples, channels): what samples take of a table, and what is added to it. Labels that the
/// host has not seen may have no row: such a sample gets NaN, and the first one is reported.
struct MixtureForward {
  Shares shares{};
  Tiles tiles{};
  Parameter table{}, delta{};        // (rows, channels), (samples, channels)
  std::int64_t rows = 1;             // of the table; without one, any number
  double* values = nullptr;          // (samples, channels)
  ExchangeReport* report = nullptr;  // null: the host has seen the labels

  ALLNORM_HOST_DEVICE bool is_there(std::int64_t n) const {
    const std::int64_t label = shares.label(n);
    return 0 <= label && label < rows;
  }

  ALLNORM_HOST_DEVICE void operator()(std::int64_t tile) const {
    const auto samples = tiles.rows_of(tile), channels = tiles.columns_of(tile);
    for (std::int64_t n = samples.begin; n < samples.end; ++n) {
      const bool bad = !shares.weighted && !is_there(n);
      if (bad && channels.begin == 0) tell(n);
      const auto row =
          shares.weighted ? Tiles::Range{0, shares.rows} : Tiles::Range{shares.label(n), shares.label(n) + 1};
      for (std::int64_t c = channels.begin; c < channels.end; ++c) {
        double sum = bad ? std::numeric_limits<double>::quiet_NaN() : 0;
        for (std::int64_t k = row.begin; !bad && k < row.end; ++k)
          sum += shares.of(n, k) * table[k * tiles.columns + c];
        values[n * tiles.columns + c] = sum + delta[n * tiles.columns + c];
      }
    }
  }

 private:
  // By one thread of all that find such a label.
  ALLNORM_HOST_DEVICE void tell(std::int64_t n) const {
    for (std::int64_t before = 0; before < n; ++before)
      if (!is_there(before)) return;
    if (report == nullptr || report->status != ExchangeReport::fine) return;
    report->label = shares.label(n);
    report->sample = n;
    report->rows = rows;
    system_fence();  // the host reads the rest once it sees the status
    report->status = ExchangeReport::no_such_row;
    system_fence();
  }
};

/// Backward, of a tile of the table's (rows, channels): row k takes a_nk times sample n's, in the order of the samples.
struct MixtureBackward {
  Shares shares{};
  Tiles tiles{};
  std::int64_t samples = 0;
  const double* gradients = nullptr;  // (samples, channels)
  double* sums = nullptr;             // (rows, channels), scratch
  ParameterGrad table{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t tile) const {
    const auto rows = tiles.rows_of(tile), channels = tiles.columns_of(tile);
    const std::int64_t C = tiles.columns;
    for (std::int64_t k = rows.begin; k < rows.end; ++k)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) sums[k * C + c] = 0;
    for (std::int64_t n = 0; n < samples; ++n) {
      const auto taken = shares.taken(n, rows);
      for (std::int64_t k = taken.begin; k < taken.end; ++k)
        for (std::int64_t c = channels.begin; c < channels.end; ++c)
          sums[k * C + c] += shares.of(n, k) * gradients[n * C + c];
    }
    for (std::int64_t k = rows.begin; k < rows.end; ++k)
      for (std::int64_t c = channels.begin; c < channels.end; ++c) table.set(k * C + c, sums[k * C + c]);
  }
};

}  // namespace allnorm::steps
