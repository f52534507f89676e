// A lone rank's backward call in one cooperative launch, where the norm's groups are the parameters' too. The path
// through backward_local and backward_finish is its slow twin.
#include "kernels/cuda/fused.cuh"
#include "kernels/cuda/fused.hpp"
#include "kernels/cuda/moments_grad.cuh"

namespace allnorm::cuda {
namespace {

template <class Element, int width, Gates gates>
struct BackwardWork {
  using T = Element;
  using C = compute_t<T>;
  using Task = GradTask<T, gates>;
  using Map = GradMap<T, width>;
  using Coefficients = GradCoefficients<C>;
  static constexpr int n = width, tensors = 2;

  Task task;
  Map map;
  BackwardArgs args;

  template <class Kept>
  __device__ __forceinline__ void keep(const GradItem<T, n>& read, const Kept& kept, int item) const {
    kept.put(item, 0, read.x);
    kept.put(item, 1, read.dy);
  }
  template <class Kept>
  __device__ __forceinline__ typename Map::Loaded restored(std::int64_t at, const Kept& kept, int item) const {
    return {kept.get(item, 0), kept.get(item, 1), map.gate.bits_at(at)};
  }
  /// The coefficients of group g.
  __device__ __attribute__((noinline)) Coefficients step(std::int64_t g) const {
    return grad_frame<C>(args, args.frame.get(g), g, args.frame.scalars->count, args.sums[g],
                         args.sums[args.norm.groups() + g]);
  }
  __device__ void end() const {}
};

}  // namespace

bool fused_fits(const BackwardArgs& args, Queue& queue) {
  const std::int64_t groups = args.norm.groups();
  const bool can = args.record == nullptr && !args.along && args.norm.elements() > 0 && args.fine == args.norm &&
                   (!args.wants_weight || args.affine.groups() == groups) && args.reporter.report == nullptr &&
                   !args.level.given() && !args.learned_eps.given() &&
                   (args.dx != nullptr || args.dresidual != nullptr);
  if (!can) return false;
  const auto bytes = 2 * args.norm.elements() * static_cast<std::int64_t>(size_of(args.dtype));
  return fusing_pays(args.norm.elements(), bytes, queue);
}

void fused_backward(const BackwardArgs& args, Queue& queue) {
  const Partition p = canonical(args.norm);
  visit(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto* x = static_cast<const T*>(args.x);
    const auto* dy = static_cast<const T*>(args.dy);
    const Gating<compute_t<T>> gating(args.activation, args.mask);
    const auto run = [&](auto width, auto gates) {
      const BackwardWork<T, width(), gates()> work{
          {{x, dy, gating, CoefficientSource::of_call(args)}, GradEnd::own_of(args)},
          {x, dy, static_cast<T*>(args.dx), static_cast<T*>(args.dresidual), gating, true,
           result_hint(queue, args.norm, sizeof(T))},
          args};
      run_fused(work, p, queue);
    };
    const auto by_gates = [&](auto width) {
      if (gating.kind == GateKind::mask)
        run(width, std::integral_constant<Gates, Gates::by_mask>{});
      else
        run(width, std::integral_constant<Gates, Gates::by_sign>{});
    };
    const bool aligned = is_vector_aligned(args.x) && is_vector_aligned(args.dy) && is_vector_aligned(args.dx) &&
                         is_vector_aligned(args.dresidual);
    if (aligned && in_vectors(p, vector_width<T>))
      by_gates(std::integral_constant<int, vector_width<T>>{});
    else
      by_gates(std::integral_constant<int, 1>{});
  });
}

}  // namespace allnorm::cuda
