// The backward reductions: sum of g and of g * (x - center) per group, g being dy behind the activation's gate; and
// with them the first half of a layer's backward call.
#include "kernels/cuda/groupwise.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/records.cuh"
#include "kernels/cuda/reduce.cuh"

namespace allnorm::cuda {

namespace {

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
    const Column column(task.source.of(group));
    for (int j = 0; j < n; ++j) columns_[j] = column;
    begin(task);
  }
  template <bool whole, class Task>
  __device__ void begin_columns(const Task& task, const ColumnPlan& plan, std::int64_t matrix, std::int64_t column,
                                std::int64_t) {
    for (int j = 0; j < n; ++j) columns_[j] = Column(task.source.of(plan.group_of(matrix, column + j)));
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
        const C centred = x[j] - columns_[j].center;
        bool below = (items[u].open >> j & 1u) == 0;
        if constexpr (!masked) below = fma(centred, columns_[j].scale, columns_[j].shift) <= 0;
        const C sloped = leaky_ ? dy[j] * slope_ : C{0};
        const auto g = static_cast<double>(below ? sloped : dy[j]);
        sum_g_[j] += g;
        sum_gx_[j] = fma(g, static_cast<double>(centred), sum_gx_[j]);
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
  /// Center and scale rounded, and a shift that takes back what rounding the center did (kernels/cpu/grid.hpp).
  struct Column {
    C center = 0, scale = 0, shift = 0;
    Column() = default;
    __device__ explicit Column(const Coefficients& k)
        : center(static_cast<C>(k.center)),
          scale(static_cast<C>(k.scale)),
          shift(static_cast<C>(fma(k.scale, static_cast<double>(center) - k.center, k.shift))) {}
  };
  template <class Task>
  __device__ void begin(const Task& task) {
    leaky_ = task.activation.kind == ActivationKind::leaky_relu;
    slope_ = static_cast<C>(task.activation.slope);
  }

  Column columns_[n];
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
  __device__ Item<n> read(std::int64_t at) const {
    Item<n> item;
    if constexpr (whole) {
      item.x = read_vector<n>(x + at);
      item.dy = read_vector<n>(dy + at);
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

/// The sums of the fine groups' terms over the groups of a norm and over the parameters: a warp for each, in one order.
struct CoarseArgs {
  const double* terms = nullptr;  // (4, fine groups)
  std::int64_t fine = 0, groups = 0, parameters = 0;
  Coarsening to_norm{}, to_affine{};
  double *s1 = nullptr, *s2 = nullptr;  // (G)
  ParameterGrad dweight{}, dbias{};
};

/// Two of the terms, summed over the fine groups of coarse group c.
__device__ Sums coarse_sums(const double* first, const double* second, const Coarsening& to, std::int64_t fine,
                            std::int64_t c) {
  const std::int64_t period = to.divide * to.modulo, count = ceil_div(fine, period) * to.divide;
  Sums own;
  for (std::int64_t i = threadIdx.x % warp_threads; i < count; i += warp_threads) {
    const std::int64_t f = (i / to.divide * to.modulo + c) * to.divide + i % to.divide;
    if (f >= fine) continue;
    own.sum += first[f];
    own.second += second[f];
  }
  return {warp_sum(own.sum), warp_sum(own.second)};
}

__global__ void __launch_bounds__(block_threads) coarsen(CoarseArgs args) {
  const std::int64_t item = (static_cast<std::int64_t>(blockIdx.x) * block_threads + threadIdx.x) / warp_threads;
  const bool writes = threadIdx.x % warp_threads == 0;
  if (item < args.groups) {
    const Sums s = coarse_sums(args.terms, args.terms + args.fine, args.to_norm, args.fine, item);
    if (!writes) return;
    args.s1[item] = s.sum;
    args.s2[item] = s.second;
  } else if (const std::int64_t p = item - args.groups; p < args.parameters) {
    const Sums s = coarse_sums(args.terms + 2 * args.fine, args.terms + 3 * args.fine, args.to_affine, args.fine, p);
    if (!writes) return;
    args.dweight.set(p, s.sum);
    args.dbias.set(p, s.second);
  }
}

/// What both entries share.
struct Gradient {
  const void* x = nullptr;
  const void* dy = nullptr;
  DType dtype{};
  Partition partition{};
  Activation activation{};
  const std::uint8_t* mask = nullptr;
  CoefficientSource source{};
};

void reduce_gradient(const Gradient& in, const GradEnd& end, Queue& queue) {
  const bool gated = in.activation.kind != ActivationKind::identity, masked = gated && in.mask != nullptr;
  visit(in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto go = [&](auto task) {
      task.x = static_cast<const T*>(in.x);
      task.dy = static_cast<const T*>(in.dy);
      task.mask = in.mask;
      task.activation = in.activation;
      task.source = in.source;
      task.source.has_sign = gated && !masked;
      task.end = end;
      reduce(task, canonical(in.partition), queue);
    };
    if (masked)
      go(GradTask<T, true>{});
    else
      go(GradTask<T, false>{});
  });
}

}  // namespace

void moments_grad(const MomentsGradArgs& args, Queue& queue) {
  CoefficientSource source{};
  source.center = args.center;
  source.scale = args.gate.scale;
  source.shift = args.gate.shift;
  GradEnd end{};
  end.sum_g = args.sum_g;
  end.sum_gx = args.sum_gx;
  reduce_gradient({args.x, args.dy, args.dtype, args.partition, args.gate.activation, args.gate.mask, source}, end,
                  queue);
}

void backward_local(const BackwardArgs& args, Queue& queue) {
  if (groupwise_backward_fits(args, properties_of(queue))) return;  // the second half does it all
  if (args.rows) return backward_local_rows(args, queue);
  CoefficientSource source{};
  source.frame = args.frame;
  source.to_norm = args.to_norm;
  source.to_affine = args.to_affine;
  source.weight = args.weight;
  source.bias = args.bias;
  source.has_frame = true;
  const std::int64_t groups = args.norm.groups(), fine = args.fine.groups();
  const std::int64_t parameters = args.wants_weight ? args.parameters : 0;
  GradEnd end{};
  end.groups = fine;
  if (args.record != nullptr) end.record = BackwardRecord(args);
  const bool own = fine == groups && (parameters == 0 || parameters == fine);
  if (own) {
    end.s1 = args.sums;
    end.s2 = args.sums + groups;
    end.dweight = args.dweight;
    end.dbias = args.dbias;
  } else {
    end.terms = args.scratch;
  }
  reduce_gradient({args.x, args.dy, args.dtype, args.fine, args.activation, args.mask, source}, end, queue);
  if (own) return;
  const CoarseArgs coarse{end.terms,    fine,           groups,    parameters,
                          args.to_norm, args.to_affine, args.sums, args.sums + groups,
                          args.dweight, args.dbias};
  launch(queue, ceil_div(groups + parameters, block_threads / warp_threads), block_threads, 0, coarsen, coarse);
}

}  // namespace allnorm::cuda
