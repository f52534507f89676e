// Exchanges of records between ranks that are threads of one process, on one GPU or several.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "allnorm/communicator.hpp"

namespace allnorm {

/// What the ranks of a group share. Each rank's functions are called by its own thread; abort() by any.
class DeviceHub {
 public:
  virtual ~DeviceHub() = default;
  /// See Communicator::gather; needs no room. The result lies in the hub's memory and may be read by what is enqueued
  /// on this queue before the rank's next gather(). The host waits in a rank's first call only, for the others' first.
  /// Throws unsupported while the queue is captured.
  virtual Gathered gather(int rank, const Record& record, Queue& queue) = 0;
  virtual Reporter reporter(int rank) const noexcept = 0;
  /// See Communicator::check.
  virtual void check(int rank) = 0;
  /// This rank's part in the next exchange, which only says that it cannot take part: a declined record, for the peers'
  /// kernels to find. Before the rank's first exchange the group is over instead. Does not wait.
  virtual void decline(int rank, const Error& error) = 0;
  /// The group is over: no stream waits any more, all calls of all ranks throw aborted with `why`.
  virtual void abort(const std::string& why) noexcept = 0;
  /// A rank's last call: the hub ends when all work that is enqueued by now is done.
  virtual void leave(int rank) noexcept = 0;
};

/// For a group of as many ranks as there are names, which errors call them by. `numbers`: theirs among all, where these
/// are not their numbers in the group. Throws unsupported where this build has no CUDA.
std::shared_ptr<DeviceHub> make_device_hub(std::vector<std::string> names, const Patience& patience,
                                           std::vector<int> numbers = {});

}  // namespace allnorm
