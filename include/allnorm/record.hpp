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
  std::byte* data = nullptr;  ///< the head
  std::size_t count = 0;      ///< doubles behind it
  std::byte* room = nullptr;  ///< Communicator::room() bytes
  std::uint64_t moments = 0;  ///< groups; 0: none
};

/// What an exchange of records leaves in memory of the queue's device, for kernels to check and merge. Either the
/// records of all ranks in rank order, `stride` bytes apart: their headers must be equal, their doubles are merged in
/// rank order (see Message); or, where `sums` is given, the result, with `records` holding heads alone to be checked
/// (ranks of them; none where the host has checked).
struct Gathered {
  const std::byte* records = nullptr;  ///< in rank order
  std::size_t stride = 0;              ///< bytes from one to the next
  int ranks = 0;                       ///< how many records or heads
  const double* sums = nullptr;        ///< the result where the transport has merged
  /// With sums: the ranks whose moments are not finite, as far as they are known; see rank_bit().
  std::uint64_t nonfinite = 0;
};

/// What kernels found that the host does not wait for, in an exchange or in a call's tensors, in memory that host and
/// device share. Kernels of one stream write it; a status other than 0 stays until the host has read it.
struct ExchangeReport {
  /// What was found.
  enum Status : std::uint64_t {
    fine = 0,
    mismatch = 1,
    weights_changed = 2,
    declined = 3,
    no_such_row = 4,
    too_many = 5
  };
  std::uint64_t started = 0;    ///< exchanges that kernels have made records for
  std::uint64_t finished = 0;   ///< exchanges whose results kernels have read: the deadline looks at the difference
  std::uint64_t status = fine;  ///< the first that was found
  std::uint64_t rank = 0;       ///< the first rank that declined, differs from rank 0, or whose weights changed
  RecordHead first{};           ///< the head of rank 0
  RecordHead other{};           ///< the head of that rank
  std::int64_t label = 0;       ///< of no_such_row: a sample's label
  std::int64_t sample = 0;      ///< of no_such_row: that sample
  std::int64_t rows = 0;        ///< of no_such_row: rows that there are
};

/// Where kernels report: `report` in shared memory, and in device memory the counts that they advance (started,
/// finished). Null where the host checks.
struct Reporter {
  ExchangeReport* report = nullptr;  ///< in memory that host and device share
  std::uint64_t* counts = nullptr;   ///< (2)
};

}  // namespace allnorm
