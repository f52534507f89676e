// How a rank waits on the host: until when, and what it does meanwhile.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <thread>

#include "allnorm/communicator.hpp"
#include "src/transport/pause.hpp"

namespace allnorm {

/// The time in seconds by this clock of a Patience.
inline double now(const std::function<double()>& clock) {
  if (clock) return clock();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline double now(const Patience& patience) { return now(patience.now); }

/// "120 s", "0.25 s".
inline std::string seconds_text(double seconds) {
  std::string text = std::to_string(seconds);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text + " s";
}

/// The end of a wait of `seconds` that begins now.
class Deadline {
 public:
  Deadline(const Patience& patience, double seconds)
      : clock_(patience.now), relax_(patience.relax), seconds_(seconds), end_(now(patience) + seconds) {}

  bool over() const { return left() < 0; }
  /// Seconds until then.
  double left() const { return end_ - now(clock_); }
  double end() const noexcept { return end_; }
  std::string text() const { return seconds_text(seconds_); }
  /// Between two looks.
  void relax() {
    if (relax_)
      relax_();
    else if (const Pause::Step step = pause_.next(false); step > Pause::Step{0})
      std::this_thread::sleep_for(step);
  }

 private:
  std::function<double()> clock_;
  std::function<void()> relax_;
  double seconds_, end_;
  Pause pause_;
};

}  // namespace allnorm
