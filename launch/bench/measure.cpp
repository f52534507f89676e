#include "launch/bench/measure.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>

#include "launch/bench/timing.hpp"
#include "src/gpu.hpp"
#include "src/runtime/parallel.hpp"

namespace allnorm::launch::bench {

namespace {

constexpr std::size_t most_sets = 1024;  // beyond, what is made for their calls costs more than it tells

Measurement::Times quantiles(Times times) {
  std::sort(times.begin(), times.end());
  const auto last = static_cast<double>(times.size() - 1);
  return {times[times.size() / 2], times[static_cast<std::size_t>(std::ceil(0.99 * last))]};
}

constexpr std::size_t in_lines(std::size_t bytes, std::size_t line) { return (bytes + line - 1) / line * line; }

// A message of so many doubles with nothing between it and the next.
std::function<void()> as_message(std::size_t doubles, Communicator& group, Queue& queue) {
  auto message = std::make_shared<Message>(Message{Header("bench", Direction::gradients, 0), Times(doubles), 0, {}});
  return [message, &group, &queue] { *message = group.exchange(std::move(*message), queue); };
}
// The same as a record in the device's memory, which layers exchange whose calls do not wait on the host.
std::function<void()> as_record(std::size_t doubles, Communicator& group, Queue& queue) {
  const std::size_t own = in_lines(sizeof(RecordHead) + doubles * sizeof(double), 64);
  auto memory = std::make_shared<Buffer<std::byte>>(own + group.room(doubles, queue), queue);
  const RecordHead head(Header("bench", Direction::gradients, 0), 0, doubles);
  copy_to_device(memory->data(), &head, sizeof head, queue);
  return [memory, own, doubles, &group, &queue] {
    group.gather({memory->data(), doubles, memory->data() + own, 0}, queue);
  };
}

// y = x + s z of `bytes` bytes each, by all threads of the rank, in GB/s.
double triad(std::size_t bytes, const Timing& timing, Rank& rank) {
  const std::size_t size = std::max<std::size_t>(1, bytes / sizeof(float));
  std::vector<float> x(size, 1), z(size, 2), y(size);
  const auto tasks = static_cast<std::size_t>(rank.queue.threads());
  meet(rank);
  const auto once = [&](std::size_t) {
    parallel(rank.queue, rank.queue.threads(), [&](std::int64_t task) {
      const auto part = [&](std::int64_t i) { return size * static_cast<std::size_t>(i) / tasks; };
      for (std::size_t i = part(task); i < part(task + 1); ++i) y[i] = x[i] + 0.5f * z[i];
    });
    std::swap(x, y);  // every result is read
  };
  return 3e-3 * static_cast<double>(size * sizeof(float)) / quantiles(timing.times(once, 1)).median;
}

// y = x of `bytes` bytes each, by the GPU's own copy, in GB/s: two transfers.
double copy_rate(std::size_t bytes, std::size_t sets, const Timing& timing, Rank& rank, Queue& queue) {
  const std::size_t apart = in_lines(bytes, 256);
  Buffer<std::byte> x(sets * apart, queue), y(sets * apart, queue);
  meet(rank);
  const auto once = [&](std::size_t set) {
    copy_on_device(y.data() + set * apart, x.data() + set * apart, bytes, queue);
  };
  return 2e-3 * static_cast<double>(bytes) / quantiles(timing.times(once, sets)).median;
}

// The same on all ranks, whatever GPUs they have.
std::size_t sets_of(const Plan& plan, double bytes, Rank& rank) {
  if (plan.rotate) return static_cast<std::size_t>(*plan.rotate);
  if (rank.queue.device().kind == DeviceKind::cpu) return 1;
  const auto l2_bytes = static_cast<double>(gpu_facts(rank.queue.device().index).l2_bytes);
  const auto own = static_cast<double>(std::min(most_sets, sets_beyond(l2_bytes, bytes)));
  return static_cast<std::size_t>(largest({own}, *rank.world, rank.queue)[0]);
}

// One case on this rank, timed in one or more ways.
class Measuring {
 public:
  Measuring(const Plan& plan, const Case& of, Rank& rank)
      : plan_(plan),
        of_(of),
        rank_(rank),
        bytes_(static_cast<std::size_t>(of.shape.elements()) * size_of(plan.dtype)),
        group_(sync_group(rank.world, of.layer.options.sync, rank.queue)),
        amount_{static_cast<std::size_t>(plan.iterations), static_cast<std::size_t>(plan.warm_up),
                sets_of(plan, static_cast<double>(bytes_), rank)} {
    if (plan.checks(of)) truth_ = Truth::of(plan, of, rank, *group_);
  }

  std::vector<Measurement> on_cpu() const {
    const auto timing = host_timing(amount_, rank_);
    std::vector<Measurement> made{measured("", *timing, rank_.queue)};
    set_rate(made, triad(bytes_, *timing, rank_));
    return made;
  }

  std::vector<Measurement> on_gpu() const {
    std::vector<Measurement> made{measured("eager", *event_timing(amount_, rank_, rank_.queue), rank_.queue)};
    {
      // What captured calls are given is kept to their queue's end: these have one of their own.
      Queue apart = Queue::cuda(rank_.queue.device().index);
      const auto timing = replay_timing(amount_, rank_, apart);
      try {
        expect_captured();
        made.push_back(measured("graph", *timing, apart));
      } catch (const NotCaptured& why) {
        made.push_back(begun("graph"));
        made.back().failure = why.what();
      }
      set_rate(made, copy_rate(bytes_, amount_.sets, *timing, rank_, apart));
    }
    meet(rank_);  // its memory is freed, which waits for the GPU: no other rank's stream may wait there for this rank
                  // yet
    return made;
  }

 private:
  Subject subject_of(const Layer& layer, std::shared_ptr<Communicator> group, Queue& queue, std::size_t sets) const {
    return Subject(layer, of_.shape, plan_.dtype, plan_.order, std::move(group), rank_.rank, queue, sets);
  }

  Measurement begun(const char* mode) const {
    Measurement made{.of = &of_};
    made.mode = mode;
    made.sets = amount_.sets;
    made.bytes = static_cast<double>(bytes_);
    return made;
  }

  Measurement measured(const char* mode, const Timing& timing, Queue& queue) const {
    Measurement made = begun(mode);
    if (truth_) {
      Subject first = subject_of(of_.layer, group_, queue, 1);
      timing.call_once(first);
      made.check = truth_->compare(first);
    }
    Subject subject = subject_of(of_.layer, group_, queue, amount_.sets);
    const auto [forward, backward] = timing.calls(subject);
    const Measurement::Times f = quantiles(forward.times), b = quantiles(backward.times);
    Measurement::Exchange exchange{.ranks = group_->size()};
    exchange.message = message_of(forward) + message_of(backward);
    const std::uint64_t sent = forward.traffic.exchanges + backward.traffic.exchanges;
    const bool exchanges = largest({static_cast<double>(sent)}, *rank_.world, rank_.queue)[0] > 0;
    if (exchanges) {
      exchange.alone = exchange_time(forward, timing, queue) + exchange_time(backward, timing, queue);
      Layer local = of_.layer;
      local.options.sync.ranks = Sync::none;
      Subject alone = subject_of(local, sync_group(rank_.world, local.options.sync, queue), queue, amount_.sets);
      const auto [local_forward, local_backward] = timing.calls(alone);
      exchange.local = quantiles(local_forward.times).median + quantiles(local_backward.times).median;
    }
    const auto all =
        largest({f.median, f.p99, b.median, b.p99, exchange.alone, exchange.local}, *rank_.world, rank_.queue);
    made.forward = {all[0], all[1]};
    made.backward = {all[2], all[3]};
    exchange.alone = all[4];
    exchange.local = all[5];
    if (exchanges) made.exchange = exchange;
    if (made.check) {
      const auto worst =
          largest({made.check->max_error, static_cast<double>(made.check->wrong)}, *rank_.world, rank_.queue);
      made.check = Check{worst[0], static_cast<std::int64_t>(worst[1])};
    }
    return made;
  }

  // The messages of one call of these, alone. Every rank takes part, also one whose group is itself alone.
  double exchange_time(const Calls& calls, const Timing& timing, Queue& queue) const {
    meet(rank_);
    const std::uint64_t exchanges = (calls.traffic.exchanges + calls.made - 1) / calls.made;
    const std::size_t doubles = exchanges == 0 ? 0 : calls.traffic.bytes / sizeof(double) / calls.traffic.exchanges;
    const bool waits = queue.device().kind == DeviceKind::cpu || of_.layer.row->operation == OperationKind::whitening;
    const auto exchange = waits ? as_message(doubles, *group_, queue) : as_record(doubles, *group_, queue);
    const Times times = timing.times(
        [&](std::size_t) {
          for (std::uint64_t i = 0; i < exchanges; ++i) exchange();
        },
        1);
    return exchanges == 0 ? 0 : quantiles(times).median;
  }

  static double message_of(const Calls& calls) {
    return static_cast<double>(calls.traffic.bytes) / static_cast<double>(calls.made);
  }

  // Throws NotCaptured where a call that was made before cannot be. On the rank's queue: where ranks of one GPU wait
  // for each other in their streams, which cannot be captured, it must not have to hold a second stream of each.
  void expect_captured() const {
    Subject subject = subject_of(of_.layer, group_, rank_.queue, 1);
    subject.forward();
    captured_on_all([&] { subject.forward(); }, rank_, rank_.queue);
  }

  // Of the slowest rank, as the times are.
  void set_rate(std::vector<Measurement>& made, double rate) const {
    const double least = -largest({-rate}, *rank_.world, rank_.queue)[0];
    for (Measurement& each : made) each.triad_gb_s = least;
  }

  const Plan& plan_;
  const Case& of_;
  Rank& rank_;
  const std::size_t bytes_;  // of the input
  const std::shared_ptr<Communicator> group_;
  const Amount amount_;
  std::optional<Truth> truth_{};
};

}  // namespace

std::vector<Measurement> measure(const Plan& plan, const Case& of, Rank& rank) {
  const auto gpu = current_gpu(rank.queue);
  const Measuring measuring(plan, of, rank);
  return gpu ? measuring.on_gpu() : measuring.on_cpu();
}

}  // namespace allnorm::launch::bench
