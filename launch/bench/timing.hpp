// How calls are timed: by a clock of the host, by events on a GPU's stream, by replays of a graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "launch/bench/subject.hpp"
#include "launch/ranks.hpp"
#include "src/gpu_timing.hpp"

namespace allnorm::launch::bench {

using Times = std::vector<double>;  // [sample] in microseconds

/// Calls of one direction of a layer, and what `made` of them sent.
struct Calls {
  Times times{};
  std::uint64_t made = 0;
  Communicator::Traffic traffic{};
};

/// All ranks go on together.
void meet(Rank& rank);
/// The largest of each value over the ranks. Collective.
std::vector<double> largest(const std::vector<double>& values, Communicator& world, Queue& queue);

/// How often, and with how many sets of data in turn.
struct Amount {
  std::size_t samples = 1, warm_up = 0, sets = 1;
};

/// Every rank has one, and they call it together.
class Timing {
 public:
  virtual ~Timing() = default;
  /// A first call, forward and backward, made as those that are timed. Waits for it.
  virtual void call_once(Subject& subject) const = 0;
  /// Forward, backward, of a subject with as many sets.
  virtual std::pair<Calls, Calls> calls(Subject& subject) const = 0;
  /// Of any other work on the queue.
  virtual Times times(const SetCall& work, std::size_t sets) const = 0;
};

/// By the host's clock, for a CPU; forward and backward take turns.
std::unique_ptr<Timing> host_timing(const Amount& amount, Rank& rank);
/// By events around calls on `queue`, of the rank's GPU.
std::unique_ptr<Timing> event_timing(const Amount& amount, Rank& rank, Queue& queue);
/// By events around replays of a graph of calls, each time that of a call. Throws NotCaptured. The queue keeps what was
/// allocated for them.
std::unique_ptr<Timing> replay_timing(const Amount& amount, Rank& rank, Queue& queue);

/// Why calls cannot be replayed.
class NotCaptured : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
/// A graph of what `work` puts on the queue's stream; nothing of it runs. Collective: throws NotCaptured on every rank
/// where it cannot be had on some.
Replay captured_on_all(const std::function<void()>& work, Rank& rank, Queue& queue);

}  // namespace allnorm::launch::bench
