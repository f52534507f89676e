// What a rank does between two looks at what it waits for: the one place that decides it.
#pragma once

#include <sched.h>

#include <chrono>
#include <optional>
#include <string>

namespace allnorm {

/// The cores that this thread may run on; none where the system does not say.
cpu_set_t own_cores() noexcept;
/// Cores' worth of time that a container or a job leaves this process (cpu.max of its cgroups and those above; of
/// version 1 cpu.cfs_quota_us); none where there is no limit. `groups` and `root`: where the system says so.
std::optional<double> cpu_quota(const std::string& groups = "/proc/self/cgroup",
                                const std::string& root = "/sys/fs/cgroup");
/// True where so many ranks have fewer cores, or less time of them: who waits gives way at once. Where the cores are
/// not known they suffice.
bool are_crowded(int ranks, const cpu_set_t& cores, std::optional<double> quota) noexcept;

/// The pauses of one wait, which begins with the first. A peer that runs on another core is some microseconds away: so
/// a rank first looks again and again. Then it gives way to those who have work. Whoever yields beside a busy process
/// is away for a time slice, and whoever sleeps comes back at once: so a thread whose yield took long sleeps for a
/// while in its place, and so does one that waits long, an eighth of the time that it has waited. Crowded ranks give
/// way to each other: they yield at once, and longer.
class Pause {
 public:
  using Step = std::chrono::microseconds;

  /// Spins for a moment or yields, and returns 0; or returns how long to sleep.
  Step next(bool crowded) noexcept;

 private:
  using Clock = std::chrono::steady_clock;

  Clock::time_point began_{};
};

}  // namespace allnorm
