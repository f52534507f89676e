#include "src/transport/pause.hpp"

#include <algorithm>
#include <thread>

#include <hwy/cache_control.h>

namespace allnorm {

namespace {

using std::chrono::microseconds;

constexpr microseconds spinning{40}, awake{1000};    // of a wait
constexpr microseconds crowded_awake{20'000};        // ... where it is the other ranks that have the cores
constexpr microseconds shortest{10}, longest{1000};  // sleep
constexpr microseconds slow{200};                    // of a yield: somebody else has the core
constexpr microseconds remembered{100'000};

}  // namespace

cpu_set_t own_cores() noexcept {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (::sched_getaffinity(0, sizeof cores, &cores) != 0) CPU_ZERO(&cores);
  return cores;
}

bool are_crowded(int ranks, const cpu_set_t& cores) noexcept {
  const int count = CPU_COUNT(&cores);
  return count > 0 && ranks > count;
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
    return std::clamp(std::chrono::duration_cast<Step>(waited / 8), shortest, longest);
  }
  return Step{0};
}

}  // namespace allnorm
