// A CPU queue whose threads are the caller's.
#pragma once

#include <cstdint>

#include "allnorm/device.hpp"

namespace allnorm {

/// A caller's threads. `run` calls task(argument, 0) ... task(argument, tasks - 1), each once, in any order and on any
/// of `threads` threads, and returns when all are done; `task` does not throw.
struct Pool {
  using Task = void (*)(void* argument, std::int64_t i);  ///< one part of the work
  int threads = 1;                                        ///< that `run` uses at most
  /// Has the tasks done. `context` is the one below.
  void (*run)(void* context, std::int64_t tasks, Task task, void* argument) = nullptr;
  void* context = nullptr;  ///< the caller's own
};

/// A CPU queue that has them do its work. Throws invalid_argument for threads < 1, and where `run` is missing.
Queue cpu_queue(const Pool& pool);

}  // namespace allnorm
