// A lone rank's backward call in one cooperative launch, where the norm's groups are the parameters' too. The path
// through backward_local and backward_finish is its slow twin.
#include "kernels/cuda/fused.cuh"
#include "kernels/cuda/fused.hpp"
#include "kernels/cuda/moments_grad.cuh"

namespace allnorm::cuda {
namespace {

template <class Element, int width, bool masked>
struct BackwardWork {
  using T = Element;
  using C = compute_t<T>;
  using Task = GradTask<T, masked>;
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
    const auto f = args.frame.get(g);
    const auto gate = steps::affine_of(args, f, g);
    const Gathered own{nullptr, 0, 0, args.sums};
    return grad_coefficients<C>(f.mean, gate.scale, gate.shift,
                                steps::grad_of(args, own, f, args.weight[args.to_affine(g)], g));
  }
  __device__ void end() const {}
};

bool is_gated(const BackwardArgs& args) { return args.activation.kind != ActivationKind::identity; }

}  // namespace

bool fused_fits(const BackwardArgs& args, Queue& queue) {
  const std::int64_t groups = args.norm.groups();
  const bool can = args.record == nullptr && !args.rows && args.norm.elements() > 0 && args.fine == args.norm &&
                   (!args.wants_weight || args.parameters == groups) && args.reporter.report == nullptr &&
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
    const auto run = [&](auto width, auto masked) {
      GradTask<T, masked()> task{.x = x, .dy = dy, .mask = args.mask, .activation = args.activation};
      task.source.frame = args.frame;
      task.source.to_norm = args.to_norm;
      task.source.to_affine = args.to_affine;
      task.source.weight = args.weight;
      task.source.bias = args.bias;
      task.source.has_frame = true;
      task.source.has_sign = is_gated(args) && !masked();
      task.end.groups = args.norm.groups();
      task.end.s1 = args.sums;
      task.end.s2 = args.sums + args.norm.groups();
      if (args.wants_weight) {
        task.end.dweight = args.dweight;
        task.end.dbias = args.dbias;
      }
      const BackwardWork<T, width(), masked()> work{
          task,
          {x, dy, static_cast<T*>(args.dx), static_cast<T*>(args.dresidual),
           Gating<compute_t<T>>(args.activation, args.mask), true, result_hint(queue, args.norm, sizeof(T))},
          args};
      run_fused(work, p, queue);
    };
    const auto by_mask = [&](auto width) {
      if (is_gated(args) && args.mask != nullptr)
        run(width, std::true_type{});
      else
        run(width, std::false_type{});
    };
    const bool aligned = is_vector_aligned(args.x) && is_vector_aligned(args.dy) && is_vector_aligned(args.dx) &&
                         is_vector_aligned(args.dresidual);
    if (aligned && in_vectors(p, vector_width<T>))
      by_mask(std::integral_constant<int, vector_width<T>>{});
    else
      by_mask(std::integral_constant<int, 1>{});
  });
}

}  // namespace allnorm::cuda
