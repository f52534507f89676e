// The history stage: statistics of the mini-batches of one batch (CmBN) and of past iterations (Cross-Iteration BN).
// It reads this call's statistics over the group of ranks and yields those to normalize with. A call is prepared in a
// HistoryStep and takes effect in commit(), which cannot fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/norm.hpp"
#include "allnorm/options.hpp"
#include "allnorm/state.hpp"

namespace allnorm {

/// Statistics of one call, or of several, per channel.
struct Statistics {
  double count = 0;             // values per channel over all ranks
  std::vector<double> mean{};   // (C)
  std::vector<double> var{};    // (C), biased
  std::vector<double> share{};  // (C) weight of this call's own statistics in them
};

/// A large array that a window keeps: f32, or f64 where the layer computes in f64. One of the two is empty.
struct Kept {
  std::vector<float> narrow{};
  std::vector<double> wide{};

  Kept() = default;
  Kept(std::size_t size, bool as_f64) : narrow(as_f64 ? 0 : size), wide(as_f64 ? size : 0) {}
  Kept(const std::vector<double>& values, bool as_f64) : Kept(values.size(), as_f64) {
    visit([&values](auto& kept) {
      for (std::size_t i = 0; i < values.size(); ++i)
        kept[i] = static_cast<typename std::decay_t<decltype(kept)>::value_type>(values[i]);
    });
  }
  bool empty() const noexcept { return narrow.empty() && wide.empty(); }
  std::size_t bytes() const noexcept { return narrow.size() * sizeof(float) + wide.size() * sizeof(double); }
  /// Calls f with the vector that is in use.
  template <class F>
  void visit(F&& f) {
    if (wide.empty())
      f(narrow);
    else
      f(wide);
  }
};

/// The shape of a layer's weights and derivatives (compensate only).
struct WeightShape {
  std::int64_t channels = 0, fan_in = 0, mean_rows = 0;  // mean_rows: conv groups, or C when a framework supplies them
  friend bool operator==(const WeightShape&, const WeightShape&) = default;
};

/// One past iteration (a whole batch).
struct WindowEntry {
  double count = 0;
  std::vector<double> mean{}, var{};  // (C)
  Kept dmean{};                       // (mean_rows, fan_in)
  Kept dvar{};                        // (C, fan_in), of the centred variance
  Kept weight{};                      // (C, fan_in)
};

/// Newest first, at most window - 1.
using Window = std::vector<std::shared_ptr<const WindowEntry>>;

/// What a running update takes.
struct RunningValues {
  bool given = false;                           // false: there is no update
  std::vector<double> mean{}, var{}, biased{};  // (C): mean, variance with Bessel where asked for, biased variance
};

/// What accumulates over the mini-batches of the current batch.
struct BatchSoFar {
  std::int64_t done = 0;              // mini-batches, empty ones included
  double weight = 0;                  // sum of the mini-batches' weights
  double count = 0;                   // sum of their numbers of values
  std::vector<double> mean{}, var{};  // (C)
  std::vector<double> center{};       // (C) the fixed point about which dsquare is taken
  Kept dmean{};                       // (mean_rows, fan_in)
  Kept dsquare{};                     // (C, fan_in): of the mean of (x - center)^2
  Kept theta{};                       // (C, fan_in)
  RunningValues running{};            // what the running statistics take if the batch ends here
};

/// What the layer's weights were at this call, and how the sums of their derivatives are obtained once the mean is
/// known (they are needed by later calls only).
struct DerivativeSource {
  WeightShape shape{};
  std::vector<double> theta{};  // (C, fan_in)
  bool wide = false;            // keep f64
  /// Fills patch_sum (mean_rows, fan_in) and product (C, fan_in) = sum of (x_c - center_c) * d x_c / d theta_c.
  std::function<void(std::span<const double> center, std::span<double> patch_sum, std::span<double> product)> sums{};
};

class History {
 public:
  History(const NormOptions& options, std::int64_t channels);

  bool active() const noexcept { return options_.minibatches > 1 || options_.window > 1; }
  /// Entries that this call reads; 0 in burn-in.
  std::int64_t entries_used() const noexcept;
  std::int64_t entries() const noexcept { return static_cast<std::int64_t>(window_.size()); }
  std::int64_t minibatch() const noexcept { return batch_.done; }
  bool in_burn_in() const noexcept { return batches_ < options_.burn_in; }
  /// True when this call's derivatives will be kept.
  bool wants_derivatives() const noexcept;
  /// Throws invalid_argument when these weights cannot follow those of earlier calls: another shape, or other values in
  /// the middle of a batch.
  void check(const DerivativeSource& source) const;
  /// Of everything that the ranks of a group hold alike; ranks that differ here would normalize differently.
  std::uint64_t hash() const noexcept;

  /// This rank's share of the products <derivative, weights now - weights then>: 2 numbers per channel and entry used,
  /// appended to the message (section 4, option B).
  void lanes(const DerivativeSource& source, std::vector<double>& payload) const;

  struct Step {
    Statistics use{};                // what this call normalizes with
    RunningValues running{};         // given: the running statistics move
    BatchSoFar batch{};              // the batch after this call
    std::optional<Window> window{};  // the window after this call, where it changes
    bool completes_batch = false;    // one that was not empty
    std::optional<WeightShape> shape{};
    Norm::PastStatistics past{};
  };
  /// `current`: this call's statistics over the group; `lanes`: the summed products, empty when not compensating.
  Step fold(const Statistics& current, std::span<const double> lanes, const DerivativeSource* source) const;
  void commit(Step&& step) noexcept;

  /// What a batch that is cut short leaves: a step to commit, or nothing between batches.
  std::optional<Step> cut_short() const;

  void save(State& state) const;
  void load(const State& state, bool drop_per_rank);
  /// Does `state` hold parts of a sum over ranks?
  static bool has_per_rank_parts(const State& state) noexcept;
  std::size_t bytes() const noexcept;

 private:
  void average_window(const Statistics& own, std::span<const double> lanes, Step& step,
                      std::vector<double>& counts) const;
  void add_derivatives(const DerivativeSource& source, const Statistics& current, double f, BatchSoFar& batch) const;
  void close_batch(Step& step) const;

  NormOptions options_;
  std::int64_t channels_ = 0;
  std::int64_t batches_ = 0;  // not empty ones, complete
  BatchSoFar batch_;
  Window window_;
  std::optional<WeightShape> shape_;
};

}  // namespace allnorm
