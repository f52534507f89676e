// Exit codes and lines of several ranks: threads of one process, and processes under mpirun where MPI is there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>

#include "build_config.hpp"
#include "launch/apply_outputs.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

bool mpirun_works() { return ALLNORM_HAVE_MPI && std::system("mpirun --version > /dev/null 2>&1") == 0; }

// The program's own lines; the launcher adds some around them.
std::vector<std::string> own_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);)
    if (line.starts_with("allnorm: ")) lines.push_back(line);
  return lines;
}

// Two ranks each way: `--ranks 2`, and mpirun.
class TwoRanks : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && !mpirun_works()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
    place.make("x.0.npy", {3, 4, 5});
    place.make("x.1.npy", {2, 4, 5});
  }
  Outcome run(const std::string& words) {
    return GetParam() ? place.run(words, "mpirun -n 2") : place.run(words + " --ranks 2");
  }
  Workplace place;
};

TEST_P(TwoRanks, ShareStatistics) {
  const Outcome outcome = run("apply sync_batch_norm --input x.{rank}.npy --grad-output x.{rank}.npy --out o");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(place.values("o/mean.r0.npy"), place.values("o/mean.r1.npy"));
  EXPECT_NE(place.values("o/output.r0.npy"), place.values("o/output.r1.npy"));
}

TEST_P(TwoRanks, DisagreeingIsExitFour) {
  place.make("x.1.npy", {2, 3, 5});
  const Outcome outcome = run("apply sync_batch_norm --input x.{rank}.npy --out o");
  EXPECT_EQ(outcome.code, 4) << outcome.err;
  const auto lines = own_lines(outcome.err);
  ASSERT_EQ(lines.size(), 1u) << outcome.err;
  EXPECT_NE(lines[0].find("rank 1"), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find("channels is 3, must be 4"), std::string::npos) << lines[0];
  EXPECT_FALSE(place.exists("o"));
}

TEST_P(TwoRanks, DifferentRunningStatisticsAreExitFour) {
  place.make("m.0.npy", {4});
  place.make("m.1.npy", {4}, launch::NpyType::f16);  // the same but for rounding
  const Outcome outcome = run("apply sync_batch_norm --input x.{rank}.npy --tensor running_mean=m.{rank}.npy --out o");
  EXPECT_EQ(outcome.code, 4) << outcome.err;
  EXPECT_EQ(own_lines(outcome.err).size(), 1u) << outcome.err;
}

TEST_P(TwoRanks, ABadFileOfOneRankIsItsOwn) {
  place.write_bytes("x.1.npy", "no array");
  const Outcome outcome = run("apply sync_batch_norm --input x.{rank}.npy --out o");
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  const auto lines = own_lines(outcome.err);
  ASSERT_EQ(lines.size(), 1u) << outcome.err;
  EXPECT_TRUE(lines[0].starts_with("allnorm: rank 1: x.1.npy")) << lines[0];
  EXPECT_FALSE(place.exists("o"));
}

TEST_P(TwoRanks, AnErrorThatAllRanksFindIsPrintedOnce) {
  const Outcome file = run("apply sync_batch_norm --input nowhere.npy --out o");
  EXPECT_EQ(file.code, 3) << file.err;
  EXPECT_EQ(own_lines(file.err).size(), 1u) << file.err;
  const Outcome usage = run("apply sync_batch_norm --input x.0.npy --out o --set eps=-1");
  EXPECT_EQ(usage.code, 2) << usage.err;
  EXPECT_EQ(own_lines(usage.err).size(), 1u) << usage.err;
}

TEST_P(TwoRanks, WriteAllOrNothing) {
  std::filesystem::create_directory(place.path("d0"));  // rank 1 has no place for its state
  const Outcome outcome = run("apply batch_norm --input x.{rank}.npy --out o --save-state d{rank}/s.st");
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_EQ(own_lines(outcome.err).size(), 1u) << outcome.err;
  EXPECT_TRUE(!place.exists("o") || place.list("o").empty());
  EXPECT_TRUE(place.list("d0").empty());
}

TEST_P(TwoRanks, AStateOfTwoRanksIsNotForOne) {
  place.make("a.0.npy", {3, 2, 7});
  place.make("a.1.npy", {2, 2, 7});
  place.make("w.npy", {4, 2, 3});
  const std::string words =
      "apply cross_iteration_batch_norm --set sync=world --tensor conv_weight=w.npy --tensor conv_input=a.{rank}.npy "
      "--input x.{rank}.npy ";
  const Outcome refused = run(words + "--out o --save-state s.st");
  EXPECT_EQ(refused.code, 2) << refused.err;
  EXPECT_NE(refused.err.find("{rank}"), std::string::npos) << refused.err;
  EXPECT_FALSE(place.exists("o"));
  const Outcome saved = run(words + "--out o --save-state s.{rank}.st");
  ASSERT_EQ(saved.code, 0) << saved.err;
  EXPECT_EQ(place.run(words + "--out p --load-state s.{rank}.st").code, 3);
  EXPECT_EQ(place.run(words + "--out p --load-state s.{rank}.st --drop-window").code, 0);
  EXPECT_EQ(run(words + "--out p --load-state s.{rank}.st").code, 0);
}

// With sync=none every rank has a window of its own; one rank would go on without the other's.
TEST_P(TwoRanks, WindowsOfTwoRanksAreNotForOne) {
  const std::string words =
      "apply cross_iteration_batch_norm --set compensate=false --input x.{rank}.npy --out o --load-state s.{rank}.st ";
  const Outcome saved = run(
      "apply cross_iteration_batch_norm --set compensate=false --input x.{rank}.npy --out o --save-state s.{rank}.st");
  ASSERT_EQ(saved.code, 0) << saved.err;
  const Outcome refused = place.run(words);
  EXPECT_EQ(refused.code, 3);
  EXPECT_NE(refused.err.find("of 2 ranks, must be of 1"), std::string::npos) << refused.err;
  EXPECT_EQ(place.run(words + "--drop-window").code, 0);
  EXPECT_EQ(run(words).code, 0);
}

INSTANTIATE_TEST_SUITE_P(Ways, TwoRanks, testing::Bool(),
                         [](const auto& way) { return way.param ? "Processes" : "Threads"; });

TEST(Processes, MayHaveDifferentCommandLines) {
  if (!mpirun_works()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const std::string base = "apply sync_batch_norm --timeout 20 --first-timeout 20 --input x.npy --out o";
  const auto both = [&](const std::string& first, const std::string& second) {
    return place.run(base + first + " : -n 1 " + program() + " " + base + second, "mpirun -n 1");
  };
  const Outcome differ = both("", " --set eps=1e-3");
  EXPECT_EQ(differ.code, 4) << differ.err;
  const auto lines = own_lines(differ.err);
  ASSERT_EQ(lines.size(), 1u) << differ.err;
  EXPECT_NE(lines[0].find("eps is 0.001, must be 1e-05"), std::string::npos) << lines[0];

  const Outcome usage = both("", " --set eps=-1");  // rank 1's own, while rank 0 waits for it
  EXPECT_EQ(usage.code, 2) << usage.err;
  EXPECT_EQ(own_lines(usage.err).size(), 1u) << usage.err;
  EXPECT_NE(usage.err.find("allnorm: rank 1: attribute eps"), std::string::npos) << usage.err;
}

TEST(Processes, OnSeveralHostsAreNamedWithThem) {
  if (!mpirun_works()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  if (std::system("unshare --uts hostname node7 > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "this system lets no process have a host name of its own";
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.write_bytes("on_node7.sh", "hostname node7\nexec \"$@\"\n");
  const std::string base = "apply sync_batch_norm --timeout 20 --first-timeout 20 --input x.npy --out o";
  const Outcome outcome = place.run(
      base + " : -n 1 unshare --uts sh on_node7.sh " + program() + " " + base + " --set eps=1e-3", "mpirun -n 1");
  EXPECT_EQ(outcome.code, 4) << outcome.err;
  const auto lines = own_lines(outcome.err);
  ASSERT_EQ(lines.size(), 1u) << outcome.err;
  EXPECT_TRUE(
      lines[0].starts_with("allnorm: rank 1 (node7): sync_batch_norm, call 0, forward: eps is 0.001, must be "
                           "1e-05 as on rank 0 ("))
      << lines[0];
}

// Open MPI's daemons may have been started by srun, in whatever job, and pass its variables on to the ranks.
TEST(Processes, InheritedVariablesAreNoLauncher) {
  if (!mpirun_works()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  Workplace place;
  place.make("x.npy", {4, 4, 5});
  const Outcome outcome = place.run("apply sync_batch_norm --input x.npy --split batch --out o",
                                    "env SLURM_STEP_NUM_TASKS=3 SLURM_PROCID=1 PMI_SIZE=5 RANK=0 WORLD_SIZE=7 "
                                    "mpirun -n 2");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(place.exists("o/output.r1.npy"));
  // Processes of another number than the launcher's: each rank finds it, one tells it.
  const Outcome other =
      place.run("apply sync_batch_norm --input x.npy --out p", "mpirun -n 2 env OMPI_COMM_WORLD_SIZE=3");
  EXPECT_EQ(other.code, 6) << other.err;
  const auto lines = own_lines(other.err);
  ASSERT_EQ(lines.size(), 1u) << other.err;
  EXPECT_NE(lines[0].find("ranks of MPI: 2, must be the 3 of mpirun (Open MPI)"), std::string::npos) << lines[0];
  EXPECT_FALSE(place.exists("p"));
}

TEST(Processes, MayEachBeAlone) {
  if (!mpirun_works()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  Workplace place;
  place.make("x.npy", {4, 4, 5});
  const std::string base = "apply sync_batch_norm --input x.npy --transport self --out ";
  const Outcome outcome = place.run(base + "a : -n 1 " + program() + " " + base + "b", "mpirun -n 1");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.values("a/output.npy"), place.values("b/output.npy"));
}

TEST(Processes, AMissingStepIsNotAHang) {
  if (!mpirun_works()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const std::string base = "apply sync_batch_norm --timeout 5 --first-timeout 20 --input x.npy --out o";
  const Outcome outcome = place.run(base + " --steps 2 : -n 1 " + program() + " " + base, "mpirun -n 1");
  EXPECT_EQ(outcome.code, 4) << outcome.err;  // one is at the agreement, the other in the next forward call
  EXPECT_EQ(own_lines(outcome.err).size(), 1u) << outcome.err;
}

// What is written can be read: a state that could not be is written on no rank, and the files of before stay.
TEST(SavedStates, ThatAreWrongReplaceNoGoodOnes) {
  Workplace place;
  launch::ApplyPlan plan("batch_norm");
  plan.out = place.path("o");
  plan.save_state = place.path("s.{rank}.st");
  launch::RankOptions two;
  two.ranks = 2;
  const auto write = [&](double value, const std::string& wrong_on_rank_1) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(launch::run_ranks(two,
                                [&](launch::Rank& rank) {
                                  launch::SavedState saved;
                                  saved.state.add("running_mean", &value, Shape{1});
                                  if (rank.rank == 1) saved.wrong = wrong_on_rank_1;
                                  launch::write_results(plan, rank, {}, saved);
                                }),
              0);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(write(1, ""), "");
  const std::string good = place.bytes("s.0.st") + place.bytes("s.1.st");
  EXPECT_EQ(write(2, "state running_mean has nan at 0, must be finite"),
            "allnorm: " + place.path("s.1.st") +
                ": is not written, an older one stays on every rank: rank 1's state running_mean has nan at 0, must be "
                "finite\n");
  EXPECT_EQ(place.bytes("s.0.st") + place.bytes("s.1.st"), good);
  EXPECT_EQ(write(2, ""), "");
  EXPECT_NE(place.bytes("s.0.st") + place.bytes("s.1.st"), good);
}

TEST(SyncGroups, AreConsecutiveRanks) {
  Workplace place;
  for (int rank = 0; rank < 3; ++rank) place.make("x." + std::to_string(rank) + ".npy", {rank + 1, 4, 5});
  const Outcome outcome = place.run("apply batch_norm --set sync=2 --ranks 3 --input x.{rank}.npy --out o");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(place.values("o/mean.r0.npy"), place.values("o/mean.r1.npy"));
  EXPECT_NE(place.values("o/mean.r1.npy"), place.values("o/mean.r2.npy"));
}

}  // namespace
}  // namespace allnorm::test
