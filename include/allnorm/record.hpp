// What an exchange looks like to kernels: a rank's record, what comes together of a group's, and how kernels report.
#pragma once

#include <cstddef>
#include <cstdint>

#include "allnorm/message.hpp"

namespace allnorm {

/// This rank's message in memory of the queue's device (RecordHead and `count` doubles at `data`), and room for those
/// of the group where the transport asks for it (Communicator::room). `moments`: what its header says of them, for a
/// host that cannot look.
struct Record {
  std::byte* data = nullptr;
  std::size_t count = 0;
  std::byte* room = nullptr;
  std::uint64_t moments = 0;
};

/// What an exchange of records leaves in memory of the queue's device, for kernels to check and merge. Either the
/// records of all ranks in rank order, `stride` bytes apart: their headers must be equal, their doubles are merged in
/// rank order (see Message); or, where `sums` is given, the result, with `records` holding heads alone to be checked
/// (ranks of them; none where the host has checked).
struct Gathered {
  const std::byte* records = nullptr;
  std::size_t stride = 0;
  int ranks = 0;
  const double* sums = nullptr;
  /// With sums: the ranks whose moments are not finite, as far as they are known; see rank_bit().
  std::uint64_t nonfinite = 0;
};

/// What kernels found that the host does not wait for, in an exchange or in a call's tensors, in memory that host and
/// device share. Kernels of one stream write it; a status other than 0 stays until the host has read it.
struct ExchangeReport {
  enum Status : std::uint64_t {
    fine = 0,
    mismatch = 1,
    weights_changed = 2,
    declined = 3,
    no_such_row = 4,
    too_many = 5
  };
  std::uint64_t started = 0;   ///< exchanges that kernels have made records for
  std::uint64_t finished = 0;  ///< exchanges whose results kernels have read: the deadline looks at the difference
  std::uint64_t status = fine;
  std::uint64_t rank = 0;       ///< the first rank that declined, differs from rank 0, or whose weights changed
  RecordHead first{}, other{};  ///< the heads of rank 0 and of that rank
  std::int64_t label = 0, sample = 0, rows = 0;  ///< of no_such_row: a sample's label, and the rows that there are
};

/// Where kernels report: `report` in shared memory, and in device memory the counts that they advance (started,
/// finished). Null where the host checks.
struct Reporter {
  ExchangeReport* report = nullptr;
  std::uint64_t* counts = nullptr;  ///< (2)
};

}  // namespace allnorm
