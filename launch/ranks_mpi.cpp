// Ranks as processes that MPI knows: from MPI_Init to MPI_Finalize nothing waits without a deadline.
#include <cstdlib>
#include <utility>

#include "build_config.hpp"
#include "launch/launcher.hpp"
#include "launch/ranks_run.hpp"
#include "launch/terminal.hpp"
#include "launch/watchdog.hpp"
#include "src/transport/deadline.hpp"

#if ALLNORM_HAVE_MPI

#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>

#include "allnorm/mpi.hpp"

namespace allnorm::launch {

namespace {

// Where MPI says of itself what is not so.
GpuMemory gpu_memory_from_environment() {
  const char* const given = std::getenv("ALLNORM_MPI_GPU_MEMORY");
  const std::string text = given == nullptr ? "" : given;
  if (text.empty()) return GpuMemory::ask;
  expect(text == "taken" || text == "refused", Code::invalid_argument,
         [&] { return "ALLNORM_MPI_GPU_MEMORY is " + text + ", must be taken or refused"; });
  return text == "taken" ? GpuMemory::taken : GpuMemory::refused;
}

bool is_open_mpi() { return mpi_library().starts_with("Open MPI"); }

// Processes that one launcher started and that MPI does not know as its ranks: each would compute alone, and all would
// write the same files. Empty where the two agree.
std::string never_met(int size) {
  const auto from = launcher();
  if (!from || from->size == 0 || from->size == size) return {};
  const std::string own_mpirun = "the mpirun of this build's MPI, " + mpi_library();
  const std::string starter = from->name == torchrun ? "mpirun or srun, or let them meet over TCP (--transport tcp)"
                              : from->name != srun   ? own_mpirun
                              : is_open_mpi()        ? "srun --mpi=pmix or mpirun"
                                                     : "srun --mpi=pmi2 or " + own_mpirun;
  return "ranks of MPI: " + std::to_string(size) + ", must be the " + std::to_string(from->size) + " of " +
         std::string(from->name) + ": start them with " + starter +
         " (a process that is meant to be alone: --transport self or threads)";
}

// A task of a plain srun, of which Open MPI knows that it is not alone and not who the others are: it would end the
// process in MPI_Init, in many words and with a code of its own.
bool srun_tells_mpi_nothing() {
  const auto from = launcher();
  return from && from->name == srun && from->size > 1 && std::getenv("PMIX_RANK") == nullptr && is_open_mpi();
}

// Between two processes MPI itself waits for ever, at its start and at its end. No rank can be named then.
std::string waits_in(const char* call, double seconds) {
  const auto from = launcher();
  return std::string(call) + ": a rank of " + (from ? text_of(*from) : "MPI") + " is missing or late, not done after " +
         seconds_text(seconds);
}

// What a watchdog does last.
std::function<void()> record_late(RankWatch* watch, const std::string& line) {
  if (watch == nullptr) return {};
  return [watch, line] { watch->late({.line = line}); };
}

// On other hosts than its own mpirun ends ranks a second after those at home. Until then they must not speak, nor those
// at home whose failure counts less before the ones there.
std::chrono::milliseconds time_for_other_hosts(const Failure& failure, int rank, bool keeps_report) {
  constexpr std::chrono::milliseconds to_end_elsewhere{2000};
  if (!on_several_hosts()) return {};
  const int later = failure.kind == Code::aborted || keeps_report ? 2 : severity(failure) > 0 && rank > 0 ? 1 : 0;
  return (later + (local_rank(rank) != rank ? 1 : 0)) * to_end_elsewhere;
}

// The end of a rank that failed, and of the job. Those who may have found the same wait a moment for each other, and
// longer for the one that is to say what is known of all: on a busy machine it may take a while. Where it does not come
// to that this one does, the first rank too where it was held up until another one had its turn.
int leave(const Failure& failure, int rank, int size, RankWatch* watch, Watching& watching) {
  if (watch != nullptr) watch->failed(failure);
  const bool keeps_report = watching.keeps_report();
  std::this_thread::sleep_for(time_to_give_way(failure, rank, keeps_report) +
                              time_for_other_hosts(failure, rank, keeps_report));
  watching.tell_report();
  tell_own(failure, rank, size);
  // Hydra drops what it has not passed on yet as it ends the job.
  if (!is_open_mpi()) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const Watchdog watchdog(5, failure.code, {});
  MPI_Abort(MPI_COMM_WORLD, failure.code);
  return failure.code;
}

}  // namespace

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string_view version(text, static_cast<std::size_t>(length));
  std::string name(version.substr(0, version.find_first_of(",\n")));
  std::replace(name.begin(), name.end(), '\t', ' ');
  return name;
}

int run_mpi(const RankOptions& options, const RankBody& body, Watching& watching) {
  const auto from = launcher();
  // Where it is asked for by name, MPI may try: an old Open MPI may have been built with Slurm's own PMI.
  if (options.transport.empty() && srun_tells_mpi_nothing()) fail(Code::unsupported, never_met(1));
  std::signal(SIGPIPE, SIG_IGN);  // of a connection of MPI's to a rank that is gone: who it was is told at the deadline
  RankWatch* watch = from && from->size > 0 ? watching.rank(from->rank, from->size) : nullptr;
  {
    const std::string line = waits_in("MPI_Init", options.first_timeout);
    const Watchdog watchdog(options.first_timeout, exit_timeout, line, from ? from->rank : 0,
                            "MPI_Init: a rank is missing or late", record_late(watch, line));
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  }
  int rank = 0, size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (const std::string lost = never_met(size); !lost.empty()) {
    if (size > 1) return leave({exit_unavailable, Code::unsupported, lost}, rank, size, watch, watching);
    MPI_Finalize();  // nobody waits for this process
    fail(Code::unsupported, lost);
  }
  if (options.ranks > 0 && options.ranks != size)
    return leave({exit_usage, Code::invalid_argument,
                  "--ranks is " + std::to_string(options.ranks) + ", must be the launcher's " + std::to_string(size)},
                 rank, size, watch, watching);
  std::optional<Watchdog> watchdog;
  try {
    if (watch == nullptr) watch = watching.rank(rank, size);
    Queue queue = queue_of(options, local_rank(rank));
    const auto bootstrap = mpi(MPI_COMM_WORLD, patience_of(options, watching), gpu_memory_from_environment());
    auto world = world_over(options, bootstrap, queue, watching);
    Rank own = watched_rank(rank, size, std::move(world), std::move(queue), false, watch);
    const auto to_the_end = [&](Rank& here) {
      body(here);
      // MPI_Finalize waits for all ranks, without a deadline and without a name: nobody goes there alone.
      meet_at_the_end(*bootstrap, here.queue);
    };
    if (const auto failure = run_one(own, to_the_end))
      return leave(*failure, rank, size, watch, watching);  // `own` keeps MPI's objects until the abort
    const std::string line = waits_in("MPI_Finalize", options.timeout);
    watchdog.emplace(options.timeout, exit_timeout, line, rank, "MPI_Finalize: a rank is missing or late",
                     record_late(watch, line));
  } catch (const std::exception& error) {
    return leave(failure_of(error), rank, size, watch, watching);
  }
  MPI_Finalize();
  return exit_success;
}

}  // namespace allnorm::launch

#else

namespace allnorm::launch {

std::string mpi_library() { return {}; }

int run_mpi(const RankOptions&, const RankBody&, Watching&) {
  fail(Code::unsupported, "transport is mpi, must be self, threads or tcp: this build has no MPI");
}

}  // namespace allnorm::launch

#endif
