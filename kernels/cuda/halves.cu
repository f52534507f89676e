// The halves of a layer's call. First the rank's sums and its record; then what the ranks sent is checked, every block
// takes the steps of its own groups, and the map follows at once: one launch each. Or all of it in the second half,
// where a lone rank's call has a faster route.
#include <limits>

#include "kernels/cuda/fused.hpp"
#include "kernels/cuda/halves.hpp"
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/map.cuh"

namespace allnorm::cuda {

namespace {

constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

/// The frame of group g in a forward call, and where it `commits` the next state. Not inline: every kernel has it
/// twice.
__device__ __attribute__((noinline)) steps::GroupFrame frame_of(const ForwardArgs& args, const Gathered& gathered,
                                                                const Turn& turn, std::int64_t g, bool commits) {
  if (args.source == FrameSource::given) return args.frame.get(g);
  if (args.source == FrameSource::running) return steps::running_frame(args, g);
  if (args.source == FrameSource::unit) return steps::unit_frame();
  if (turn.fails) return {nan_value, nan_value, nan_value, nan_value, {}};
  return steps::frame_of(args, gathered, turn, g, commits);
}

/// What a call does, for one thread of a block.
__device__ __attribute__((noinline)) Turn turn_of(const ForwardArgs& args, const Gathered& gathered, bool fails) {
  Turn turn;
  turn.call = args.state.now().calls;
  turn.fails = fails;  // then nothing else is done
  return fails || args.source != FrameSource::call ? turn : steps::turn_of(args, gathered);
}

/// A forward call: each block finds out for itself what the call does, and the frames of its groups.
struct ForwardSource {
  /// Turn has initializers, which shared variables must not have.
  struct Shared {
    alignas(Turn) unsigned char bytes[sizeof(Turn)];
    __device__ __forceinline__ Turn& turn() { return *reinterpret_cast<Turn*>(bytes); }
    __device__ __forceinline__ const Turn& turn() const { return *reinterpret_cast<const Turn*>(bytes); }
  };
  template <class C>
  using Coefficients = Affine<C>;

  ForwardArgs args;
  Gathered gathered;
  unsigned* ticket;

  /// A lone rank's own weights have no record to be flagged in.
  __device__ __forceinline__ bool lone_weights_changed() const {
    return args.record == nullptr && args.weights != nullptr && args.weights[1] != 0;
  }

  __device__ void begin(Shared& shared) const {
    if (args.source == FrameSource::given) return;
    const bool calls = args.source == FrameSource::call;
    const bool fails = calls && (any_fault(Heads{gathered, args.record}) || lone_weights_changed());
    if (threadIdx.x == 0) shared.turn() = turn_of(args, gathered, fails);
    __syncthreads();
  }

  template <class C>
  __device__ Affine<C> coefficients(const Shared& shared, std::int64_t fine) const {
    return affine_frame<C>(args, frame_of(args, gathered, shared.turn(), args.to_norm(fine), false), fine);
  }

  /// Frame and next state; the last block to finish makes the next state the current one.
  __device__ void end(const Shared& shared) const {
    if (args.source == FrameSource::given) return;
    const Turn& turn = shared.turn();
    const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
    for (std::int64_t g = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; g < args.norm.groups(); g += stride)
      args.frame.set(g, frame_of(args, gathered, turn, g, true));
    const bool is_first = blockIdx.x == 0 && threadIdx.x == 0;
    if (args.source != FrameSource::call) {
      if (is_first) *args.frame.scalars = {turn.count, turn.call};
      return;
    }
    const std::int64_t pooled = args.rules.pools ? args.state.channels : 0;
    for (std::int64_t c = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; c < pooled; c += stride)
      steps::pool(args, gathered, turn, c);
    if (is_first) {
      write_turn(args, turn);
      const Heads heads{gathered, args.record};
      Verdict verdict{ExchangeReport::fine, 0};
      if (turn.fails) verdict = lone_weights_changed() ? Verdict{ExchangeReport::weights_changed, 0} : heads.judge();
      if (turn.fails && verdict.status == ExchangeReport::fine) verdict.status = ExchangeReport::too_many;
      heads.tell(args.reporter, verdict);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    const bool is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;  // which leaves it zero
    if (is_last && !turn.fails) end_turn(args, turn);
  }
};

/// The coefficients of a fine group in a backward call. Not inline, as above.
template <class C>
__device__ __attribute__((noinline)) GradCoefficients<C> group_of(const BackwardArgs& args, const Gathered& gathered,
                                                                  bool fails, std::int64_t fine) {
  const std::int64_t g = args.to_norm(fine), groups = args.norm.groups();
  auto k = grad_frame<C>(args, args.frame.get(g), fine, args.frame.scalars->count, steps::summed(gathered, g),
                         steps::summed(gathered, groups + g));
  if (fails) k.gain = k.slope = k.offset = std::numeric_limits<C>::quiet_NaN();
  return k;
}

/// A backward call, from the frame and the sums over the ranks.
struct BackwardSource {
  struct Shared {
    bool fails;
  };
  template <class C>
  using Coefficients = GradCoefficients<C>;

  BackwardArgs args;
  Gathered gathered;

  __device__ void begin(Shared& shared) const {
    const bool fails = any_fault(Heads{gathered, args.record});
    if (threadIdx.x == 0) shared.fails = fails;
    __syncthreads();
  }
  template <class C>
  __device__ GradCoefficients<C> coefficients(const Shared& shared, std::int64_t fine) const {
    return group_of<C>(args, gathered, shared.fails, fine);
  }
  __device__ void end(const Shared& shared) const {
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    const Heads heads{gathered, args.record};
    heads.tell(args.reporter, shared.fails ? heads.judge() : Verdict{ExchangeReport::fine, 0});
  }
};

void apply_call(const ForwardArgs& args, const Gathered& gathered, Queue& queue) {
  ApplyArgs map{};
  map.x = args.x;
  map.residual = args.residual;
  map.y = args.y;
  map.dtype = args.dtype;
  map.partition = args.fine;
  map.activation = args.activation;
  map.along = along_of(args);
  map.floor = floor_of(args);
  run_apply<true>(queue, map, args.mask, ForwardSource{args, gathered, tickets(queue, 1)});
}

void apply_grad_call(const BackwardArgs& args, const Gathered& gathered, Queue& queue) {
  ApplyGradArgs map{};
  map.x = args.x;
  map.dy = args.dy;
  map.dx = args.dx;
  map.dresidual = args.dresidual;
  map.dtype = args.dtype;
  map.partition = args.fine;
  map.gate.activation = args.activation;
  map.gate.mask = args.mask;
  map.along = along_of(args);
  map.gate.floor = floor_of(args);
  const bool wanted = args.dx != nullptr || args.dresidual != nullptr;
  if (!wanted && args.record == nullptr) return;
  if (!wanted) map.partition = {0, 1, 1, 1};  // the heads are checked all the same
  run_apply_grad(queue, map, BackwardSource{args, gathered});
}

}  // namespace

// ---- forward -------------------------------------------------------------------------------------------------------

void forward_local(ForwardArgs& args, Queue& queue) {
  args.route = groupwise_fits(args, properties_of(queue)) ? Route::groups
               : fused_fits(args, queue)                  ? Route::tensor
                                                          : Route::halves;
  if (args.route == Route::halves) reduce_moments(args, queue);
}

void forward_finish(const ForwardArgs& args, const Gathered& gathered, Queue& queue) {
  if (args.route == Route::groups) return groupwise_forward(args, queue);
  if (args.route == Route::tensor) return fused_forward(args, queue);
  apply_call(args, gathered, queue);
}

// ---- backward ------------------------------------------------------------------------------------------------------

void backward_local(BackwardArgs& args, Queue& queue) {
  if (!args.rules.takes_moments() && !args.wants_weight) return;
  args.route = rows_grad_fits(args)                         ? Route::rows
               : groupwise_fits(args, properties_of(queue)) ? Route::groups
               : fused_fits(args, queue)                    ? Route::tensor
                                                            : Route::halves;
  if (args.route != Route::halves) return;
  reduce_gradient(args, queue);
  if (args.along && args.wants_weight) reduce_affine_gradient(args, queue);
}

void backward_finish(const BackwardArgs& args, const Gathered& gathered, Queue& queue) {
  if (args.route == Route::rows) return rows_grad(args, queue);
  if (args.route == Route::groups) return groupwise_backward(args, queue);
  if (args.route == Route::tensor) return fused_backward(args, queue);
  apply_grad_call(args, gathered, queue);
}

}  // namespace allnorm::cuda
