#include "src/transport/pause.hpp"

#include <algorithm>
#include <fstream>
#include <thread>

#include <hwy/cache_control.h>

namespace allnorm {

namespace {

using std::chrono::microseconds;

constexpr microseconds spinning{40}, awake{1000};                // of a wait
constexpr microseconds crowded_awake{20'000};                    // ... where it is the other ranks that have the cores
constexpr microseconds shortest_sleep{10}, longest_sleep{1000};  // sleep
constexpr microseconds slow{200};                                // of a yield: somebody else has the core
constexpr microseconds remembered{100'000};

// "QUOTA PERIOD" in microseconds; none for "max PERIOD", for -1, and where there is no such file.
std::optional<double> share_in(const std::string& quota_file, const std::string& period_file) {
  std::ifstream first(quota_file);
  double quota = 0, period = 0;
  if (!(first >> quota)) return std::nullopt;
  std::ifstream second(period_file);
  if (!(period_file.empty() ? first >> period : second >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

}  // namespace

cpu_set_t own_cores() noexcept {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (::sched_getaffinity(0, sizeof cores, &cores) != 0) CPU_ZERO(&cores);
  return cores;
}

std::optional<double> cpu_quota(const std::string& groups, const std::string& root) {
  std::optional<double> least;
  std::ifstream file(groups);
  for (std::string line; std::getline(file, line);) {  // "NUMBER:CONTROLLERS:/PATH"; of version 2 no controllers
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",cpu,") == controllers.npos) continue;
    // In a container the path may be one of the host, which is not there: then the root is the container's own.
    for (std::string path = line.substr(second + 1);; path.erase(path.rfind('/'))) {
      if (path.ends_with('/')) path.pop_back();
      const std::string folder = root + (unified ? "" : "/cpu") + path;
      const auto share = unified ? share_in(folder + "/cpu.max", {})
                                 : share_in(folder + "/cpu.cfs_quota_us", folder + "/cpu.cfs_period_us");
      if (share) least = std::min(*share, least.value_or(*share));
      if (path.rfind('/') == path.npos) break;
    }
  }
  return least;
}

bool are_crowded(int ranks, const cpu_set_t& cores, std::optional<double> quota) noexcept {
  const int count = CPU_COUNT(&cores);
  return (count > 0 && ranks > count) || (quota && ranks > *quota);
}

Pause::Step Pause::next(bool crowded) noexcept {
  thread_local Clock::time_point sleeps_until{};
  const Clock::time_point time = Clock::now();
  if (began_ == Clock::time_point{}) began_ = time;
  const Clock::duration waited = time - began_;
  if (crowded && waited < crowded_awake) {
    std::this_thread::yield();
  } else if (!crowded && waited < spinning) {
    hwy::Pause();
  } else if (waited < awake && time >= sleeps_until) {
    std::this_thread::yield();
    if (const auto back = Clock::now(); back - time > slow) sleeps_until = back + remembered;
  } else {
    return std::clamp(std::chrono::duration_cast<Step>(waited / 8), shortest_sleep, longest_sleep);
  }
  return Step{0};
}

}  // namespace allnorm
