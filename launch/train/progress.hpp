// A progress bar on a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace allnorm::launch::train {

/// One line on stderr that is rewritten a few times a second: what runs, how far, how fast, how long still. Silent
/// where stderr is no terminal.
class Progress {
 public:
  /// `total` and `done`: steps of everything, and those that were made before (by the run that is resumed).
  Progress(bool wanted, std::int64_t total, std::int64_t done);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void describe(std::string what) { what_ = std::move(what); }
  const std::string& what() const noexcept { return what_; }
  void tick();
  /// Removes the line, before something else is printed.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(double seconds);

  bool visible_;
  std::int64_t total_, done_, first_;
  std::string what_;
  Clock::time_point start_ = Clock::now(), drawn_{};
  bool on_screen_ = false;
};

}  // namespace allnorm::launch::train
