// Runs a function on every rank: processes of a launcher, threads of this process, or this process alone.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <boost/program_options/options_description.hpp>

#include "allnorm/communicator.hpp"
#include "allnorm/device.hpp"
#include "allnorm/error.hpp"

namespace allnorm::launch {

/// The exit codes of docs/cli.md.
enum ExitCode : int {
  exit_success = 0,
  exit_failure = 1,
  exit_usage = 2,
  exit_file = 3,
  exit_mismatch = 4,
  exit_timeout = 5,
  exit_unavailable = 6,
};
int exit_code(Code code) noexcept;

/// The options of every command that runs ranks.
struct RankOptions {
  int ranks = 0;          ///< 0: not given (1, or the launcher's number)
  std::string transport;  ///< empty: chosen
  std::string device = "cpu";
  int threads = 1;  ///< CPU threads per rank
  double timeout = 120, first_timeout = 600;
  std::string record;     ///< the folder of the ranks' records; empty: none
  std::string trace;      ///< the file of a rank's trace, with {rank}; empty: none
  std::string metrics;    ///< "[ADDRESS:]PORT" where they are asked for; empty: none
  std::string nonfinite;  ///< the attribute of layers that do not set it themselves; empty: theirs
};
/// The options with their help, bound to `options`.
boost::program_options::options_description describe(RankOptions& options);
/// Checks what the options say against this build, this machine and the launcher: throws invalid_argument or
/// unsupported. Call it before any work.
void check(const RankOptions& options);

class RankWatch;

/// What the function of one rank gets.
struct Rank {
  int rank = 0, size = 1;
  std::shared_ptr<Communicator> world;
  Queue queue;                 ///< of the CPU, or of a GPU: the ranks of a machine take its GPUs in turn
  bool emulated = false;       ///< a thread of this process, not a process of its own
  RankWatch* watch = nullptr;  ///< what it tells of its calls and steps; null where nobody asks
};

/// True under mpirun, srun or another launcher that tells this process its rank through the environment, unless the
/// process is meant to be alone (transport self or threads).
bool under_launcher(const RankOptions& options) noexcept;
/// True where several ranks are threads of this process. After check().
bool ranks_are_threads(const RankOptions& options) noexcept;
/// The number of ranks that a run with these options has; 0 where only MPI can tell. After check().
int expected_ranks(const RankOptions& options) noexcept;

/// Runs `body` on every rank of this process (K threads, or the one rank that it is) and returns the exit code. An
/// Error of a rank is printed as one line on stderr (with the rank, where there are several), tells the peers, and
/// becomes the exit code of all: a rank's own bad usage or file first, then a mismatch, then a missing rank.
int run_ranks(const RankOptions& options, const std::function<void(Rank&)>& body);

/// What the MPI of this program says of itself, such as "Open MPI v4.1.4"; empty in a build without MPI.
std::string mpi_library();

/// Prints an error that was found before any rank ran, on one line, and returns its exit code. Under a launcher every
/// process finds the same one: rank 0 prints it at once, the others only if they are still there a moment later.
int report(const std::exception& error);

}  // namespace allnorm::launch
