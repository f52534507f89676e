// The heads of the records that an exchange has gathered: whether the ranks agree, and telling the host where not.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/ops.hpp"

namespace allnorm::cuda {

__device__ __forceinline__ const RecordHead& head_of(const Gathered& gathered, int rank) {
  return *reinterpret_cast<const RecordHead*>(gathered.records + static_cast<std::size_t>(rank) * gathered.stride);
}

/// What is wrong with the heads of an exchange.
struct Verdict {
  std::uint64_t status;  // ExchangeReport::Status
  int rank;
};

/// The heads of the ranks, compared with rank 0's, and rank 0's with this rank's own record: when a communicator was
/// aborted its kernels end without a word, and the room may hold an earlier exchange, whose heads agree as well.
struct Heads {
  const Gathered& gathered;
  const std::byte* own;  // null for a lone rank, which has nothing to compare

  __device__ __forceinline__ bool given() const { return own != nullptr && gathered.records != nullptr; }
  __device__ __forceinline__ const RecordHead& own_head() const { return *reinterpret_cast<const RecordHead*>(own); }
  __device__ __forceinline__ bool differs(int rank) const {
    return !steps::agree(rank == 0 ? own_head() : head_of(gathered, 0), head_of(gathered, rank));
  }

  /// Whether there is a fault, for all threads of the block, which call it together.
  __device__ bool any_fault() const {
    bool fault = false;
    for (int rank = static_cast<int>(threadIdx.x); given() && rank < gathered.ranks;
         rank += static_cast<int>(blockDim.x))
      fault |= (head_of(gathered, rank).flags & (flag_declined | flag_weights_changed)) != 0 || differs(rank);
    return __syncthreads_or(fault) != 0;
  }

  /// The first fault: a rank that declined, or else one that differs from rank 0, or else one whose weights changed
  /// within a batch, or else an exchange that is not this one.
  __device__ Verdict judge() const {
    if (!given()) return {ExchangeReport::fine, 0};
    for (int rank = 0; rank < gathered.ranks; ++rank)
      if ((head_of(gathered, rank).flags & flag_declined) != 0) return {ExchangeReport::declined, rank};
    for (int rank = 1; rank < gathered.ranks; ++rank)
      if (differs(rank)) return {ExchangeReport::mismatch, rank};
    for (int rank = 0; rank < gathered.ranks; ++rank)
      if ((head_of(gathered, rank).flags & flag_weights_changed) != 0) return {ExchangeReport::weights_changed, rank};
    return {differs(0) ? ExchangeReport::mismatch : ExchangeReport::fine, 0};
  }

  /// Tells the host that the exchange was read, and what was wrong with it. For one thread of the grid.
  __device__ void tell(const Reporter& reporter, const Verdict& verdict) const {
    if (reporter.report == nullptr) return;
    ExchangeReport& report = *reporter.report;
    if (verdict.status != ExchangeReport::fine && report.status == ExchangeReport::fine) {
      report.rank = static_cast<std::uint64_t>(verdict.rank);
      if (given()) {
        report.first = verdict.rank == 0 ? own_head() : head_of(gathered, 0);
        report.other = head_of(gathered, verdict.rank);
      }
      __threadfence_system();  // the host reads the rest once it sees the status
      report.status = verdict.status;
      __threadfence_system();
    }
    if (own != nullptr) report.finished = ++reporter.counts[1];
  }
};

}  // namespace allnorm::cuda
