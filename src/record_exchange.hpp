// An exchange of an operation: the record whose payload its kernels and steps write, and what comes of the group's.
#pragma once

#include <cstdint>

#include "src/norm_impl.hpp"

namespace allnorm {

/// Works where the records are: on a GPU nothing on the host waits where Communicator::gather does not, and steps find
/// what is wrong with the heads. Made and opened before the exchange, where this rank may still decline.
class RecordExchange {
 public:
  RecordExchange() = default;
  /// A record of `count` doubles for the group of `norm`, whose state travels as hashes. `header`: what the host knows.
  RecordExchange(const NormImpl& norm, const Header& header, std::int64_t count, Queue& queue);

  /// (count), in memory of the device.
  double* payload() noexcept { return steps::payload_of(work_.record.data); }
  /// Writes the head of a record of moments, and that `values` are behind this rank's; payload()[0] is theirs.
  void open_forward(double values, Queue& queue);
  /// Writes that of a backward call, whose forward call has the number at `call`, in memory of the device.
  void open_backward(const std::int64_t* call, Queue& queue);

  /// The group's records. Where steps compare their heads, fails() says after them whether something was wrong.
  Gathered gather(Queue& queue);
  /// In memory of the device: not 0 where it fails. Null before gather().
  const std::uint64_t* fails() const noexcept { return fails_; }

 private:
  const NormImpl* norm_ = nullptr;
  Header header_{};
  NormImpl::Work work_{};  // its scratch: hashes before the exchange; after it faults (ranks), then fails (1)
  Reporter reporter_{};
  std::uint64_t* fails_ = nullptr;
};

}  // namespace allnorm
