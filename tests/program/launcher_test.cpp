// Which launcher started a process, and which of its ranks it is, from the variables that each of them really sets.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/launcher.hpp"

namespace allnorm::test {
namespace {

using Variables = std::vector<std::pair<const char*, const char*>>;

struct Started {
  const char* how;
  Variables variables;
  std::string text;  // "srun with 4 ranks"; empty: by none
  int rank, local;
  bool speaks_mpi;
};

const Variables slurm_step{
    {"SLURM_PROCID", "5"}, {"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_LOCALID", "1"}, {"SLURM_NTASKS", "8"}};
const Variables open_mpi{{"OMPI_COMM_WORLD_RANK", "3"},
                         {"OMPI_COMM_WORLD_SIZE", "4"},
                         {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                         {"PMIX_RANK", "3"}};
const Variables hydra{{"PMI_RANK", "2"}, {"PMI_SIZE", "3"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "1"}};
const Variables elastic{{"RANK", "6"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "2"}, {"TORCHELASTIC_RUN_ID", "none"}};

Variables together(Variables first, const Variables& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

const std::vector<Started>& ways() {
  static const std::vector<Started> all{
      {"nobody", {}, "", 7, 7, true},
      {"Open MPI", open_mpi, "mpirun (Open MPI) with 4 ranks", 3, 1, true},
      {"Hydra", hydra, "mpirun (PMI) with 3 ranks", 2, 0, true},
      {"MVAPICH",
       {{"MV2_COMM_WORLD_RANK", "2"}, {"MV2_COMM_WORLD_SIZE", "3"}, {"MV2_COMM_WORLD_LOCAL_RANK", "1"}},
       "mpirun (MVAPICH) with 3 ranks",
       2,
       1,
       true},
      {"PRRTE", {{"PMIX_RANK", "2"}, {"PMIX_NAMESPACE", "prte"}}, "a PMIx launcher", 2, 2, true},
      {"srun", slurm_step, "srun with 8 ranks", 5, 1, true},
      {"srun --mpi=pmix", together(slurm_step, {{"PMIX_RANK", "5"}}), "srun with 8 ranks", 5, 1, true},
      {"srun --mpi=pmi2", together(slurm_step, {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}, {"PMI_FD", "9"}}),
       "mpirun (PMI) with 8 ranks", 5, 1, true},
      {"torchrun", elastic, "torchrun with 8 ranks", 6, 2, false},
      {"variables as torchrun's", {{"RANK", "1"}, {"WORLD_SIZE", "2"}}, "torchrun with 2 ranks", 1, 1, false},
      // one on each host, by another launcher: its ranks are not those of the one around it
      {"torchrun in srun", together(slurm_step, elastic), "torchrun with 8 ranks", 6, 2, false},
      {"torchrun in mpirun", together(open_mpi, elastic), "torchrun with 8 ranks", 6, 2, false},
      // Open MPI and Hydra start a daemon on each host by srun
      {"Open MPI in srun", together(slurm_step, open_mpi), "mpirun (Open MPI) with 4 ranks", 3, 1, true},
      {"Hydra in srun", together(slurm_step, hydra), "mpirun (PMI) with 3 ranks", 2, 0, true},
      {"Open MPI in a program's variables",
       together(open_mpi, {{"RANK", "0"}, {"WORLD_SIZE", "7"}, {"LOCAL_RANK", "0"}}), "mpirun (Open MPI) with 4 ranks",
       3, 1, true}};
  return all;
}

// Of the test's own launcher nothing is left, and at the end everything is back.
class Around {
 public:
  explicit Around(const Variables& variables) {
    for (const Started& way : ways())
      for (const auto& [name, value] : way.variables) {
        const char* const here = std::getenv(name);
        before_.emplace(name, here ? std::optional<std::string>(here) : std::nullopt);
        ::unsetenv(name);
      }
    for (const auto& [name, value] : variables) ::setenv(name, value, 1);
  }
  ~Around() {
    for (const auto& [name, value] : before_)
      if (value)
        ::setenv(name.c_str(), value->c_str(), 1);
      else
        ::unsetenv(name.c_str());
  }
  Around(const Around&) = delete;
  Around& operator=(const Around&) = delete;

 private:
  std::map<std::string, std::optional<std::string>> before_;
};

TEST(Launcher, IsTheInnermostAndTellsTheLocalRank) {
  for (const Started& way : ways()) {
    SCOPED_TRACE(way.how);
    const Around around(way.variables);
    const auto from = launch::launcher();
    EXPECT_EQ(from ? launch::text_of(*from) : "", way.text);
    if (from) {
      EXPECT_EQ(from->rank, way.rank);
      EXPECT_EQ(from->speaks_mpi, way.speaks_mpi);
    }
    EXPECT_EQ(launch::local_rank(from ? from->rank : 7), way.local);
    EXPECT_TRUE(launch::launcher_leftovers().empty());
  }
}

}  // namespace
}  // namespace allnorm::test
