#include "launch/train/signals.hpp"

#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <csignal>

#include "launch/terminal.hpp"
#include "launch/watch/watching.hpp"

namespace allnorm::launch::train {
namespace {

constexpr double to_agree = 1;  // seconds

sigset_t taken() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

Signals::Signals(double timeout) : timeout_(timeout) {
  const sigset_t set = taken();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);  // in all threads to come
  thread_ = std::thread([this] { take(); });
}

Signals::~Signals() {
  done_ = true;
  thread_.join();
  const sigset_t set = taken();
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void Signals::take() {
  const sigset_t set = taken();
  const timespec patience{0, 20'000'000};
  while (!done_) {
    const int signal = ::sigtimedwait(&set, nullptr, &patience);
    if (signal == SIGUSR1) ++saves_;
    if (signal == SIGTERM) return end_soon();
  }
}

void Signals::end_soon() {
  end_ = true;
  Watching::terminated();  // while there is time: a launcher waits a second
  const auto start = std::chrono::steady_clock::now();
  while (!done_) {
    const double waited = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (waited > (agreed_ ? to_agree + timeout_ : to_agree)) {
      print_line_at_once(agreed_ ? "SIGTERM: the last checkpoint is not written in time"
                                 : "SIGTERM: not all ranks have answered in a second: ends without a last checkpoint");
      ::_exit(exit_terminated);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

}  // namespace allnorm::launch::train
