// The heads of the records that an exchange has gathered: whether the ranks agree, and telling the host where not; host
// and device.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "allnorm/record.hpp"
#include "kernels/steps.hpp"

namespace allnorm::steps {

/// What was written before is seen by host and device before what is written after.
ALLNORM_HOST_DEVICE inline void system_fence() {
#ifdef __CUDA_ARCH__
  __threadfence_system();
#else
  static std::atomic<int> order{0};
  order.fetch_add(0, std::memory_order_seq_cst);  // a fence that the thread sanitizer knows
#endif
}

/// Tells the watcher that one more exchange is under way. By one thread.
ALLNORM_HOST_DEVICE inline void report_started(const Reporter& reporter) {
  if (reporter.counts == nullptr) return;
  const std::uint64_t started = ++reporter.counts[0];
  if (reporter.report == nullptr) return;
  *static_cast<volatile std::uint64_t*>(&reporter.report->started) = started;
  system_fence();
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

  ALLNORM_PER_GROUP bool given() const { return own != nullptr && gathered.records != nullptr; }
  ALLNORM_PER_GROUP const RecordHead& own_head() const { return *reinterpret_cast<const RecordHead*>(own); }
  ALLNORM_PER_GROUP const RecordHead& of(int rank) const {
    return *reinterpret_cast<const RecordHead*>(gathered.records + static_cast<std::size_t>(rank) * gathered.stride);
  }
  ALLNORM_PER_GROUP bool differs(int rank) const { return !agree(rank == 0 ? own_head() : of(0), of(rank)); }
  ALLNORM_PER_GROUP bool is_faulty(int rank) const {
    return (of(rank).flags & (flag_declined | flag_weights_changed)) != 0 || differs(rank);
  }

  /// The first fault: a rank that declined, or else one that differs from rank 0, or else one whose weights changed
  /// within a batch, or else an exchange that is not this one.
  ALLNORM_HOST_DEVICE Verdict judge() const {
    if (!given()) return {ExchangeReport::fine, 0};
    for (int rank = 0; rank < gathered.ranks; ++rank)
      if ((of(rank).flags & flag_declined) != 0) return {ExchangeReport::declined, rank};
    for (int rank = 1; rank < gathered.ranks; ++rank)
      if (differs(rank)) return {ExchangeReport::mismatch, rank};
    for (int rank = 0; rank < gathered.ranks; ++rank)
      if ((of(rank).flags & flag_weights_changed) != 0) return {ExchangeReport::weights_changed, rank};
    return {differs(0) ? ExchangeReport::mismatch : ExchangeReport::fine, 0};
  }

  /// Tells the host that the exchange was read, and what was wrong with it. For one thread of the grid.
  ALLNORM_HOST_DEVICE void tell(const Reporter& reporter, const Verdict& verdict) const {
    if (reporter.report == nullptr) return;
    ExchangeReport& report = *reporter.report;
    if (verdict.status != ExchangeReport::fine && report.status == ExchangeReport::fine) {
      report.rank = static_cast<std::uint64_t>(verdict.rank);
      if (given()) {
        report.first = verdict.rank == 0 ? own_head() : of(0);
        report.other = of(verdict.rank);
      }
      system_fence();  // the host reads the rest once it sees the status
      report.status = verdict.status;
      system_fence();
    }
    if (own != nullptr) report.finished = ++reporter.counts[1];
  }
};

}  // namespace allnorm::steps
