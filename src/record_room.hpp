// Where the records of a group come together in the memory that they are made and read in.
#pragma once

#include <cstddef>
#include <memory>

#include "allnorm/communicator.hpp"

namespace allnorm {

/// A place for every rank's record, in memory that a transport may be given: it belongs to no stream and no pool.
class RecordRoom {
 public:
  /// Makes room for `ranks` records like this one on the queue's device, and copies it to `rank`'s place. Returns its
  /// head; by then the queue has done everything before, and nothing reads the records of an earlier call. Throws
  /// device.
  RecordHead put(const Record& record, int rank, int ranks, Queue& queue);
  /// Lets go of memory that a transport may still write to.
  void reset() noexcept;

  const std::shared_ptr<std::byte>& records() const noexcept { return records_; }
  std::size_t stride() const noexcept { return stride_; }  ///< bytes from one rank's record to the next

 private:
  std::shared_ptr<std::byte> records_;
  std::size_t size_ = 0, stride_ = 0;  // bytes
  Device device_{};
  std::weak_ptr<Queue::Impl> reader_;  // whose work may still read the records
};

}  // namespace allnorm
