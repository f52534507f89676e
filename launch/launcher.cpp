// What started this process, from the variables that launchers set.
#include "launch/launcher.hpp"

#include <charconv>
#include <cstdlib>

namespace allnorm::launch {

namespace {

std::optional<int> number_in(const char* variable) {
  const char* text = std::getenv(variable);
  if (!text) return std::nullopt;
  const std::string_view digits(text);
  int number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc{} || end != digits.data() + digits.size() || number < 0) return std::nullopt;
  return number;
}

struct LauncherVariables {
  std::string_view name;
  const char *rank, *size, *local;
  bool speaks_mpi;
  bool even_alone;  // a lone process is its rank too; otherwise it is a process that nothing was launched with
  const char* sign = nullptr;  // counts only where this is set too, and not empty
};
// The innermost first: ranks of Open MPI inherit the variables of its daemons, which srun may have started, and those
// of torchrun inherit srun's, or those of the mpirun that started it on each host: nobody starts mpirun by torchrun.
// Slurm's size is that of a step: SLURM_NTASKS is there in sbatch's script too.
constexpr LauncherVariables launchers[] = {
    {torchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK", false, false, "TORCHELASTIC_RUN_ID"},
    {"mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", true, true},
    {"mpirun (PMI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", true, true},
    {"mpirun (MVAPICH)", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", true, true},
    {torchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK", false, false},
    {srun, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", true, false},
};

bool may_count(const LauncherVariables& known) {
  const char* const sign = known.sign == nullptr ? "there" : std::getenv(known.sign);
  return sign != nullptr && *sign != '\0';
}

}  // namespace

std::optional<Launcher> launcher() {
  for (const auto& known : launchers) {
    const int size = number_in(known.size).value_or(0);
    const auto rank = number_in(known.rank);
    if (size == 0 || !may_count(known)) continue;
    if (!rank && known.name == torchrun) continue;  // WORLD_SIZE alone has other uses
    const bool mpi_may_tell = number_in("PMIX_RANK").has_value();
    if (size == 1 && !known.even_alone && !mpi_may_tell) return std::nullopt;  // alone, whatever is around it
    return Launcher{known.name, rank.value_or(0), size, known.speaks_mpi || size == 1};
  }
  if (const auto rank = number_in("PMIX_RANK")) return Launcher{"a PMIx launcher", *rank, 0, true};
  return std::nullopt;
}

std::vector<std::string> launcher_leftovers() {
  std::vector<std::string> left;
  for (const auto& known : launchers)
    if (known.sign == nullptr && number_in(known.size) && !number_in(known.rank))
      left.push_back(std::string(known.size) + " is set without " + known.rank);
  return left;
}

std::string text_of(const Launcher& from) {
  return std::string(from.name) + (from.size > 0 ? " with " + std::to_string(from.size) + " ranks" : "");
}

int local_rank(int rank) {
  const auto from = launcher();
  bool counts = false;  // the launcher, and what is around it: srun --mpi=pmi2 sets PMI_RANK, and SLURM_LOCALID
  for (const auto& known : launchers) {
    counts = counts || (from && known.name == from->name && may_count(known));
    if (const auto number = number_in(known.local); number && counts) return *number;
  }
  return rank;
}

bool on_several_hosts() {
  const int here = number_in("OMPI_COMM_WORLD_LOCAL_SIZE").value_or(0);
  return here > 0 && here < number_in("OMPI_COMM_WORLD_SIZE").value_or(0);
}

}  // namespace allnorm::launch
