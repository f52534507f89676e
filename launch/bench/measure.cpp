#include "launch/bench/measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "launch/bench/subject.hpp"
#include "src/runtime/parallel.hpp"

namespace allnorm::launch::bench {

namespace {

using Clock = std::chrono::steady_clock;
using Times = std::vector<double>;  // (iterations), in microseconds

template <class F>
double microseconds(const F& f) {
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

Measurement::Times quantiles(Times times) {
  std::sort(times.begin(), times.end());
  const auto last = static_cast<double>(times.size() - 1);
  return {times[times.size() / 2], times[static_cast<std::size_t>(std::ceil(0.99 * last))]};
}

// All ranks go on together.
void meet(Rank& rank) { rank.world->exchange({Header("bench", Direction::agreement, 0), {}, 0, {}}, rank.queue); }

// Calls of one direction, and what they sent.
struct Calls {
  Times times{};
  Communicator::Traffic traffic{};
};

template <class Call>
void time_call(Calls& calls, bool counts, const Communicator& group, const Call& call) {
  const Communicator::Traffic before = group.traffic();
  const double time = microseconds(call);
  if (!counts) return;
  calls.times.push_back(time);
  calls.traffic.exchanges += group.traffic().exchanges - before.exchanges;
  calls.traffic.bytes += group.traffic().bytes - before.bytes;
}

std::pair<Calls, Calls> time_calls(Subject& subject, const Plan& plan, Rank& rank) {
  Calls forward, backward;
  meet(rank);
  for (std::int64_t call = -plan.warm_up; call < plan.iterations; ++call) {
    time_call(forward, call >= 0, subject.group(), [&] { subject.forward(); });
    time_call(backward, call >= 0, subject.group(), [&] { subject.backward(); });
  }
  return {std::move(forward), std::move(backward)};
}

// The messages of one call of these, alone.
double time_exchange(const Calls& calls, Communicator& group, const Plan& plan, Rank& rank) {
  meet(rank);  // one whose group is itself alone too
  const auto count = static_cast<std::uint64_t>(calls.times.size());
  const std::uint64_t exchanges = (calls.traffic.exchanges + count - 1) / count;
  if (exchanges == 0) return 0;
  Message message{Header("bench", allnorm::Direction::gradients, 0), {}, 0, {}};
  message.payload.resize(calls.traffic.bytes / sizeof(double) / calls.traffic.exchanges);
  Times times;
  for (std::int64_t call = -plan.warm_up; call < plan.iterations; ++call) {
    const double time = microseconds([&] {
      for (std::uint64_t i = 0; i < exchanges; ++i) message = group.exchange(std::move(message), rank.queue);
    });
    if (call >= 0) times.push_back(time);
  }
  return quantiles(std::move(times)).median;
}

// y = x + s z of `bytes` bytes each, by all threads of the rank, in GB/s.
double triad(std::size_t bytes, const Plan& plan, Rank& rank) {
  const std::size_t size = std::max<std::size_t>(1, bytes / sizeof(float));
  std::vector<float> x(size, 1), z(size, 2), y(size);
  const auto tasks = static_cast<std::size_t>(rank.queue.threads());
  Times times;
  meet(rank);
  for (std::int64_t call = -plan.warm_up; call < plan.iterations; ++call) {
    const double time = microseconds([&] {
      parallel(rank.queue, rank.queue.threads(), [&](std::int64_t task) {
        const auto part = [&](std::int64_t i) { return size * static_cast<std::size_t>(i) / tasks; };
        for (std::size_t i = part(task); i < part(task + 1); ++i) y[i] = x[i] + 0.5f * z[i];
      });
    });
    std::swap(x, y);  // every result is read
    if (call >= 0) times.push_back(time);
  }
  return 3e-3 * static_cast<double>(size * sizeof(float)) / quantiles(std::move(times)).median;
}

}  // namespace

std::vector<double> largest(const std::vector<double>& values, Communicator& world, Queue& queue) {
  const std::size_t count = values.size(), ranks = static_cast<std::size_t>(world.size());
  Message message{Header("bench", allnorm::Direction::agreement, 1), Times(count * ranks), 0, {}};
  std::copy(values.begin(), values.end(),
            message.payload.begin() + static_cast<std::ptrdiff_t>(count * static_cast<std::size_t>(world.rank())));
  const Message all = world.exchange(std::move(message), queue);
  std::vector<double> most = values;
  for (std::size_t i = 0; i < all.payload.size(); ++i) most[i % count] = std::max(most[i % count], all.payload[i]);
  return most;
}

Measurement measure(const Plan& plan, const Case& of, Rank& rank) {
  const auto subject_of = [&](const Layer& layer) {
    return Subject(layer, of.shape, plan.dtype, plan.order, sync_group(rank.world, layer.options.sync, rank.queue),
                   rank.rank, rank.queue);
  };
  Measurement made{.of = &of};
  made.bytes = static_cast<double>(of.shape.elements()) * static_cast<double>(size_of(plan.dtype));
  if (plan.checks(of)) made.check = check(plan, of, rank);
  Subject subject = subject_of(of.layer);
  const auto [forward, backward] = time_calls(subject, plan, rank);
  const Measurement::Times f = quantiles(forward.times), b = quantiles(backward.times);
  Measurement::Exchange exchange{.ranks = subject.group().size()};
  exchange.message =
      static_cast<double>(forward.traffic.bytes + backward.traffic.bytes) / static_cast<double>(plan.iterations);
  const std::uint64_t sent = forward.traffic.exchanges + backward.traffic.exchanges;
  const bool exchanges = largest({static_cast<double>(sent)}, *rank.world, rank.queue)[0] > 0;
  if (exchanges) {
    exchange.alone =
        time_exchange(forward, subject.group(), plan, rank) + time_exchange(backward, subject.group(), plan, rank);
    Layer local = of.layer;
    local.options.sync.ranks = Sync::none;
    Subject alone = subject_of(local);
    const auto [local_forward, local_backward] = time_calls(alone, plan, rank);
    exchange.local = quantiles(local_forward.times).median + quantiles(local_backward.times).median;
  }
  const double rate = triad(static_cast<std::size_t>(made.bytes), plan, rank);
  const auto all =
      largest({f.median, f.p99, b.median, b.p99, exchange.alone, exchange.local, -rate}, *rank.world, rank.queue);
  made.forward = {all[0], all[1]};
  made.backward = {all[2], all[3]};
  exchange.alone = all[4];
  exchange.local = all[5];
  made.triad_gb_s = -all[6];  // of the slowest rank, as the times are
  if (exchanges) made.exchange = exchange;
  if (made.check) {
    const auto worst =
        largest({made.check->max_error, static_cast<double>(made.check->wrong)}, *rank.world, rank.queue);
    made.check = Check{worst[0], static_cast<std::int64_t>(worst[1])};
  }
  return made;
}

}  // namespace allnorm::launch::bench
