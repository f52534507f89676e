// What row-wise and group-wise kernels share: parameters as vectors, and the steps of a call that one thread takes.
#pragma once

#include <cstdint>

#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/vectors.cuh"
#include "kernels/ops.hpp"

namespace allnorm::cuda::rows {

/// The parameter's values from `first` on in the type C; with n > 1 its data is aligned to vectors and `first` a
/// multiple of n.
template <int n, class C>
__device__ __forceinline__ void load_parameter(const Parameter& parameter, std::int64_t first, C (&to)[n]) {
  if (parameter.data == nullptr) {
    for (int i = 0; i < n; ++i) to[i] = static_cast<C>(parameter.otherwise);
  } else if (parameter.wide) {
    double values[n];
    unpack(read_vector<n>(static_cast<const double*>(parameter.data) + first), values);
    for (int i = 0; i < n; ++i) to[i] = static_cast<C>(values[i]);
  } else {
    float values[n];
    unpack(read_vector<n>(static_cast<const float*>(parameter.data) + first), values);
    for (int i = 0; i < n; ++i) to[i] = static_cast<C>(values[i]);
  }
}

/// The products of a window that is not there.
struct NoLane {
  __device__ double operator()(std::int64_t, bool) const { return 0; }
};

/// Whether the heads of an exchange are at fault, for all threads of a block, which call it together. The block that
/// `reports` says that the exchange was read, and what it found.
__device__ inline bool heads_differ(const Heads& heads, const Reporter& reporter, bool reports) {
  const bool fails = heads.any_fault();
  if (reports && threadIdx.x == 0) heads.tell(reporter, fails ? heads.judge() : Verdict{ExchangeReport::fine, 0});
  return fails;
}

/// One thread makes a forward call of a layer without running statistics part of the state: nothing in its kernels
/// reads what counts calls.
__device__ inline void advance_call(const ForwardArgs& args, double count, bool fails) {
  const LayerState& state = args.state;
  Turn turn = steps::turn_of(args.rules, state.now(), count, args.derives);
  turn.fails = fails;
  *args.frame.scalars = {turn.count, turn.call};
  *state.last = turn;
  if (fails) return;
  state.next() = steps::advanced(args.rules, state.now(), turn);
  ++*state.turn;
}

}  // namespace allnorm::cuda::rows
