// What started this process, as far as the environment tells: mpirun, srun, torchrun or nobody.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace allnorm::launch {

constexpr std::string_view srun = "srun", torchrun = "torchrun";

struct Launcher {
  std::string_view name;
  int rank = 0, size = 0;  ///< size 0: MPI alone knows it
  bool speaks_mpi = true;
};
/// The innermost of the launchers that this process is a rank of; none where there is none.
std::optional<Launcher> launcher();
/// Of variables that a launcher sets in pairs, those that say how many ranks there are while none says which this is:
/// "OMPI_COMM_WORLD_SIZE is set without OMPI_COMM_WORLD_RANK".
std::vector<std::string> launcher_leftovers();
/// "srun with 4 ranks".
std::string text_of(const Launcher& from);
/// The number of this process among those of its machine, where the launcher tells it; otherwise its rank.
int local_rank(int rank);
/// True where mpirun of Open MPI has started the ranks on several hosts.
bool on_several_hosts();

}  // namespace allnorm::launch
