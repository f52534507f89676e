// How ranks are asked for, and how they come about: as processes of a launcher, threads of this process, or this
// process alone.
#include "launch/ranks.hpp"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string_view>

#include <boost/program_options/value_semantic.hpp>

#include "build_config.hpp"
#include "launch/choice.hpp"
#include "launch/launcher.hpp"
#include "launch/machine.hpp"
#include "launch/ranks_run.hpp"
#include "launch/terminal.hpp"
#include "launch/watch/watching.hpp"
#include "src/attributes.hpp"

namespace allnorm::launch {

namespace po = boost::program_options;

namespace {

constexpr int max_threads = 1024;  // ranks or workers in one process; more is a slip of the finger

// The launcher whose rank this process is. With self and threads it is meant to be alone, and nobody's.
std::optional<Launcher> launcher_of(const RankOptions& options) {
  const bool alone = options.transport == "self" || options.transport == "threads";
  return alone ? std::nullopt : launcher();
}

// How the ranks come about: threads of this process (or one rank alone), processes that MPI knows, or processes that
// meet over TCP and exchange over NCCL (meeting) or TCP.
enum class Ranks { threads, mpi, meeting, tcp };

Ranks ranks_of(const RankOptions& options) {
  const auto from = launcher();
  if (options.transport == "nccl") return !from ? Ranks::threads : from->speaks_mpi ? Ranks::mpi : Ranks::meeting;
  if (options.transport == "tcp") return Ranks::tcp;
  if (!options.transport.empty()) return options.transport == "mpi" ? Ranks::mpi : Ranks::threads;
  if (from && !from->speaks_mpi) return Ranks::tcp;
  return ALLNORM_HAVE_MPI && from ? Ranks::mpi : Ranks::threads;
}

// Said once in a job, as far as the launcher tells who is the first.
void warn_of_threads(const RankOptions& options) {
  if (options.threads == 1 || options.device != "cpu") return;
  const auto cpus = usable_cpus();
  const auto from = launcher_of(options);
  if (static_cast<std::size_t>(options.threads) <= cpus.size() || cpus.empty() || (from && from->rank > 0)) return;
  warn("--threads is " + std::to_string(options.threads) + ", but this process may run on " +
       std::to_string(cpus.size()) + (cpus.size() == 1 ? " CPU (" : " CPUs (") + ranges(cpus) +
       "): as many threads are used");
}

}  // namespace

int exit_code(Code code) noexcept {
  switch (code) {
    case Code::invalid_argument:
      return exit_usage;
    case Code::invalid_input:
      return exit_file;
    case Code::unsupported:
      return exit_unavailable;
    case Code::mismatch:
      return exit_mismatch;
    case Code::timeout:
    case Code::aborted:    // alone, it means that a rank left
    case Code::transport:  // a connection breaks when a rank leaves
      return exit_timeout;
    case Code::device:
    case Code::non_finite:
      break;
  }
  return exit_failure;
}

po::options_description describe(RankOptions& options) {
  const auto at_least_one = [](const char* name) {
    return [name](int value) {
      expect(value >= 1 && value <= max_threads, Code::invalid_argument, [&] {
        return std::string(name) + " is " + std::to_string(value) + ", must be 1 to " + std::to_string(max_threads);
      });
    };
  };
  const auto positive = [](const char* name) {
    return [name](double value) {
      expect(value > 0 && value <= 1e9, Code::invalid_argument, [&] {
        return std::string(name) + " is " + attributes::text_of(value) +
               ", must be more than 0 seconds and at most 1e9";
      });
    };
  };
  po::options_description description("Ranks");
  description.add_options()("ranks", po::value(&options.ranks)->value_name("K")->notifier(at_least_one("--ranks")),
                            "ranks; without a launcher K threads of this process stand for K processes (1)")(
      "transport",
      (new Choice("transport", &options.transport, {"self", "threads", "mpi", "nccl", "tcp"}))->value_name("NAME"),
      "self, threads, mpi, nccl or tcp (mpi under mpirun and srun, tcp under torchrun, else threads, or self for one "
      "rank); self and threads under a launcher: every process by itself; nccl: with a GPU per rank; tcp: processes "
      "that meet at MASTER_ADDR, without MPI")(
      "device", (new Choice("device", &options.device, {"cpu", "cuda"}))->value_name("NAME"),
      "cpu or cuda (cpu); ranks of one machine take its GPUs in turn")(
      "threads", po::value(&options.threads)->value_name("T")->notifier(at_least_one("--threads")),
      "CPU threads per rank (1)")("timeout",
                                  po::value(&options.timeout)->value_name("S")->notifier(positive("--timeout")),
                                  "seconds until a rank that does not answer is an error (120)")(
      "first-timeout", po::value(&options.first_timeout)->value_name("S")->notifier(positive("--first-timeout")),
      "the same until all ranks are there, and in the first exchange: ranks start at different times (600)")(
      "record", po::value(&options.record)->value_name("DIR"),
      "each rank that ends writes its last 1024 calls, how it ended and what it knows of the others to "
      "DIR/record.r<rank>.json; 'allnorm diagnose DIR' reads them")(
      "trace", po::value(&options.trace)->value_name("F.json"),
      "calls, exchanges and steps as a trace for Perfetto or chrome://tracing; with several ranks F has {rank}")(
      "metrics", po::value(&options.metrics)->value_name("[ADDRESS:]PORT"),
      "answer GET /metrics for Prometheus, at 127.0.0.1 unless ADDRESS is given and PORT plus the local rank; 0 picks "
      "a port and tells it")(
      "nonfinite",
      (new Choice("nonfinite", &options.nonfinite, {"propagate", "fail", "skip_update"}))->value_name("WHAT"),
      "input that is not finite on some rank: propagate (its channels stay out of the layer's state, one warning), "
      "fail (exit 1), or skip_update (no state of the layer changes, a warning each time) (propagate)");
  return description;
}

void check(const RankOptions& options) {
  check_watching(options);
  const auto from = launcher_of(options);
  const bool several = from && from->size > 1;
  expect(!several || options.ranks == 0 || options.ranks == from->size, Code::invalid_argument, [&] {
    return "--ranks is " + std::to_string(options.ranks) + ", must be " + std::to_string(from->size) + " under " +
           text_of(*from);
  });
  expect(options.transport != "self" || options.ranks <= 1, Code::invalid_argument, [&] {
    return "--transport is self, must be threads for --ranks " + std::to_string(options.ranks) + ": self is one rank";
  });
  expect(options.transport != "mpi" || from || options.ranks <= 1, Code::invalid_argument, [&] {
    const std::string ranks = std::to_string(options.ranks);
    return "--transport is mpi, must be threads for --ranks " + ranks + " without a launcher (or: mpirun -n " + ranks +
           " allnorm ...)";
  });

  expect(options.transport != "tcp" || from || options.ranks <= 1, Code::invalid_argument, [&] {
    const std::string ranks = std::to_string(options.ranks);
    return "--transport is tcp, must be threads for --ranks " + ranks +
           " without a launcher (or: torchrun --no-python --nproc-per-node " + ranks + " allnorm ...)";
  });
  expect(options.transport != "nccl" || options.device == "cuda", Code::invalid_argument,
         "--transport is nccl, must be self, threads, mpi or tcp with --device cpu: ranks of NCCL have a GPU each");

  constexpr std::string_view get_mpi = "install Open MPI or MPICH (Debian, Ubuntu: libopenmpi-dev) and configure again";
  expect(options.device != "cuda" || cuda_devices() > 0, Code::unsupported,
         [&] { return "--device is cuda, must be cpu: " + cuda_summary(); });
  const bool over_nccl = options.transport == "nccl";
  expect(!over_nccl || ALLNORM_HAVE_NCCL, Code::unsupported,
         "--transport is nccl, must be self, threads, mpi or tcp: this build has no NCCL; install it (Debian, Ubuntu: "
         "libnccl-dev) and configure again");
  expect(options.transport != "mpi" || ALLNORM_HAVE_MPI, Code::unsupported, [&] {
    return "--transport is mpi, must be self, threads or tcp: this build has no MPI; " + std::string(get_mpi);
  });
  if (!from || options.transport == "mpi") return;
  const Ranks ranks = ranks_of(options);
  expect(!from->speaks_mpi || ALLNORM_HAVE_MPI || ranks == Ranks::tcp || (from->size == 1 && !over_nccl),
         Code::unsupported, [&] {
           return "the launcher is " + text_of(*from) + ", but this build has no MPI; " + std::string(get_mpi) +
                  ", or let its ranks meet over TCP (--transport tcp with MASTER_ADDR)";
         });
  if (ranks == Ranks::meeting) expect_meeting();
  if (ranks == Ranks::tcp) expect_tcp_meeting(!options.transport.empty());
}

bool under_launcher(const RankOptions& options) noexcept { return launcher_of(options).has_value(); }

bool ranks_are_threads(const RankOptions& options) noexcept {
  return ranks_of(options) == Ranks::threads && options.ranks > 1;
}

int expected_ranks(const RankOptions& options) noexcept {
  if (ranks_of(options) == Ranks::threads) return std::max(options.ranks, 1);
  const auto from = launcher();
  return from ? from->size : 1;
}

int run_ranks(const RankOptions& options, const std::function<void(Rank&)>& body) {
  check(options);
  warn_of_threads(options);
  Watching watching(options);
  switch (ranks_of(options)) {
    case Ranks::mpi:
      return run_mpi(options, body, watching);
    case Ranks::meeting:
      return run_meeting(options, body, watching);
    case Ranks::tcp:
      return run_tcp(options, body, watching);
    case Ranks::threads:
      break;
  }
  return run_threads(options, body, watching);
}

int report(const std::exception& error) {
  const Failure failure = failure_of(error);
  const auto from = launcher();
  const bool several = from && from->size != 1;
  // Open MPI takes a second to end the other processes when one of them leaves before MPI_Init, and another one for
  // those of other hosts.
  const bool elsewhere = several && on_several_hosts() && local_rank(from->rank) != from->rank;
  if (several) give_way(from->rank, std::chrono::milliseconds(elsewhere ? 3500 : 1500));
  print_line((several && from->rank > 0 ? "rank " + std::to_string(from->rank) + ": " : "") + failure.message);
  return failure.code;
}

}  // namespace allnorm::launch
