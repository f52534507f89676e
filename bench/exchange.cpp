// What one exchange costs: 2 C + 1 doubles that are added, and forward and backward of sync_batch_norm on one value per
// channel and rank, so that a call is hardly more than its exchange; over threads, and under mpirun over MPI, where
// MPI_Allreduce of as many doubles stands beside it, and MPI_Allgather with a sum in rank order. So does the same call
// of a lone rank. Uses nothing but the public headers: built from two trees, two versions can be run in turn. Prints a
// line per number of ranks and channels; µs. usage: [mpirun -n K] bench_exchange [CALLS]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "allnorm/norm.hpp"
#include "build_config.hpp"

#if ALLNORM_HAVE_MPI
#include "allnorm/mpi.hpp"
#endif

namespace {

using namespace allnorm;
using Clock = std::chrono::steady_clock;

struct Microseconds {
  std::vector<double> forward{}, backward{}, exchange{}, allreduce{}, allgather{};  // (calls)
};

template <class F>
double microseconds(const F& f) {
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// Median (0.5) or another quantile.
double quantile(std::vector<double> values, double q) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

/// `calls` calls of one rank, after a tenth as many that warm up.
Microseconds measure(const std::shared_ptr<Communicator>& group, std::int64_t channels, int calls) {
  Queue queue = Queue::cpu();
  Norm norm(Layer("sync_batch_norm"), channels, group, queue);
  const Shape shape{1, channels};
  std::mt19937_64 engine(static_cast<std::uint64_t>(norm.group().rank()));
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(channels)), y(x.size()), dx(x.size());
  for (float& v : x) v = normal(engine);
  Microseconds times;
  for (int call = -calls / 10; call < calls; ++call) {
    Saved saved;
    const double forward =
        microseconds([&] { saved = norm.forward({.input = view(x.data(), shape)}, view(y.data(), shape), queue); });
    const double backward =
        microseconds([&] { norm.backward(saved, view(x.data(), shape), {.input = view(dx.data(), shape)}, queue); });
    if (call < 0) continue;
    times.forward.push_back(forward);
    times.backward.push_back(backward);
  }
  Message message{Header("exchange", Direction::gradients, 0), std::vector<double>(2 * x.size() + 1), 0, {}};
  for (int call = -calls / 10; call < calls; ++call) {
    const double exchange = microseconds([&] { message = group->exchange(std::move(message), queue); });
    if (call >= 0) times.exchange.push_back(exchange);
  }
#if ALLNORM_HAVE_MPI
  for (int call = -calls / 10; call < calls && group->transport() == "mpi"; ++call) {
    const auto all = static_cast<int>(message.payload.size());
    std::vector<double> sum(message.payload.size()), parts(sum.size() * static_cast<std::size_t>(group->size()));
    const double allreduce = microseconds(
        [&] { MPI_Allreduce(message.payload.data(), sum.data(), all, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD); });
    const double allgather = microseconds([&] {
      MPI_Allgather(message.payload.data(), all, MPI_DOUBLE, parts.data(), all, MPI_DOUBLE, MPI_COMM_WORLD);
      std::copy_n(parts.begin(), sum.size(), sum.begin());
      for (std::size_t part = sum.size(); part < parts.size(); part += sum.size())
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += parts[part + i];
    });
    if (call < 0) continue;
    times.allreduce.push_back(allreduce);
    times.allgather.push_back(allgather);
  }
#endif
  return times;
}

void print(const Communicator& world, std::int64_t channels, const Microseconds& times, const Microseconds& alone) {
  std::printf("%-9.*s %5d %8lld", static_cast<int>(world.transport().size()), world.transport().data(), world.size(),
              static_cast<long long>(channels));
  for (const auto* all : {&times.exchange, &times.forward, &times.backward})
    std::printf(" %12.2f %12.2f", quantile(*all, 0.5), quantile(*all, 0.99));
  for (const auto* all : {&alone.forward, &alone.backward}) std::printf(" %12.2f", quantile(*all, 0.5));
  if (!times.allreduce.empty())
    for (const auto* all : {&times.allreduce, &times.allgather})
      std::printf(" %12.2f %12.2f", quantile(*all, 0.5), quantile(*all, 0.99));
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const int calls = argc > 1 ? std::atoi(argv[1]) : 2000;
  if (calls < 10) {
    std::fprintf(stderr, "CALLS is '%s', must be at least 10\n", argv[1]);
    return 2;
  }
  std::shared_ptr<Communicator> processes;  // the ranks of mpirun; null where there is one
#if ALLNORM_HAVE_MPI
  MPI_Init(&argc, &argv);
  processes = mpi(MPI_COMM_WORLD);
  if (processes->size() == 1) processes.reset();
#endif
  const bool prints = !processes || processes->rank() == 0;
  if (prints)
    std::printf("%-9s %5s %8s %12s %12s %12s %12s %12s %12s %12s %12s%s\n", "transport", "ranks", "channels",
                "exchange", "p99", "forward", "p99", "backward", "p99", "alone: fwd", "bwd",
                processes ? " MPI_Allreduce          p99 MPI_Allgather          p99" : "");
  for (const std::int64_t channels : {64, 256, 2048}) {
    const Microseconds alone = measure(self(), channels, calls);
    if (processes) {
      const Microseconds times = measure(processes, channels, calls);
      if (prints) print(*processes, channels, times, alone);
      continue;
    }
    for (const int ranks : {2, 4, 8}) {
      const auto worlds = threads(ranks);
      Microseconds times;
      std::vector<std::thread> peers;
      for (std::size_t r = 1; r < worlds.size(); ++r)
        peers.emplace_back([&, r] { measure(worlds[r], channels, calls); });
      times = measure(worlds[0], channels, calls);
      for (std::thread& peer : peers) peer.join();
      print(*worlds[0], channels, times, alone);
    }
  }
#if ALLNORM_HAVE_MPI
  processes.reset();  // before MPI ends
  MPI_Finalize();
#endif
}
