// The large arrays of Cross-Iteration BN's window: products of derivatives with changes of weights before the exchange,
// and the derivatives of a call after it; and the cut of a batch. Everything that counters decide is decided when the
// kernels run, so that the launches are always the same.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/halves.hpp"
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/team.cuh"
#include "src/runtime/cuda/errors.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda {
namespace {

constexpr int window_threads = 256;

/// Blocks of one thread per value.
std::int64_t blocks_for(std::int64_t values) {
  return std::max<std::int64_t>(1, (values + window_threads - 1) / window_threads);
}

/// The window's arrays of derivatives as their type.
template <class T>
struct RingArrays {
  T *dmean, *dvar, *weight;
  __device__ explicit RingArrays(const Ring& ring)
      : dmean(static_cast<T*>(ring.dmean)), dvar(static_cast<T*>(ring.dvar)), weight(static_cast<T*>(ring.weight)) {}
};

/// One block per channel: its products for every entry, and its part of the hash of the weights and of their
/// comparison with the open slot's.
template <class T>
__global__ void __launch_bounds__(window_threads) products_kernel(const ProductsArgs args) {
  const LayerState& state = args.state;
  const Ring& ring = state.ring;
  const Counters& now = state.now();
  const RingArrays<T> arrays(ring);
  const std::int64_t C = state.channels, fan_in = ring.fan_in, c = blockIdx.x;
  const steps::Layout layout{C};

  const T* open = arrays.weight + ((now.newest + 1) % ring.slots * C + c) * fan_in;
  unsigned long long hash = 0;
  bool changed = false;
  for (std::int64_t i = threadIdx.x; i < fan_in; i += window_threads) {
    const double value = args.theta[c * fan_in + i];
    hash += hash_part(value, static_cast<std::uint64_t>(c * fan_in + i));
    changed |= now.derivatives != 0 && static_cast<T>(value) != open[i];
  }
  hash = warp_sum(hash);
  // integers: the same in any order
  if (threadIdx.x % warp_threads == 0) atomicAdd(reinterpret_cast<unsigned long long*>(args.weights), hash);
  if (changed) atomicExch(reinterpret_cast<unsigned long long*>(args.weights + 1), 1ull);
  if (args.payload == nullptr) return;

  const std::int64_t used = now.batches < args.rules.burn_in ? 0 : now.entries;
  for (std::int64_t entry = 0; entry < args.entries; ++entry) {
    Sums sum;  // by the mean, by the variance
    if (entry < used) {
      const std::int64_t slot = ring.slot(now, entry), row = (slot * C + c) * fan_in;
      const T* dmean = arrays.dmean + (slot * ring.mean_rows + ring.mean_row(c, C)) * fan_in;
      for (std::int64_t i = threadIdx.x; i < fan_in; i += window_threads) {
        const double change = args.theta[c * fan_in + i] - static_cast<double>(arrays.weight[row + i]);
        sum.sum += static_cast<double>(dmean[i]) * change;
        sum.second += static_cast<double>(arrays.dvar[row + i]) * change;
      }
    }
    sum = team_sum(sum, TeamShape{window_threads, 1});
    if (threadIdx.x != 0) continue;
    args.payload[layout.dmean(entry, c)] = sum.sum;
    args.payload[layout.dvar(entry, c)] = sum.second;
  }
}

/// The open slot moves to this call's sums with the moments' weight: value i of dmean, and of dvar and weight.
template <class T>
__global__ void __launch_bounds__(window_threads) move_kernel(const DerivativesArgs args) {
  const Ring& ring = args.state.ring;
  const Turn& turn = *args.state.last;
  if (!turn.derives) return;
  const RingArrays<T> arrays(ring);
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * window_threads + threadIdx.x;
  const std::int64_t means = ring.mean_rows * ring.fan_in, squares = args.state.channels * ring.fan_in;
  const auto move = [&](T& to, double value) {
    const double before = turn.starts ? 0 : static_cast<double>(to);
    to = static_cast<T>(before + turn.f * (value - before));
  };
  if (i < means) move(arrays.dmean[turn.slot * means + i], args.patch_sum[i] * (1 / turn.count));
  if (i >= squares) return;
  const std::int64_t at = turn.slot * squares + i;
  move(arrays.dvar[at], args.product[i] * (2 / turn.count));
  if (turn.starts) arrays.weight[at] = static_cast<T>(args.theta[i]);
}

/// Where the batch ends: from the derivative of the mean of (x - center)^2 to that of the variance.
template <class T>
__global__ void __launch_bounds__(window_threads) centre_kernel(const LayerState state) {
  const Ring& ring = state.ring;
  const Turn& turn = *state.last;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * window_threads + threadIdx.x;
  const std::int64_t C = state.channels;
  if (!turn.enters || i >= C * ring.fan_in) return;
  const RingArrays<T> arrays(ring);
  const std::int64_t c = i / ring.fan_in, row = turn.slot * ring.mean_rows + ring.mean_row(c, C);
  const double twice = 2 * (ring.mean[turn.slot * C + c] - ring.center[c]);
  T& square = arrays.dvar[turn.slot * C * ring.fan_in + i];
  if (twice != 0)
    square = static_cast<T>(static_cast<double>(square) -
                            twice * static_cast<double>(arrays.dmean[row * ring.fan_in + i % ring.fan_in]));
}

/// Every channel's share of the cut; the last block to finish makes it the state.
__global__ void __launch_bounds__(window_threads)
    cut_kernel(const Rules rules, const LayerState state, unsigned* ticket) {
  const Turn turn = steps::cut_short(rules, state.now());
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * window_threads + threadIdx.x;
  if (c < state.channels) steps::cut_channel(rules, state, turn, c);
  __threadfence();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (atomicAdd(ticket, 1u) + 1 != gridDim.x) return;
  *ticket = 0;
  *state.last = turn;
  state.next() = steps::advanced(rules, state.now(), turn, false);
  ++*state.parity;
}

/// Calls f with the type of the window's arrays of derivatives.
template <class F>
void visit_ring(const Ring& ring, const F& f) {
  if (ring.wide)
    f(std::type_identity<double>{});
  else
    f(std::type_identity<float>{});
}

}  // namespace

void products(const ProductsArgs& args, Queue& queue) {
  check(cudaMemsetAsync(args.weights, 0, 2 * sizeof(std::uint64_t), stream_of(queue)), "clear the hash of the weights");
  if (args.state.channels == 0) return;
  visit_ring(args.state.ring, [&]<class T>(std::type_identity<T>) {
    launch(queue, args.state.channels, window_threads, 0, products_kernel<T>, args);
  });
}

void derivatives(const DerivativesArgs& args, Queue& queue) {
  const Ring& ring = args.state.ring;
  const std::int64_t values = args.state.channels * ring.fan_in;
  if (values == 0) return;
  if (args.given) {
    PatchSumsArgs call = args.patch;
    call.center = ring.center;
    call.patch_sum = args.patch_sum;
    call.product = args.product;
    patch_sums(call, args.state.last, queue);
  }
  visit_ring(ring, [&]<class T>(std::type_identity<T>) {
    if (args.given) launch(queue, blocks_for(values), window_threads, 0, move_kernel<T>, args);
    launch(queue, blocks_for(values), window_threads, 0, centre_kernel<T>, args.state);
  });
}

void begin_batch(const Rules& rules, const LayerState& state, Queue& queue) {
  launch(queue, blocks_for(state.channels), window_threads, 0, cut_kernel, rules, state, tickets(queue, 1));
  derivatives({.rules = rules, .state = state}, queue);
}

}  // namespace allnorm::cuda
