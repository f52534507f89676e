// An end for what has no deadline of its own.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace allnorm::launch {

/// Ends this process when it is still there after some seconds: prints `line`, if there is one, and leaves with `code`,
/// whatever the other threads do, and without waiting for them. Under a launcher every rank may have one: `rank` gives
/// way to those before it.
class Watchdog {
 public:
  /// `warning`, where there is one, is told by rank 0 after 30 s or half of the time. `last` is called before the end.
  Watchdog(double seconds, int code, std::string line, int rank = 0, std::string warning = {},
           std::function<void()> last = {});
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable called_off_;
  bool off_ = false;
  std::thread thread_;
};

}  // namespace allnorm::launch
