// What a reduction to moments adds up: a thread's values, and what becomes of a group's mean and sum of squares.
#pragma once

#include "kernels/cuda/records.cuh"
#include "kernels/cuda/reduce.cuh"

namespace allnorm::cuda {

/// A thread's values of n columns: differences from the first value that it sees of each, a few of them added in the
/// compute type, and those sums in double. Differences of halves have few digits, so more of them add up exactly.
template <class Element, int n>
class MomentsThread {
 public:
  using C = compute_t<Element>;
  static constexpr int chain = sizeof(Element) == 2 ? 8 : 2;

  template <class Task>
  __device__ void begin_run(const Task& task, std::int64_t, std::int64_t at) {
    const C first = widen(task.x[at]);
    for (int j = 0; j < n; ++j) pivot_[j] = first;
  }
  template <bool whole, class Task>
  __device__ void begin_columns(const Task& task, const ColumnPlan&, std::int64_t, std::int64_t, std::int64_t at) {
    unpack(task.template read<n, whole>(at), pivot_);
  }
  /// What adds nothing.
  __device__ Vector<Element, n> filler() const { return pack<Element>(pivot_); }

  template <int batch, class Task>
  __device__ void add(const Task&, const Vector<Element, n> (&items)[batch], int count) {
    C values[batch][n];
    unrolled<batch>([&](auto u) { unpack(items[u], values[u]); });
    unrolled<n>([&](auto j) {
      C sum = 0, squares = 0;
      unrolled<batch>([&](auto u) {
        const C difference = values[u][j] - pivot_[j];
        sum += difference;
        squares = fma(difference, difference, squares);
        if constexpr ((u + 1) % chain == 0 || u + 1 == batch) {
          sum_[j] += static_cast<double>(sum);
          sum = 0;
        }
      });
      squares_[j] += sum_of_squares<Element, batch>(squares, [&](auto u) { return values[u][j] - pivot_[j]; });
    });
    count_ += count;
  }

  /// About `pivot`, and squares about their own mean.
  __device__ Sums column_sums(int j, double pivot) const {
    return shifted(static_cast<double>(count_), sum_[j], squares_[j], static_cast<double>(pivot_[j]) - pivot);
  }
  __device__ double column_mean(double sum) const { return count_ > 0 ? sum / static_cast<double>(count_) : 0; }
  __device__ double column_spread(double offset) const { return static_cast<double>(count_) * offset * offset; }

  /// Of all columns, which have one pivot.
  __device__ Sums run_sums(double pivot) const {
    double sum = 0, squares = 0;
    for (int j = 0; j < n; ++j) {
      sum += sum_[j];
      squares += squares_[j];
    }
    return shifted(static_cast<double>(count_) * n, sum, squares, static_cast<double>(pivot_[0]) - pivot);
  }
  __device__ double run_mean(double sum) const { return column_mean(sum / n); }
  __device__ double run_spread(double offset) const { return n * column_spread(offset); }

 private:
  __device__ static Sums shifted(double count, double sum, double squares, double shift) {
    if (count == 0) return {};
    return {sum + count * shift, not_negative(squares - sum * (sum / count))};
  }

  C pivot_[n] = {};
  double sum_[n] = {}, squares_[n] = {};
  int count_ = 0;  // of each column
};

/// Where the moments go: to a lone rank's arrays, or into its record, which has a head too.
struct MomentsEnd {
  double *mean = nullptr, *m2 = nullptr;  // (G)
  ForwardRecord record{};
};

template <class Element>
struct MomentsTask {
  using T = Element;
  template <int n>
  using Thread = MomentsThread<T, n>;
  template <int n>
  using Item = Vector<T, n>;
  static constexpr bool centred = true;
  static constexpr int columns_batch = 8;

  const T* x = nullptr;
  MomentsEnd end{};

  bool aligned() const { return is_vector_aligned(x); }
  template <int n, bool whole>
  __device__ Item<n> read(std::int64_t at, Hint hint = Hint::keep) const {
    if constexpr (whole)
      return read_vector<n>(x + at, hint);
    else
      return read_values<n>(x + at, n);
  }
  __device__ double pivot(std::int64_t, std::int64_t at) const { return static_cast<double>(widen(x[at])); }
  __device__ void finish(std::int64_t group, double count, const Sums& sums, double pivot) const {
    const double mean = count > 0 ? pivot + sums.sum / count : 0, m2 = count > 0 ? sums.second : 0;
    if (end.mean != nullptr) end.mean[group] = mean;
    if (end.m2 != nullptr) end.m2[group] = m2;
  }
  __host__ __device__ bool has_extra() const { return end.record.data != nullptr; }
  __device__ void extra() const { end.record.write_head(); }
};

}  // namespace allnorm::cuda
