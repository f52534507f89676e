// What a test does to running processes and their threads: find, stop, hold, and wait for what they do.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace allnorm::test {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start);
/// Waits until it holds, or a minute.
bool becomes(const std::function<bool()>& holds);

/// Processes that work in this directory.
std::vector<pid_t> processes_in(const std::string& directory);
/// The process of that rank of Open MPI among them, once it runs the program.
std::optional<pid_t> process_of_rank(const std::string& directory, int rank);
/// The thread of that name.
std::optional<pid_t> thread_named(pid_t process, const std::string& name);

/// Tells which files of a directory are opened from now on.
class Openings {
 public:
  explicit Openings(const std::string& directory);
  ~Openings();
  Openings(const Openings&) = delete;
  Openings& operator=(const Openings&) = delete;

  bool has(const std::string& name);

 private:
  int descriptor_;
  std::set<std::string> names_;
};

/// A thread of another process that is held, by ptrace, until this object ends or its process does. The rest of its
/// process runs on.
class HeldThread {
 public:
  /// Anywhere.
  explicit HeldThread(pid_t thread);
  /// Where it enters one of these system calls next.
  HeldThread(pid_t thread, const std::vector<long>& calls);
  ~HeldThread();
  HeldThread(const HeldThread&) = delete;
  HeldThread& operator=(const HeldThread&) = delete;

  /// False where the system does not allow it, or the thread has ended before.
  explicit operator bool() const noexcept { return held_; }
  /// Waits until the thread is gone, as it is when its process ends; false after `seconds`.
  bool gone(double seconds);

 private:
  bool seize(unsigned long options);

  pid_t thread_;
  bool held_ = false;
};

}  // namespace allnorm::test
