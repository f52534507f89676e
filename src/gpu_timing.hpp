// Times of work on a GPU: between events on its stream, of calls as they are made and of calls replayed from a graph.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace allnorm {

/// A call on one of several sets of data. Calls that take the sets in turn do not find their input in the L2 cache.
using SetCall = std::function<void(std::size_t set)>;
/// Launches a graph; it lives as long as this.
using Replay = std::function<void()>;

/// As many sets as it takes for input and output of a round, `bytes` each, to fill the L2 cache four times.
constexpr std::size_t sets_beyond(double l2_bytes, double bytes) noexcept {
  return static_cast<std::size_t>(2 * l2_bytes / bytes) + 1;
}

// `stream` is a cudaStream_t of the calling thread's current device. (src/cuda/timing.cpp)

/// [sample] Microseconds between events before and after work(sample). Waits for the stream. Throws device,
/// unsupported.
std::vector<double> times_between_events(void* stream, std::size_t samples,
                                         const std::function<void(std::size_t)>& work);
/// A graph of what `work` puts on the stream; nothing of it runs. Throws what `work` throws, device, unsupported.
Replay captured(void* stream, const std::function<void()>& work);

/// [sample] Of calls as a program makes them, behind `warm_up` calls and one for every set: where the host takes longer
/// to launch a call's kernels than the GPU to run them, the time is the host's.
inline std::vector<double> eager_times(void* stream, const SetCall& call, std::size_t sets, std::size_t warm_up,
                                       std::size_t samples) {
  for (std::size_t i = 0; i < sets + warm_up; ++i) call(i % sets);
  return times_between_events(stream, samples, [&](std::size_t i) { call(i % sets); });
}

/// [sample] Of the same calls replayed from a graph of one call per set, at least ten: the time of all over their
/// number. The host's part is gone, but for a share of the launch of the whole. `capture` is captured(), or another's.
template <class Capture>
std::vector<double> replayed_times(void* stream, const SetCall& call, std::size_t sets, std::size_t warm_up,
                                   std::size_t samples, const Capture& capture) {
  const std::size_t calls = (sets + 9) / sets * sets;
  for (std::size_t i = 0; i < sets; ++i) call(i);
  const Replay replay = capture([&] {
    for (std::size_t i = 0; i < calls; ++i) call(i % sets);
  });
  for (std::size_t i = 0; i < warm_up; ++i) replay();
  std::vector<double> times = times_between_events(stream, samples, [&](std::size_t) { replay(); });
  for (double& time : times) time /= static_cast<double>(calls);
  return times;
}

}  // namespace allnorm
