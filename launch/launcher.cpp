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
  bool even_alone;  // a lone process is its rank too; otherwise the variables may be set where nothing was launched
};
constexpr LauncherVariables launchers[] = {
    {"mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", true, true},
    {"mpirun (PMI)", "PMI_RANK", "PMI_SIZE", true, true},
    {"mpirun (MVAPICH)", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", true, true},
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", true,
     false},  // the size is that of a step, so not sbatch's script
    {"torchrun", "RANK", "WORLD_SIZE", false, false},
};

}  // namespace

std::optional<Launcher> launcher() {
  for (const auto& known : launchers) {
    const auto rank = number_in(known.rank), size = number_in(known.size);
    if (rank && size && (*size > 1 || known.even_alone)) return Launcher{known.name, *rank, *size, known.speaks_mpi};
  }
  if (const auto rank = number_in("PMIX_RANK")) return Launcher{"a PMIx launcher", *rank, 0, true};
  return std::nullopt;
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
