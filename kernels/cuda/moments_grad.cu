// The backward reductions: sum of g and of g * (x - center) per group, g being dy behind the activation's gate; and
// with them the first half of a layer's backward call.
#include "kernels/cuda/fused.hpp"
#include "kernels/cuda/groupwise.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/moments_grad.cuh"

namespace allnorm::cuda {

namespace {

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
  // the second half does it all
  if (groupwise_backward_fits(args, properties_of(queue)) || fused_fits(args, queue)) return;
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
