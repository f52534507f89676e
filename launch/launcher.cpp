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
  const char *rank, *size;
  bool speaks_mpi;
  bool even_alone;  // a lone process is its rank too; otherwise it is a process that nothing was launched with
};
// The innermost first: ranks of Open MPI inherit the variables of its daemons, which srun may have started, and those
// of torchrun inherit srun's. Slurm's size is that of a step: SLURM_NTASKS is there in sbatch's script too.
constexpr LauncherVariables launchers[] = {
    {"mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", true, true},
    {"mpirun (PMI)", "PMI_RANK", "PMI_SIZE", true, true},
    {"mpirun (MVAPICH)", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", true, true},
    {torchrun, "RANK", "WORLD_SIZE", false, false},
    {srun, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", true, false},
};

}  // namespace

std::optional<Launcher> launcher() {
  for (const auto& known : launchers) {
    const int size = number_in(known.size).value_or(0);
    const auto rank = number_in(known.rank);
    if (size == 0 || (!rank && known.name == torchrun)) continue;  // WORLD_SIZE alone has other uses
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
    if (number_in(known.size) && !number_in(known.rank))
      left.push_back(std::string(known.size) + " is set without " + known.rank);
  return left;
}

std::string text_of(const Launcher& from) {
  return std::string(from.name) + (from.size > 0 ? " with " + std::to_string(from.size) + " ranks" : "");
}

int local_rank(int rank) {
  for (const char* variable : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "LOCAL_RANK"})
    if (const auto number = number_in(variable)) return *number;
  return rank;
}

}  // namespace allnorm::launch
