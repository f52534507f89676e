// What the backward reductions add up: a thread's g and g * (x - center), g being dy behind the activation's gate, and
// what becomes of a group's two sums.
#pragma once

#include "kernels/cuda/coefficients.cuh"
#include "kernels/cuda/records.cuh"
#include "kernels/cuda/reduce.cuh"

namespace allnorm::cuda {

/// Where (x - center) * scale + shift comes from, the sign of z: arrays per group, or a frame, gamma and beta.
struct Coefficients {
  double center = 0, scale = 0, shift = 1;
};
struct CoefficientSource {
  const double *center = nullptr, *scale = nullptr, *shift = nullptr;  // (G), without a frame
  steps::FrameView frame{};
  Coarsening to_norm{}, to_affine{};
  Parameter weight{}, bias{};
  bool has_frame = false, has_sign = false;  // has_sign: z matters; otherwise it is 1, which opens every gate

  __device__ double center_of(std::int64_t group) const {
    return has_frame ? frame.mean[to_norm(group)] : center[group];
  }
  __device__ Coefficients of(std::int64_t group) const {
    Coefficients c{.center = center_of(group)};
    if (!has_sign) return c;
    if (!has_frame) return {c.center, scale[group], shift[group]};
    const auto f = frame.get(to_norm(group));
    const std::int64_t p = to_affine(group);
    const auto k = formulas::apply(f.rstd, f.correction, weight[p], bias[p]);
    return {c.center, k.scale, k.shift};
  }
};

/// n values of x and dy, and their bits of the mask (bit j: the gate of value j is open).
template <class T, int n>
struct GradItem {
  Vector<T, n> x, dy;
  unsigned open;
};

/// A thread's sums over n columns. z is apply's, to the last bit; products and sums are double.
template <class Element, int n, bool masked>
class GradThread {
 public:
  using C = compute_t<Element>;

  template <class Task>
  __device__ void begin_run(const Task& task, std::int64_t group, std::int64_t) {
    const auto column = column_of(task.source.of(group));
    for (int j = 0; j < n; ++j) columns_[j] = column;
    begin(task);
  }
  template <bool whole, class Task>
  __device__ void begin_columns(const Task& task, const ColumnPlan& plan, std::int64_t matrix, std::int64_t column,
                                std::int64_t) {
    for (int j = 0; j < n; ++j) columns_[j] = column_of(task.source.of(plan.group_of(matrix, column + j)));
    begin(task);
  }
  /// What adds nothing.
  __device__ GradItem<Element, n> filler() const { return {}; }

  template <int batch>
  __device__ void add(const GradItem<Element, n> (&items)[batch], int) {
    unrolled<batch>([&](auto u) {
      C x[n], dy[n];
      unpack(items[u].x, x);
      unpack(items[u].dy, dy);
      unrolled<n>([&](auto j) {
        const C difference = x[j] - columns_[j].center;
        bool below = (items[u].open >> j & 1u) == 0;
        if constexpr (!masked)
          below = affine_of(difference * columns_[j].power, columns_[j].scale, columns_[j].shift) <= 0;
        const C sloped = leaky_ ? dy[j] * slope_ : C{0};
        const auto g = static_cast<double>(below ? sloped : dy[j]);
        sum_g_[j] += g;
        sum_gx_[j] = fma(g, static_cast<double>(difference), sum_gx_[j]);
      });
    });
  }

  /// About `center`, of which the thread has taken the rounded value off.
  __device__ Sums column_sums(int j, double center) const {
    return {sum_g_[j], sum_gx_[j] + (static_cast<double>(columns_[j].center) - center) * sum_g_[j]};
  }
  __device__ Sums run_sums(double center) const {
    Sums sums{sum_g_[0], sum_gx_[0]};
    for (int j = 1; j < n; ++j) {
      sums.sum += sum_g_[j];
      sums.second += sum_gx_[j];
    }
    sums.second += (static_cast<double>(columns_[0].center) - center) * sums.sum;
    return sums;
  }
  __device__ double run_mean(double) const { return 0; }

 private:
  __device__ static Affine<C> column_of(const Coefficients& k) { return affine<C>(k.center, k.scale, k.shift); }
  template <class Task>
  __device__ void begin(const Task& task) {
    leaky_ = task.activation.kind == ActivationKind::leaky_relu;
    slope_ = static_cast<C>(task.activation.slope);
  }

  Affine<C> columns_[n] = {};
  double sum_g_[n] = {}, sum_gx_[n] = {};
  C slope_ = 0;
  bool leaky_ = false;
};

/// What becomes of a fine group's sums: as they are; as the group's and the parameters' own where there is one fine
/// group for each; or kept as four terms, to be added up.
struct GradEnd {
  double *sum_g = nullptr, *sum_gx = nullptr;  // (G), optional
  double *s1 = nullptr, *s2 = nullptr;         // (G), optional
  ParameterGrad dweight{}, dbias{};            // with s1 and s2
  double* terms = nullptr;                     // (4, fine groups): s1, s2, dgamma, dbeta; optional
  std::int64_t groups = 0;                     // fine ones
  BackwardRecord record{};
};

template <class Element, bool masked>
struct GradTask {
  using T = Element;
  template <int n>
  using Thread = GradThread<T, n, masked>;
  template <int n>
  using Item = GradItem<T, n>;
  static constexpr bool centred = false;
  static constexpr int columns_batch = 4;

  const T* x = nullptr;
  const T* dy = nullptr;
  const std::uint8_t* mask = nullptr;
  Activation activation{};
  CoefficientSource source{};
  GradEnd end{};

  bool aligned() const { return is_vector_aligned(x) && is_vector_aligned(dy); }
  template <int n, bool whole>
  __device__ Item<n> read(std::int64_t at, Hint hint = Hint::keep) const {
    Item<n> item;
    if constexpr (whole) {
      item.x = read_vector<n>(x + at, hint);
      item.dy = read_vector<n>(dy + at, hint);
    } else {
      item.x = read_values<n>(x + at, n);
      item.dy = read_values<n>(dy + at, n);
    }
    item.open = 0;
    if constexpr (masked) item.open = static_cast<unsigned>(mask[at / 8]) >> (at % 8);  // n divides 8 and `at`
    return item;
  }
  __device__ double pivot(std::int64_t group, std::int64_t) const { return source.center_of(group); }
  __device__ void finish(std::int64_t group, double, const Sums& sums, double) const {
    if (end.sum_g != nullptr) {
      end.sum_g[group] = sums.sum;
      end.sum_gx[group] = sums.second;
      return;
    }
    const auto t = steps::grad_terms(source.frame.get(source.to_norm(group)), source.weight[source.to_affine(group)],
                                     sums.sum, sums.second);
    if (end.terms != nullptr) {
      end.terms[group] = t.s1;
      end.terms[end.groups + group] = t.s2;
      end.terms[2 * end.groups + group] = t.dgamma;
      end.terms[3 * end.groups + group] = t.dbeta;
      return;
    }
    end.s1[group] = t.s1;
    end.s2[group] = t.s2;
    end.dweight.set(group, t.dgamma);
    end.dbias.set(group, t.dbeta);
  }
  __host__ __device__ bool has_extra() const { return end.record.data != nullptr; }
  __device__ void extra() const { end.record.write_head(); }
};

}  // namespace allnorm::cuda
