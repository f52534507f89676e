#include "launch/watchdog.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "launch/terminal.hpp"

namespace allnorm::launch {

Watchdog::Watchdog(double seconds, int code, std::string line, int rank, std::string warning,
                   std::function<void()> last)
    : thread_(
          [this, seconds, code, line = std::move(line), rank, warning = std::move(warning), last = std::move(last)] {
            // A launcher takes a moment to end the other processes when one leaves without a word to MPI.
            const double turn = rank == 0 ? 0 : 1 + 0.5 * std::min(rank, 10);
            const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds + turn);
            const auto is_off = [this] { return off_; };
            std::unique_lock lock(mutex_);
            if (rank == 0 && !warning.empty()) {
              const std::chrono::duration<double> half(std::min(30.0, seconds / 2));
              if (called_off_.wait_for(lock, half, is_off)) return;
              print_line_at_once("warning: " + warning);
            }
            const auto recorded = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
            if (last) {  // before another rank leaves and the launcher ends this one
              if (called_off_.wait_until(lock, std::min(end, recorded), is_off)) return;
              last();
            }
            if (called_off_.wait_until(lock, end, is_off)) return;
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
