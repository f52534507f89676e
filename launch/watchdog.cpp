#include "launch/watchdog.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "launch/terminal.hpp"

namespace allnorm::launch {

Watchdog::Watchdog(double seconds, int code, std::string line, int rank)
    : thread_([this, seconds, code, line = std::move(line), rank] {
        // A launcher takes a moment to end the other processes when one leaves without a word to MPI.
        const double turn = rank == 0 ? 0 : 1 + 0.5 * std::min(rank, 10);
        std::unique_lock lock(mutex_);
        if (called_off_.wait_for(lock, std::chrono::duration<double>(seconds + turn), [this] { return off_; })) return;
        if (!line.empty()) print_line_at_once(line);
        ::_exit(code);
      }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    off_ = true;
  }
  called_off_.notify_one();
  thread_.join();
}

}  // namespace allnorm::launch
