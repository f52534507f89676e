// What the backward reductions add up: over the groups of a norm g and g * (x - center), g being dy behind the
// activation's gate, times gamma where values read their own along; over those of such a gamma g and g * z. And what
// becomes of a group's two sums.
#pragma once

#include <type_traits>

#include "kernels/cuda/coefficients.cuh"
#include "kernels/cuda/records.cuh"
#include "kernels/cuda/reduce.cuh"

namespace allnorm::cuda {

/// Where (x - center) * scale + shift comes from, the sign of z: arrays per group, or a call's frame, gamma and beta.
struct Coefficients {
  double center = 0, scale = 0, shift = 1;
};
struct CoefficientSource {
  const double *center = nullptr, *scale = nullptr, *shift = nullptr;  // (G), without a call
  LayerCall call{};
  bool has_call = false, has_z = false;  // has_z: z matters; otherwise it is 1, which opens every gate

  static CoefficientSource of_call(const BackwardArgs& args) {
    CoefficientSource source{};
    source.call = args;
    source.has_call = true;
    source.has_z = kind_of(args.activation, args.mask) == GateKind::sign;
    return source;
  }
  __device__ double center_of(std::int64_t group) const {
    return has_call ? call.frame.mean[call.to_norm(group)] : center[group];
  }
  __device__ Coefficients of(std::int64_t group) const {
    Coefficients c{.center = center_of(group)};
    if (!has_z) return c;
    if (!has_call) return {c.center, scale[group], shift == nullptr ? 0 : shift[group]};
    const auto k = steps::affine_of(call, call.frame.get(call.to_norm(group)), group);
    return {c.center, k.scale, k.shift};
  }
};

/// n values of x and dy from memory offset `at` on, and their bits of the mask (bit j: the gate of value j is open).
template <class T, int n>
struct GradItem {
  Vector<T, n> x, dy;
  unsigned open;
  std::int64_t at;
};

/// What a kernel knows of its gates. Kernels of folded gammas are made for two: without a mask z decides, which is 1
/// where nothing does.
enum class Gates : std::uint8_t { none, by_sign, by_mask, any };

/// What both reductions read.
template <class Element, Gates gates>
struct GradInput {
  using T = Element;
  template <int n>
  using Item = GradItem<T, n>;
  static constexpr bool centred = false;
  static constexpr int columns_batch = 4;

  const T* x = nullptr;
  const T* dy = nullptr;
  Gating<compute_t<T>> gating;
  CoefficientSource source{};

  __device__ __forceinline__ Gating<compute_t<T>> gate() const {
    auto known = gating;
    if constexpr (gates == Gates::none) known.kind = GateKind::open;
    if constexpr (gates == Gates::by_sign) known.kind = GateKind::sign;
    if constexpr (gates == Gates::by_mask) known.kind = GateKind::mask;
    return known;
  }
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
    item.open = gate().bits_at(at);  // n divides 8 and `at`
    item.at = at;
    return item;
  }
};

// ---- over the groups of a norm -------------------------------------------------------------------------------------

/// A thread's sums over n columns. z is apply's, to the last bit; products and sums are double.
template <class Element, int n>
class GradThread {
 public:
  using C = compute_t<Element>;

  template <class Task>
  __device__ void begin_run(const Task& task, std::int64_t group, std::int64_t) {
    const auto column = column_of(task.source.of(group));
    for (int j = 0; j < n; ++j) columns_[j] = column;
  }
  template <bool whole, class Task>
  __device__ void begin_columns(const Task& task, const ColumnPlan& plan, std::int64_t matrix, std::int64_t column,
                                std::int64_t) {
    for (int j = 0; j < n; ++j) columns_[j] = column_of(task.source.of(plan.group_of(matrix, column + j)));
  }
  /// What adds nothing.
  __device__ GradItem<Element, n> filler() const { return {}; }

  template <int batch, class Task>
  __device__ void add(const Task& task, const GradItem<Element, n> (&items)[batch], int count) {
    const auto gate = task.gate();
    unrolled<batch>([&](auto u) {
      C x[n], dy[n];
      unpack(items[u].x, x);
      unpack(items[u].dy, dy);
      typename Task::Gammas::template Values<C, n> values;
      if (u < count) values = task.gammas.template load<C, n>(items[u].at, n, gate.kind == GateKind::sign);
      unrolled<n>([&](auto j) {
        const C difference = x[j] - columns_[j].center;
        const C g = gate.gated(dy[j], difference * columns_[j].power, columns_[j].scale, columns_[j].shift,
                               values.own(j), items[u].open >> j & 1u);
        sums_[j].add(values.own(j).weighted(static_cast<double>(g)), static_cast<double>(difference));
      });
    });
  }

  /// About `center`, of which the thread has taken the rounded value off.
  __device__ Sums column_sums(int j, double center) const { return about(sums_[j], j, center); }
  __device__ Sums run_sums(double center) const {
    Sums sums = sums_[0];
    for (int j = 1; j < n; ++j) sums.add(sums_[j]);
    return about(sums, 0, center);
  }

 private:
  __device__ static Affine<C> column_of(const Coefficients& k) { return affine<C>(k.center, k.scale, k.shift); }
  __device__ Sums about(Sums sums, int j, double center) const {
    return {sums.sum, sums.second + (static_cast<double>(columns_[j].center) - center) * sums.sum};
  }

  Affine<C> columns_[n] = {};
  Sums sums_[n] = {};
};

/// What becomes of a fine group's sums: as they are; as the group's and the parameters' own where there is one fine
/// group for each; or kept as four terms, to be added up.
struct GradEnd {
  double *sum_g = nullptr, *sum_gx = nullptr;  // (G), optional
  double *s1 = nullptr, *s2 = nullptr;         // (G), optional
  ParameterGrad dweight{}, dbias{};            // with s1 and s2
  double* terms = nullptr;                     // (4, fine groups): s1, s2, dgamma, dbeta; optional
  double* eps_terms = nullptr;                 // (fine groups) of the learned eps, beside s1 and s2; optional
  std::int64_t groups = 0;                     // fine ones
  BackwardRecord record{};

  /// Where there is one fine group for each group and each parameter that is folded.
  static GradEnd own_of(const BackwardArgs& args) {
    GradEnd end{};
    end.groups = args.fine.groups();
    end.s1 = args.sums;
    end.s2 = args.sums + end.groups;
    if (args.wants_weight && !args.along) end.dweight = args.dweight, end.dbias = args.dbias;
    return end;
  }
};

template <class Element, Gates gates, class GammasOf = FoldedGammas>
struct GradTask : GradInput<Element, gates> {
  using Gammas = GammasOf;
  template <int n>
  using Thread = GradThread<Element, n>;

  GradEnd end{};
  Gammas gammas{};

  bool aligned() const { return GradInput<Element, gates>::aligned() && gammas.whole; }
  __device__ double pivot(std::int64_t group, std::int64_t) const { return this->source.center_of(group); }
  __device__ void finish(std::int64_t group, double, const Sums& sums, double) const {
    if (end.sum_g != nullptr) {
      end.sum_g[group] = sums.sum;
      end.sum_gx[group] = sums.second;
      return;
    }
    const LayerCall& call = this->source.call;
    const auto t =
        steps::grad_terms(call.frame.get(call.to_norm(group)), steps::gamma_of(call, group), sums.sum, sums.second);
    if (end.eps_terms != nullptr) end.eps_terms[group] = steps::eps_grad(call, group, t.s2);
    if (end.terms != nullptr) {
      end.terms[group] = t.s1;
      end.terms[end.groups + group] = t.s2;
      end.terms[2 * end.groups + group] = t.dgamma;
      end.terms[3 * end.groups + group] = t.dbeta;
      return;
    }
    end.s1[group] = t.s1;
    end.s2[group] = t.s2;
    call.direct.join(call.frame.rstd, group, end.s1[group], end.s2[group]);
    end.dweight.set(group, t.dgamma);
    end.dbias.set(group, t.dbeta);
  }
  __host__ __device__ bool has_extra() const { return end.record.data != nullptr; }
  __device__ void extra() const { end.record.write_head(); }
};

// ---- over the groups of a gamma that is read along ------------------------------------------------------------------

/// A thread's sums over n columns. A vector lies in one group of the norm. z is double, but where its sign is a gate's,
/// which is apply's to the last bit.
template <class Element, int n>
class AffineThread {
 public:
  using C = compute_t<Element>;

  template <class Task>
  __device__ void begin_run(const Task& task, std::int64_t group, std::int64_t) {
    for (int j = 0; j < n; ++j) own_[j] = task.own_of(group);
  }
  template <bool whole, class Task>
  __device__ void begin_columns(const Task& task, const ColumnPlan& plan, std::int64_t matrix, std::int64_t column,
                                std::int64_t) {
    for (int j = 0; j < n; ++j) own_[j] = task.own_of(plan.group_of(matrix, column + j));
  }
  __device__ GradItem<Element, n> filler() const { return {}; }

  template <int batch, class Task>
  __device__ void add(const Task& task, const GradItem<Element, n> (&items)[batch], int count) {
    const auto gate = task.gate();
    unrolled<batch>([&](auto u) {
      if (u >= count) return;
      const Coefficients k = task.source.of(GroupWalk(task.norm, items[u].at).group);
      const auto a = gate.kind == GateKind::sign ? affine<C>(k.center, k.scale, k.shift) : Affine<C>{};
      C x[n], dy[n];
      unpack(items[u].x, x);
      unpack(items[u].dy, dy);
      unrolled<n>([&](auto j) {
        const C centred = centred_of(x[j], a.center, a.power);
        const C g = gate.gated(dy[j], centred, a.scale, a.shift, own_[j], items[u].open >> j & 1u);
        sums_[j].add(static_cast<double>(g), std::fma(static_cast<double>(x[j]) - k.center, k.scale, k.shift));
      });
    });
  }

  __device__ Sums column_sums(int j, double) const { return sums_[j]; }
  __device__ Sums run_sums(double) const {
    Sums sums = sums_[0];
    for (int j = 1; j < n; ++j) sums.add(sums_[j]);
    return sums;
  }

 private:
  AlongOwn<C> own_[n] = {};
  Sums sums_[n] = {};
};

template <class Element, Gates gates>
struct AffineTask : GradInput<Element, gates> {
  template <int n>
  using Thread = AffineThread<Element, n>;

  GroupIndex norm{};
  Parameter weight{}, bias{};
  ParameterGrad dweight{}, dbias{};

  bool aligned() const { return GradInput<Element, gates>::aligned() && norm.p.reduce1 % vector_width<Element> == 0; }
  __device__ AlongOwn<compute_t<Element>> own_of(std::int64_t group) const {
    if (this->gate().kind != GateKind::sign) return {};
    return {static_cast<compute_t<Element>>(weight[group]), static_cast<compute_t<Element>>(bias[group])};
  }
  __device__ double pivot(std::int64_t, std::int64_t) const { return 0; }
  __device__ void finish(std::int64_t group, double, const Sums& sums, double) const {
    dweight.set(group, sums.second);
    dbias.set(group, sums.sum);
  }
  __host__ __device__ bool has_extra() const { return false; }
  __device__ void extra() const {}
};

}  // namespace allnorm::cuda
