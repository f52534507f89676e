// What row-wise and group-wise kernels share: parameters as vectors, and the steps of a call that one thread takes.
#pragma once

#include <cstdint>

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

/// Whether the heads of an exchange differ, for all threads of a block, which call it together. The block that
/// `reports` says that the exchange was read, and what it found.
__device__ inline bool heads_differ(const Gathered& gathered, const Reporter& reporter, bool reports) {
  const auto head = [&](int rank) -> const RecordHead& {
    return *reinterpret_cast<const RecordHead*>(gathered.records + static_cast<std::size_t>(rank) * gathered.stride);
  };
  int differs = 0;
  const int ranks = gathered.records == nullptr ? 0 : gathered.ranks;
  for (int rank = 1 + static_cast<int>(threadIdx.x); rank < ranks; rank += static_cast<int>(blockDim.x))
    differs |= steps::agree(head(0), head(rank)) ? 0 : 1;
  const bool fails = __syncthreads_or(differs) != 0;
  if (!reports || threadIdx.x != 0 || reporter.report == nullptr) return fails;
  ExchangeReport& report = *reporter.report;
  if (fails && report.status == ExchangeReport::fine) {
    int rank = 1;
    while (steps::agree(head(0), head(rank))) ++rank;
    report.rank = static_cast<std::uint64_t>(rank);
    report.first = head(0);
    report.other = head(rank);
    __threadfence_system();  // the host reads the rest once it sees the status
    report.status = ExchangeReport::mismatch;
    __threadfence_system();
  }
  report.finished = ++reporter.counts[1];
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
