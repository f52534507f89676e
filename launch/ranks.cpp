// Runs a function on every rank: processes of a launcher, threads of this process, or this process alone.
#include "launch/ranks.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <set>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include <boost/program_options/value_semantic.hpp>

#include "allnorm/nccl.hpp"
#include "build_config.hpp"
#include "launch/launcher.hpp"
#include "launch/ranks_nccl.hpp"
#include "launch/terminal.hpp"
#include "src/attributes.hpp"

#if ALLNORM_HAVE_MPI
#include "allnorm/mpi.hpp"
#endif

namespace allnorm::launch {

namespace po = boost::program_options;

namespace {

constexpr int max_threads = 1024;  // ranks or workers in one process; more is a slip of the finger

// The ranks of a machine take its GPUs in turn: rank r the one of number r mod GPUs.
Queue queue_of(const RankOptions& options, int number) {
  return options.device == "cuda" ? Queue::cuda(number % std::max(cuda_devices(), 1)) : Queue::cpu(options.threads);
}

// The launcher whose rank this process is. With self and threads it is meant to be alone, and nobody's.
std::optional<Launcher> launcher_of(const RankOptions& options) {
  const bool alone = options.transport == "self" || options.transport == "threads";
  return alone ? std::nullopt : launcher();
}

// How the ranks come about: threads of this process (or one rank alone), processes that MPI knows, or processes that
// meet over TCP.
enum class Ranks { threads, mpi, meeting };

Ranks ranks_of(const RankOptions& options) {
  const auto from = launcher();
  if (options.transport == "nccl") return !from ? Ranks::threads : from->speaks_mpi ? Ranks::mpi : Ranks::meeting;
  if (!options.transport.empty()) return options.transport == "mpi" ? Ranks::mpi : Ranks::threads;
  return ALLNORM_HAVE_MPI && from && from->speaks_mpi ? Ranks::mpi : Ranks::threads;
}

// ---- printing -------------------------------------------------------------------------------------------------------

struct Failure {
  int code = exit_failure;
  Code kind = Code::transport;
  std::string message;
};

Failure failure_of(const std::exception& error) {
  if (const auto* own = dynamic_cast<const Error*>(&error))
    return {exit_code(own->code()), own->code(), own->message()};
  if (dynamic_cast<const std::bad_alloc*>(&error)) return {exit_failure, Code::device, "there is not enough memory"};
  return {exit_failure, Code::transport, error.what()};
}

// Calls body(rank); tells the peers if it throws.
std::optional<Failure> run_one(Rank& rank, const std::function<void(Rank&)>& body) {
  try {
    body(rank);
    return std::nullopt;
  } catch (const std::exception& error) {
    Failure failure = failure_of(error);
    rank.world->abort(Error(failure.kind, failure.message));
    return failure;
  }
}

Patience patience_of(const RankOptions& options) {
  Patience patience;
  patience.timeout = options.timeout;
  patience.first_timeout = options.first_timeout;
  return patience;
}

// What the ranks exchange over: `bootstrap`, or NCCL between its ranks.
std::shared_ptr<Communicator> world_over(const RankOptions& options, std::shared_ptr<Communicator> bootstrap,
                                         Queue& queue) {
  return options.transport == "nccl" ? nccl_ranks(bootstrap, queue, patience_of(options)) : bootstrap;
}

// ---- threads of this process ----------------------------------------------------------------------------------------

// Of several failures, the one whose code all leave with: a rank's own first, then a mismatch, then a missing rank.
int severity(const Failure& failure) {
  if (failure.kind == Code::aborted) return 3;
  if (failure.code == exit_timeout) return 2;
  return failure.code == exit_mismatch ? 1 : 0;
}

// "rank 1: bn, call 3, ...", "ranks 0 and 1 are ...": what kernels or all ranks found.
bool names_ranks(const Failure& failure) { return failure.message.starts_with("rank"); }

int report_all(const std::vector<std::optional<Failure>>& failures) {
  const Failure* first = nullptr;
  for (const auto& failure : failures)
    if (failure && (!first || severity(*failure) < severity(*first))) first = &*failure;
  if (!first) return exit_success;
  std::set<std::string> printed;
  for (std::size_t rank = 0; rank < failures.size(); ++rank) {
    const auto& failure = failures[rank];
    if (!failure || severity(*failure) != severity(*first)) continue;  // the others are its consequences
    if (severity(*failure) > 0 && !printed.empty()) continue;          // every rank tells the same story
    if (!printed.insert(failure->message).second) continue;
    const auto same = [&](const auto& other) { return other && other->message == failure->message; };
    const bool one_of_many = failures.size() > 1 && std::count_if(failures.begin(), failures.end(), same) == 1 &&
                             severity(*failure) == 0 && !names_ranks(*failure);
    print_line((one_of_many ? "rank " + std::to_string(rank) + ": " : "") + failure->message);
  }
  return first->code;
}

int run_threads(const RankOptions& options, const std::function<void(Rank&)>& body) {
  const int size = std::max(options.ranks, 1);
  std::vector<std::shared_ptr<Communicator>> worlds;
  if (size == 1 && options.transport != "threads")
    worlds.push_back(self());
  else
    worlds = threads(size, patience_of(options));

  std::vector<std::optional<Failure>> failures(static_cast<std::size_t>(size));
  const auto run = [&](std::size_t r) {
    try {
      Queue queue = queue_of(options, static_cast<int>(r));
      auto world = world_over(options, worlds[r], queue);
      Rank rank{static_cast<int>(r), size, std::move(world), std::move(queue), size > 1};
      failures[r] = run_one(rank, body);
    } catch (const std::exception& error) {  // no queue, or no NCCL
      failures[r] = failure_of(error);
      worlds[r]->abort(Error(failures[r]->kind, failures[r]->message));
    }
  };
  if (size == 1) {
    run(0);
    return report_all(failures);
  }
  std::vector<std::thread> ranks;
  try {
    for (std::size_t r = 0; r < worlds.size(); ++r) ranks.emplace_back(run, r);
  } catch (const std::system_error& error) {  // the ranks that did start wait for one that will not come
    const std::size_t missing = ranks.size();
    failures[missing] =
        Failure{exit_failure, Code::transport, std::string("a thread cannot be started: ") + error.what()};
    worlds[missing]->abort(Error(Code::transport, failures[missing]->message));
  }
  for (auto& rank : ranks) rank.join();
  return report_all(failures);
}

// ---- processes of MPI -----------------------------------------------------------------------------------------------

// How long rank r leaves the word to the ranks before it when several may have found the same error: `base`, and a
// little more from rank to rank.
void give_way(int rank, std::chrono::milliseconds base) {
  if (rank > 0) std::this_thread::sleep_for(base + std::chrono::milliseconds(25 * std::min(rank, 40)));
}

#if ALLNORM_HAVE_MPI

// Where MPI says of itself what is not so.
GpuMemory gpu_memory_from_environment() {
  const char* const given = std::getenv("ALLNORM_MPI_GPU_MEMORY");
  const std::string text = given == nullptr ? "" : given;
  if (text.empty()) return GpuMemory::ask;
  expect(text == "taken" || text == "refused", Code::invalid_argument,
         [&] { return "ALLNORM_MPI_GPU_MEMORY is " + text + ", must be taken or refused"; });
  return text == "taken" ? GpuMemory::taken : GpuMemory::refused;
}

// "Open MPI v4.1.4": the start of what the library says of itself.
std::string mpi_name() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string_view version(text, static_cast<std::size_t>(length));
  std::string name(version.substr(0, version.find_first_of(",\n")));
  std::replace(name.begin(), name.end(), '\t', ' ');
  return name;
}

// Processes that one launcher started and that MPI does not know as its ranks: each would compute alone, and all would
// write the same files. Empty where the two agree.
std::string never_met(int size) {
  const auto from = launcher();
  if (!from || from->size == 0 || from->size == size) return {};
  const std::string starter = from->name == srun       ? "srun --mpi=pmix or mpirun"
                              : from->name == torchrun ? "mpirun or srun"
                                                       : "the mpirun of this build's MPI, " + mpi_name();
  return "ranks of MPI: " + std::to_string(size) + ", must be the " + std::to_string(from->size) + " of " +
         std::string(from->name) + ": start them with " + starter +
         " (a process that is meant to be alone: --transport self or threads)";
}

int run_mpi(const RankOptions& options, const std::function<void(Rank&)>& body) {
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  int rank = 0, size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const auto leave = [&](const Failure& failure) {
    const bool aborted = failure.kind == Code::aborted;  // knows least, rank 0 too
    const int base = aborted ? 1500 : severity(failure) > 0 ? 300 : 150;
    give_way(aborted ? rank + 1 : rank, std::chrono::milliseconds(base));
    print_line(
        (size > 1 && severity(failure) == 0 && !names_ranks(failure) ? "rank " + std::to_string(rank) + ": " : "") +
        failure.message);
    MPI_Abort(MPI_COMM_WORLD, failure.code);
    return failure.code;
  };
  if (const std::string lost = never_met(size); !lost.empty()) {
    if (size > 1) return leave({exit_unavailable, Code::unsupported, lost});
    MPI_Finalize();  // nobody waits for this process
    fail(Code::unsupported, lost);
  }
  if (options.ranks > 0 && options.ranks != size)
    return leave({exit_usage, Code::invalid_argument,
                  "--ranks is " + std::to_string(options.ranks) + ", must be the launcher's " + std::to_string(size)});
  try {
    Queue queue = queue_of(options, local_rank(rank));
    auto world = world_over(options, mpi(MPI_COMM_WORLD, patience_of(options), gpu_memory_from_environment()), queue);
    Rank own{rank, size, std::move(world), std::move(queue), false};
    if (const auto failure = run_one(own, body)) return leave(*failure);  // `own` keeps MPI's objects until the abort
  } catch (const std::exception& error) {
    return leave(failure_of(error));
  }
  MPI_Finalize();
  return exit_success;
}

#else

int run_mpi(const RankOptions&, const std::function<void(Rank&)>&) {
  fail(Code::unsupported, "transport is mpi, must be self or threads: this build has no MPI");
}

#endif

// ---- processes that meet over TCP -----------------------------------------------------------------------------------

#if ALLNORM_HAVE_NCCL

// Nobody ends the others here: a rank that fails tells them through the meeting, and each leaves by itself.
int run_meeting(const RankOptions& options, const std::function<void(Rank&)>& body) {
  const Meeting meeting = meeting_from_environment();
  const auto leave = [&](const Failure& failure) {
    print_line((names_ranks(failure) ? "" : "rank " + std::to_string(meeting.rank) + ": ") + failure.message);
    return failure.code;
  };
  try {
    Queue queue = queue_of(options, local_rank(meeting.rank));
    auto world = nccl_over(meeting, queue, patience_of(options));
    Rank own{meeting.rank, meeting.size, std::move(world), std::move(queue), false};
    const auto failure = run_one(own, body);
    return failure ? leave(*failure) : exit_success;
  } catch (const std::exception& error) {
    return leave(failure_of(error));
  }
}
void expect_meeting() { (void)meeting_from_environment(); }

#else

int run_meeting(const RankOptions&, const std::function<void(Rank&)>&) {
  fail(Code::unsupported, "transport is nccl, must be self, threads or mpi: this build has no NCCL");
}
void expect_meeting() {}

#endif

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
      "transport", po::value(&options.transport)->value_name("NAME"),
      "self, threads, mpi or nccl (mpi under a launcher, else threads, or self for one rank); self and threads under a "
      "launcher: every process by itself; nccl: with a GPU per rank")(
      "device", po::value(&options.device)->value_name("NAME"),
      "cpu or cuda (cpu); ranks of one machine take its GPUs in turn")(
      "threads", po::value(&options.threads)->value_name("T")->notifier(at_least_one("--threads")),
      "CPU threads per rank (1)")("timeout",
                                  po::value(&options.timeout)->value_name("S")->notifier(positive("--timeout")),
                                  "seconds until a rank that does not answer is an error (120)")(
      "first-timeout", po::value(&options.first_timeout)->value_name("S")->notifier(positive("--first-timeout")),
      "the same for the first exchange: ranks start at different times (600)");
  return description;
}

void check(const RankOptions& options) {
  const auto one_of = [](const std::string& option, const std::string& value,
                         std::initializer_list<const char*> known) {
    std::string names;
    for (const char* name : known) names += (names.empty() ? "" : ", ") + std::string(name);
    expect(std::find(known.begin(), known.end(), value) != known.end(), Code::invalid_argument,
           [&] { return option + " is '" + value + "', must be one of " + names; });
  };
  if (!options.transport.empty()) one_of("--transport", options.transport, {"self", "threads", "mpi", "nccl"});
  one_of("--device", options.device, {"cpu", "cuda"});

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

  expect(options.transport != "nccl" || options.device == "cuda", Code::invalid_argument,
         "--transport is nccl, must be self, threads or mpi with --device cpu: ranks of NCCL have a GPU each");

  constexpr std::string_view get_mpi = "install Open MPI or MPICH (Debian, Ubuntu: libopenmpi-dev) and configure again";
  expect(options.device != "cuda" || cuda_devices() > 0, Code::unsupported,
         [&] { return "--device is cuda, must be cpu: " + cuda_summary(); });
  const bool over_nccl = options.transport == "nccl";
  expect(!over_nccl || ALLNORM_HAVE_NCCL, Code::unsupported,
         "--transport is nccl, must be self, threads or mpi: this build has no NCCL; install it (Debian, Ubuntu: "
         "libnccl-dev) and configure again");
  expect(options.transport != "mpi" || ALLNORM_HAVE_MPI, Code::unsupported,
         [&] { return "--transport is mpi, must be self or threads: this build has no MPI; " + std::string(get_mpi); });
  if (!from || (!over_nccl && !options.transport.empty())) return;
  expect(from->speaks_mpi || over_nccl, Code::unsupported, [&] {
    return "the launcher is " + text_of(*from) +
           ", must be mpirun or srun: ranks meet through MPI (with a GPU each, --device cuda --transport nccl does "
           "without)";
  });
  expect(!from->speaks_mpi || ALLNORM_HAVE_MPI || (from->size == 1 && !over_nccl), Code::unsupported,
         [&] { return "the launcher is " + text_of(*from) + ", but this build has no MPI; " + std::string(get_mpi); });
  if (ranks_of(options) == Ranks::meeting) expect_meeting();
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
  switch (ranks_of(options)) {
    case Ranks::mpi:
      return run_mpi(options, body);
    case Ranks::meeting:
      return run_meeting(options, body);
    case Ranks::threads:
      break;
  }
  return run_threads(options, body);
}

int report(const std::exception& error) {
  const Failure failure = failure_of(error);
  const auto from = launcher();
  const bool several = from && from->size != 1;
  // Open MPI takes a second to end the other processes when one of them leaves before MPI_Init.
  if (several) give_way(from->rank, std::chrono::milliseconds(1500));
  print_line((several && from->rank > 0 ? "rank " + std::to_string(from->rank) + ": " : "") + failure.message);
  return failure.code;
}

}  // namespace allnorm::launch
