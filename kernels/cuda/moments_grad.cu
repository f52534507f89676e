// The backward reductions: sums of g and of g * (x - center) per group of a norm, and of g and g * z per group of a
// gamma that is read along, g being dy behind the activation's gate; and sums over fine groups.
#include "kernels/cuda/halves.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/moments_grad.cuh"

namespace allnorm::cuda {

namespace {

// ---- from fine groups to coarse ones -------------------------------------------------------------------------------

constexpr int coarse_warps = block_threads / warp_threads;

/// A warp walks along each coarse group, lane by lane; or, where coarse groups are neighbours in memory, the warps of a
/// block along as many as a warp has lanes.
ALLNORM_HOST_DEVICE bool are_neighbours(const CoarseSums& sums) { return sums.to.divide == 1; }
std::int64_t blocks_of(const CoarseSums& sums) {
  return ceil_div(sums.groups, are_neighbours(sums) ? warp_threads : coarse_warps);
}

__device__ void coarsen_block(const CoarseSums& in, std::int64_t block) {
  ALLNORM_SHARED(of_warps, double[2][coarse_warps][warp_threads]);
  const int warp = static_cast<int>(threadIdx.x) / warp_threads, lane = static_cast<int>(threadIdx.x) % warp_threads;
  const bool across = are_neighbours(in);
  const std::int64_t c = across ? block * warp_threads + lane : block * coarse_warps + warp;
  const std::int64_t count = ceil_div(in.fine, in.to.divide * in.to.modulo) * in.to.divide;
  Sums own;
  for (std::int64_t i = across ? warp : lane; c < in.groups && i < count; i += across ? coarse_warps : warp_threads) {
    const std::int64_t f = (i / in.to.divide * in.to.modulo + c) * in.to.divide + i % in.to.divide;
    if (f < in.fine) own.add(Sums{in.first[f], in.second[f]});
  }
  if (across) {
    of_warps[0][warp][lane] = own.sum;
    of_warps[1][warp][lane] = own.second;
    __syncthreads();
    own = {};
    for (int w = 0; w < coarse_warps; ++w) own.add(Sums{of_warps[0][w][lane], of_warps[1][w][lane]});
  } else {
    own = {warp_sum(own.sum), warp_sum(own.second)};
  }
  if ((across ? warp : lane) != 0 || c >= in.groups) return;
  if (in.s1 != nullptr) {
    in.s1[c] = own.sum;
    in.s2[c] = own.second;
    in.direct.join(in.rstd, c, in.s1[c], in.s2[c]);
  }
  in.dweight.set(c, own.sum);
  in.dbias.set(c, own.second);
}
__global__ void __launch_bounds__(block_threads)
    coarsen_kernel(const CoarseSums over_norm, const CoarseSums over_affine, const std::int64_t norm_blocks) {
  if (const std::int64_t block = blockIdx.x; block < norm_blocks)
    coarsen_block(over_norm, block);
  else
    coarsen_block(over_affine, block - norm_blocks);
}

// ---- reductions ----------------------------------------------------------------------------------------------------

/// What all entries share.
struct Gradient {
  const void* x = nullptr;
  const void* dy = nullptr;
  DType dtype{};
  Gate gate{};
  CoefficientSource source{};
  Along along{};
};
template <class Args>
Gradient of_arrays(const Args& args) {
  return {args.x, args.dy, args.dtype, args.gate, {args.center, args.gate.scale, args.gate.shift}, args.along};
}
Gradient of_call(const BackwardArgs& args) {
  return {args.x,
          args.dy,
          args.dtype,
          {args.activation, args.mask, nullptr, nullptr, floor_of(args)},
          CoefficientSource::of_call(args),
          along_of(args)};
}
template <class T, Gates gates>
GradInput<T, gates> input_of(const Gradient& in) {
  return {static_cast<const T*>(in.x), static_cast<const T*>(in.dy),
          Gating<compute_t<T>>(in.gate.activation, in.gate.mask), in.source};
}

/// `rest`: of what a level takes of dy in place of g.
void reduce_over(const Partition& partition, Gradient in, const GradEnd& end, Queue& queue, bool rest = false) {
  const GateKind kind = kind_of(in.gate.activation, in.gate.mask);
  in.source.has_z = kind == GateKind::sign;
  visit(in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto go = [&](auto gates, const auto& gammas) {
      using Task = GradTask<T, gates(), std::remove_cvref_t<decltype(gammas)>>;
      reduce(Task{input_of<T, gates()>(in), end, gammas}, canonical(partition), queue);
    };
    if (in.along.given)
      go(std::integral_constant<Gates, Gates::any>{}, AlongGammas<true>(in.along, partition, vector_width<T>));
    else if (in.gate.floor.given())
      go(std::integral_constant<Gates, Gates::by_sign>{}, FloorGammas(in.gate.floor, partition, rest));
    else if (kind == GateKind::mask)
      go(std::integral_constant<Gates, Gates::by_mask>{}, FoldedGammas{});
    else
      go(std::integral_constant<Gates, Gates::by_sign>{}, FoldedGammas{});
  });
}

void reduce_over_affine(const Partition& norm, Gradient in, ParameterGrad dweight, ParameterGrad dbias, Queue& queue) {
  in.source.has_z = true;
  const Along own = in.along.given ? in.along : Along{};
  visit(in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto go = [&](auto gates) {
      const AffineTask<T, gates()> task{
          input_of<T, gates()>(in), GroupIndex(norm), own.weight, own.bias, dweight, dbias};
      reduce(task, canonical(in.along.affine), queue);
    };
    if (in.gate.activation.kind == ActivationKind::identity)
      go(std::integral_constant<Gates, Gates::none>{});
    else
      go(std::integral_constant<Gates, Gates::any>{});
  });
}

}  // namespace

void coarsen(const CoarseSums& over_norm, const CoarseSums& over_affine, Queue& queue) {
  const std::int64_t norm_blocks = blocks_of(over_norm);
  launch(queue, norm_blocks + blocks_of(over_affine), block_threads, 0, coarsen_kernel, over_norm, over_affine,
         norm_blocks);
}

void moments_grad(const MomentsGradArgs& args, Queue& queue) {
  GradEnd end{};
  end.sum_g = args.sum_g;
  end.sum_gx = args.sum_gx;
  reduce_over(args.partition, of_arrays(args), end, queue);
  if (!args.gate.floor.given()) return;
  Buffer<double> unused(static_cast<std::size_t>(args.partition.groups()), queue, Fill::none);
  end.sum_g = args.sum_level;
  end.sum_gx = unused.data();
  reduce_over(args.partition, of_arrays(args), end, queue, true);
}

void affine_grad(const AffineGradArgs& args, Queue& queue) {
  reduce_over_affine(args.norm, of_arrays(args), {args.dweight, DType::f64}, {args.dbias, DType::f64}, queue);
}

void coarsen_more(const BackwardArgs& args, Queue& queue) {
  if (args.dlevel.data == nullptr && args.deps.data == nullptr) return;
  const std::int64_t fine = args.fine.groups();
  coarsen({},
          {args.scratch + 4 * fine, args.scratch + 5 * fine, fine, args.to_affine, args.affine.groups(), nullptr,
           nullptr, args.dlevel, args.deps},
          queue);
}

void reduce_affine_gradient(const BackwardArgs& args, Queue& queue) {
  reduce_over_affine(args.norm, of_call(args), args.dweight, args.dbias, queue);
}

void reduce_gradient(const BackwardArgs& args, Queue& queue) {
  const std::int64_t groups = args.norm.groups(), fine = args.fine.groups();
  const std::int64_t parameters = args.wants_weight && !args.along ? args.affine.groups() : 0;
  const bool own = fine == groups && (parameters == 0 || parameters == fine);
  GradEnd end = own ? GradEnd::own_of(args) : GradEnd{.terms = args.scratch, .groups = fine};
  if (args.dlevel.data != nullptr)  // first: its second sums are in the room of eps
    reduce_over(args.fine, of_call(args), {.sum_g = args.scratch + 4 * fine, .sum_gx = args.scratch + 5 * fine}, queue,
                true);
  if (args.record != nullptr) end.record = BackwardRecord(args);
  if (args.deps.data != nullptr) end.eps_terms = args.scratch + 5 * fine;
  reduce_over(args.fine, of_call(args), end, queue);
  coarsen_more(args, queue);
  if (own) return;
  const double* terms = end.terms;
  coarsen({terms,
           terms + fine,
           fine,
           args.to_norm,
           groups,
           args.sums,
           args.sums + groups,
           {},
           {},
           args.direct,
           args.frame.rstd},
          {terms + 2 * fine, terms + 3 * fine, fine, args.to_affine, parameters, nullptr, nullptr, args.dweight,
           args.dbias},
          queue);
}

}  // namespace allnorm::cuda
