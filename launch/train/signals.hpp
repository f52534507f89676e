// What is asked of a training from outside: SIGUSR1 to save and stop, SIGTERM to end.
#pragma once

#include <atomic>
#include <thread>

namespace allnorm::launch::train {

constexpr int exit_terminated = 143;  // as a shell says it of a process that SIGTERM ended

/// While it lives, the two signals are taken by a thread of its own: make it before any other thread. SIGTERM leaves
/// the ranks a second to agree() on a last checkpoint, and then `timeout` seconds to write it; after that the process
/// ends with exit_terminated, wherever it is.
class Signals {
 public:
  explicit Signals(double timeout);
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  int saves_asked() const noexcept { return saves_; }
  bool end_asked() const noexcept { return end_; }
  /// Of this process or, as the ranks have agreed, of another.
  bool ended() const noexcept { return end_ || agreed_; }
  /// The ranks know of the end and go to it.
  void agree() noexcept { agreed_ = true; }

 private:
  void take();
  void end_soon();

  double timeout_;
  std::atomic<int> saves_ = 0;
  std::atomic<bool> end_ = false, agreed_ = false, done_ = false;
  std::thread thread_;
};

/// What one rank, or all of them together, have been asked for.
struct Wishes {
  bool save = false, end = false;
};

/// One rank's view of the signals of its process.
class Wishing {
 public:
  explicit Wishing(Signals& signals) noexcept : signals_(signals) {}

  /// What this rank was asked for and has not done yet.
  Wishes own() const noexcept { return {signals_.saves_asked() != answered_, signals_.end_asked()}; }
  /// Takes what the ranks wish together, which is then done.
  void agree(const Wishes& all) noexcept {
    if (all.save) answered_ = signals_.saves_asked();
    if (all.end) signals_.agree();
  }

 private:
  Signals& signals_;
  int answered_ = 0;
};

}  // namespace allnorm::launch::train
