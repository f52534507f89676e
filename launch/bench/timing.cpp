#include "launch/bench/timing.hpp"

#include <algorithm>
#include <chrono>
#include <string>

namespace allnorm::launch::bench {

namespace {

using Clock = std::chrono::steady_clock;

template <class F>
double microseconds(const F& f) {
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

void add_traffic(Calls& calls, const Communicator::Traffic& before, const Communicator::Traffic& after) {
  calls.traffic.exchanges += after.exchanges - before.exchanges;
  calls.traffic.bytes += after.bytes - before.bytes;
}

class HostTiming final : public Timing {
 public:
  HostTiming(const Amount& amount, Rank& rank) : amount_(amount), rank_(rank) {}

  void call_once(Subject& subject) const override {
    subject.forward();
    subject.backward();
  }

  std::pair<Calls, Calls> calls(Subject& subject) const override {
    Calls forward, backward;
    meet(rank_);
    for (std::size_t call = 0; call < amount_.warm_up + amount_.samples; ++call) {
      const std::size_t set = call % amount_.sets;
      time_call(forward, call, subject.group(), [&] { subject.forward(set); });
      time_call(backward, call, subject.group(), [&] { subject.backward(set); });
    }
    return {std::move(forward), std::move(backward)};
  }

  Times times(const SetCall& work, std::size_t sets) const override {
    Times all;
    for (std::size_t call = 0; call < amount_.warm_up + amount_.samples; ++call) {
      const double time = microseconds([&] { work(call % sets); });
      if (call >= amount_.warm_up) all.push_back(time);
    }
    return all;
  }

 private:
  template <class Call>
  void time_call(Calls& calls, std::size_t number, const Communicator& group, const Call& call) const {
    const Communicator::Traffic before = group.traffic();
    const double time = microseconds(call);
    if (number < amount_.warm_up) return;
    calls.times.push_back(time);
    ++calls.made;
    add_traffic(calls, before, group.traffic());
  }

  const Amount amount_;
  Rank& rank_;
};

class GpuTiming final : public Timing {
 public:
  GpuTiming(const Amount& amount, Rank& rank, Queue& queue, bool replays)
      : amount_(amount), rank_(rank), queue_(queue), replays_(replays) {}

  void call_once(Subject& subject) const override {
    const auto both = [&] {
      subject.forward();
      subject.backward();
    };
    Replay replay;
    if (replays_) {  // behind a call that connects the ranks, and from the same state
      const State fresh = subject.operation().save(queue_);
      both();
      subject.operation().load(fresh, queue_);
      replay = captured_on_all(both, rank_, queue_);
      replay();
    } else {
      both();
    }
    queue_.wait();
    subject.operation().check();
  }

  std::pair<Calls, Calls> calls(Subject& subject) const override {
    meet(rank_);
    Calls forward = counted(subject, [&](std::size_t set) { subject.forward(set); });
    // What backward reads of the calls of a graph is there only while that is replayed.
    for (std::size_t set = 0; set < amount_.sets; ++set) subject.forward(set);
    Calls backward = counted(subject, [&](std::size_t set) { subject.backward(set); });
    subject.operation().check();
    return {std::move(forward), std::move(backward)};
  }

  Times times(const SetCall& work, std::size_t sets) const override {
    if (!replays_) return eager_times(queue_.stream(), work, sets, amount_.warm_up, amount_.samples);
    return replayed_times(queue_.stream(), work, sets, amount_.warm_up, amount_.samples,
                          [this](const std::function<void()>& calls) { return captured_on_all(calls, rank_, queue_); });
  }

 private:
  // What calls send, not what the ranks agree on between them.
  Calls counted(Subject& subject, const SetCall& call) const {
    Calls calls;
    calls.times = times(
        [&](std::size_t set) {
          const Communicator::Traffic before = subject.group().traffic();
          call(set);
          ++calls.made;
          add_traffic(calls, before, subject.group().traffic());
        },
        amount_.sets);
    return calls;
  }

  const Amount amount_;
  Rank& rank_;
  Queue& queue_;
  const bool replays_;
};

}  // namespace

void meet(Rank& rank) { rank.world->exchange({Header("bench", Direction::agreement, 0), {}, 0, {}}, rank.queue); }

std::vector<double> largest(const std::vector<double>& values, Communicator& world, Queue& queue) {
  const std::size_t count = values.size(), ranks = static_cast<std::size_t>(world.size());
  Message message{Header("bench", Direction::agreement, 1), Times(count * ranks), 0, {}};
  std::copy(values.begin(), values.end(),
            message.payload.begin() + static_cast<std::ptrdiff_t>(count * static_cast<std::size_t>(world.rank())));
  const Message all = world.exchange(std::move(message), queue);
  std::vector<double> most = values;
  for (std::size_t i = 0; i < all.payload.size(); ++i) most[i % count] = std::max(most[i % count], all.payload[i]);
  return most;
}

Replay captured_on_all(const std::function<void()>& work, Rank& rank, Queue& queue) {
  queue.wait();  // before the ranks exchange on another one
  Replay replay;
  std::string why;
  try {
    replay = captured(queue.stream(), work);
  } catch (const Error& error) {
    why = error.message();
  }
  if (largest({replay ? 0.0 : 1.0}, *rank.world, rank.queue)[0] == 0) return replay;
  throw NotCaptured(replay ? "the call of another rank cannot be captured in a graph" : why);
}

std::unique_ptr<Timing> host_timing(const Amount& amount, Rank& rank) {
  return std::make_unique<HostTiming>(amount, rank);
}
std::unique_ptr<Timing> event_timing(const Amount& amount, Rank& rank, Queue& queue) {
  return std::make_unique<GpuTiming>(amount, rank, queue, false);
}
std::unique_ptr<Timing> replay_timing(const Amount& amount, Rank& rank, Queue& queue) {
  return std::make_unique<GpuTiming>(amount, rank, queue, true);
}

}  // namespace allnorm::launch::bench
