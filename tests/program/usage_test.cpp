// The command line: help, version, and every wrong use with its exit code and its one line.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>

#include "allnorm/catalogue.hpp"
#include "allnorm/device.hpp"
#include "build_config.hpp"
#include "launch/ranks.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

// Without the breaks between lines.
std::string flat(const std::string& text) { return std::regex_replace(text, std::regex("\\s+"), " "); }

struct Wrong {
  const char* words;
  int code;
  const char* says;  // a part of the line
};

class WrongUse : public testing::TestWithParam<Wrong> {};

TEST_P(WrongUse, HasItsCodeAndOneLine) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.make("g.npy", {4});
  const Outcome outcome = place.run(GetParam().words);
  EXPECT_EQ(outcome.code, GetParam().code) << outcome.err;
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find(GetParam().says), std::string::npos) << outcome.err;
  EXPECT_FALSE(place.exists("o"));
}

INSTANTIATE_TEST_SUITE_P(
    Program, WrongUse,
    testing::Values(Wrong{"", 2, "command is missing"}, Wrong{"aply", 2, "completion, man; did you mean apply?"},
                    Wrong{"--verson", 2,
                          "train, apply, verify, bench, scale, report, diagnose, info, doctor, completion, man"},
                    Wrong{"help tain", 2, "did you mean train?"}, Wrong{"info extra", 2, "'extra'"},
                    Wrong{"info --jso", 2, "option is '--jso', must be one that --help names; did you mean --json?"},
                    Wrong{"info --json=yes", 2, "json"}));

INSTANTIATE_TEST_SUITE_P(
    Apply, WrongUse,
    testing::Values(
        Wrong{"apply", 2, "batch_norm"}, Wrong{"apply --input x.npy", 2, "layer is missing"},
        Wrong{"apply batchnorm --input x.npy --out o", 2, "cross_mini_batch_norm"},
        Wrong{"apply batch_norm --out o", 2, "tensor input is missing"},
        Wrong{"apply batch_norm --input x.npy", 2, "--out"},
        Wrong{"apply batch_norm --input x.npy --out o stray", 2, "'stray'"},
        Wrong{"apply batch_norm --input x.npy --out o --inpt x.npy", 2, "--inpt"},
        Wrong{"apply batch_norm --inp x.npy --out o", 2, "--inp"},
        Wrong{"apply batch_norm --input x.npy --input x.npy --out o", 2, "--input"},
        Wrong{"apply batch_norm --input x.npy --tensor input=x.npy --out o", 2, "given twice"},
        Wrong{"apply batch_norm --input x.npy --tensor wieght=g.npy --out o", 2, "running_mean"},
        Wrong{"apply batch_norm --input x.npy --tensor weight --out o", 2, "NAME=FILE.npy"},
        Wrong{"apply batch_norm --input x.npy --tensor weight= --out o", 2, "NAME=FILE.npy"},
        Wrong{"apply batch_norm --input x.npy --out o --tensor", 2, "--tensor"},
        Wrong{"apply batch_norm --input x.npy --out o --out p", 2, "--out is given twice"},
        Wrong{"apply batch_norm --input x.npy --out o --set epsilon=1", 2, "momentum"},
        Wrong{"apply bacth_norm --input x.npy --out o", 2, "; did you mean batch_norm?"},
        Wrong{"apply grup_norm --input x.npy --out o", 2, "; did you mean group_norm?"},
        Wrong{"apply batch_norm --input x.npy --out o --set momentun=1", 2, "; did you mean momentum?"},
        Wrong{"apply batch_norm --input x.npy --out o --tensor wieght=g.npy", 2, "; did you mean weight?"},
        Wrong{"apply batch_norm --input x.npy --out o --step 2", 2, "; did you mean --steps?"},
        Wrong{"apply batch_norm --input x.npy --out o --set eps", 2, "NAME=VALUE"},
        Wrong{"apply batch_norm --input x.npy --out o --set eps=-1", 2, "eps"},
        Wrong{"apply batch_norm --input x.npy --out o --set eps=nan", 2, "eps"},
        Wrong{"apply batch_norm --input x.npy --out o --set eps=1e-5x", 2, "eps"},
        Wrong{"apply batch_norm --input x.npy --out o --set eps=1 --set eps=2", 2, "set twice"},
        Wrong{"apply batch_norm --input x.npy --out o --set sync=0", 2, "sync"},
        Wrong{"apply batch_norm --input x.npy --out o --set training=yes", 2, "training"},
        Wrong{"apply batch_norm --input x.npy --out o --set momentum=2", 2, "momentum"},
        Wrong{"apply batch_renorm --input x.npy --out o --set r_max=0.5", 2, "r_max"},
        Wrong{"apply batch_renorm --input x.npy --out o --tensor running_var=g.npy", 2, "running_std"},
        Wrong{"apply batch_norm --input x.npy --out o --tensor running_std=g.npy", 2, "running_var"},
        Wrong{"apply cross_iteration_batch_norm --input x.npy --out o", 2, "conv_input"},
        Wrong{"apply cross_iteration_batch_norm --input x.npy --out o --set window=0", 2, "window"},
        Wrong{"apply cross_iteration_batch_norm --input x.npy --out o --set compensate=false --set "
              "window=2184482850834025855",
              2, "window"},
        Wrong{"apply cross_mini_batch_norm --input x.npy --out o --set minibatches=0", 2, "minibatches"},
        Wrong{"apply group_norm --input x.npy --out o --set groups=3", 2, "groups"},
        Wrong{"apply layer_norm --input x.npy --out o --set normalized_shape=6", 2, "normalized_shape"},
        Wrong{"apply layer_norm --input x.npy --out o --set normalized_shape=9,3,4,5", 2, "normalized_shape"},
        Wrong{"apply layer_norm --input x.npy --out o --set normalized_shape=9999999999,9999999999", 2, ""},
        Wrong{"apply batch_norm --input x.npy --out o --dtype f8", 2, "f8"},
        Wrong{"apply batch_norm --input x.npy --out o --layout nchw", 2, "channels_last"},
        Wrong{"apply batch_norm --input x.npy --out o --split rows", 2, "batch, space, channels"},
        Wrong{"apply sync_batch_norm --input x.npy --out o --split channels", 2, "--split"},
        Wrong{"apply weight_standardization --input x.npy --out o --split channels", 2, "no channel axis"},
        Wrong{"apply batch_norm --input x.{rank}.npy --out o --split batch --ranks 2", 2, "{rank}"},
        Wrong{"apply batch_norm --input x.npy --out o --split channels --ranks 5", 2, "channel"},
        Wrong{"apply batch_norm --input x.npy --out o --steps 0", 2, "--steps is 0, must be 1 to 1000000"},
        Wrong{"apply batch_norm --input x.npy --out o --steps 99999999999", 2,
              "--steps is 99999999999, must be 1 to 1000000"},
        Wrong{"apply batch_norm --input x.npy --out o --steps 1.5", 2, "--steps is '1.5', must be a whole number"},
        Wrong{"apply batch_norm --input x.npy --out o --steps 99999999999999999999", 2,
              "must be a whole number of at most 9223372036854775807"},
        Wrong{"bench --layer group_norm:groups=2:eps=1:groups=4", 2, "attribute groups is set twice"},
        Wrong{"apply batch_norm --input x.npy --out o --drop-window", 2, "--load-state"},
        Wrong{"apply batch_norm --input x.npy --out o --ranks 2 --save-state s.st", 2, "{rank}"},
        Wrong{"apply batch_norm --input x.npy --out o --save-state s.{step}.st", 2, "{step}"}));

// What a variable of the shell that is not set leaves of "$FILE".
TEST(EmptyValues, AreNotTakenForOptionsThatAreNotGiven) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.write_bytes("with_empty.sh", "exec \"$@\" ''\n");
  const std::string apply = "apply batch_norm --out o ", input = "--input x.npy ";
  for (const auto& [words, says] : std::initializer_list<std::pair<std::string, std::string>>{
           {apply + "--input", "--input is empty, must be FILE"},
           {apply + input + "--record", "--record is empty, must be DIR"},
           {apply + input + "--trace", "--trace is empty, must be F.json"},
           {apply + input + "--save-state", "--save-state is empty, must be "},
           {apply + input + "--ranks", "--ranks is empty, must be K"},
           {"verify --json", "--json is empty, must be FILE"},
           {"train --checkpoint", "--checkpoint is empty, must be "},
           {"train --resume-if-present", "--resume-if-present is empty, must be "},
           {"train --data", "--data is empty, must be "}}) {
    const Outcome outcome = place.run(words, "sh with_empty.sh");
    EXPECT_EQ(outcome.code, ALLNORM_HAVE_TORCH || !words.starts_with("train") ? 2 : 6) << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    if (outcome.code == 2) {
      EXPECT_TRUE(outcome.err.starts_with("allnorm: " + says)) << outcome.err;
    }
  }
  const Outcome report = place.run("report -o r.html", "sh with_empty.sh");
  EXPECT_EQ(report.code, 3);
  EXPECT_TRUE(report.err.starts_with("allnorm: '': ")) << report.err;
}

TEST(CurrentFolder, ThatIsGoneIsExitThree) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.write_bytes("gone.sh", "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"\n");
  const Outcome outcome = place.run("apply batch_norm --input ../x.npy --out o", "sh gone.sh");
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find("o: cannot be made: the current folder: "), std::string::npos) << outcome.err;
}

INSTANTIATE_TEST_SUITE_P(
    Ranks, WrongUse,
    testing::Values(
        Wrong{"apply batch_norm --input x.npy --out o --ranks 0", 2, "--ranks"},
        Wrong{"apply batch_norm --input x.npy --out o --ranks -1", 2, "--ranks is -1, must be"},
        Wrong{"apply batch_norm --input x.npy --out o --ranks two", 2, "--ranks is 'two', must be a whole number"},
        Wrong{"apply batch_norm --input x.npy --out o --ranks 2x", 2, "--ranks"},
        Wrong{"apply batch_norm --input x.npy --out o --ranks 99999999999", 2, "--ranks"},
        Wrong{"apply batch_norm --input x.npy --out o --threads 0", 2, "--threads"},
        Wrong{"apply batch_norm --input x.npy --out o --timeout 0", 2, "--timeout is 0, must be more than 0"},
        Wrong{"apply batch_norm --input x.npy --out o --timeout soon", 2, "--timeout is 'soon', must be a number"},
        Wrong{"apply batch_norm --input x.npy --out o --timeout nan", 2, "--timeout"},
        Wrong{"apply batch_norm --input x.npy --out o --first-timeout=-1", 2, "--first-timeout"},
        Wrong{"apply batch_norm --input x.npy --out o --transport udp", 2, "self, threads, mpi, nccl, tcp"},
        Wrong{"apply batch_norm --input x.npy --out o --transport self --ranks 2", 2, "threads"},
        Wrong{"apply batch_norm --input x.npy --out o --transport mpi --ranks 2", 2, "mpirun -n 2"},
        Wrong{"apply batch_norm --input x.npy --out o --transport nccl", 2, "--device cpu"},
        Wrong{"apply batch_norm --input x.npy --out o --device cdua", 2, "cpu, cuda; did you mean cuda?"}));

TEST(Device, CudaThatIsNotThereIsExitSixWithTheReason) {
  if (cuda_devices() > 0) GTEST_SKIP() << "there is a GPU: " << cuda_summary();
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const Outcome outcome = place.run("apply batch_norm --input x.npy --out o --device cuda");
  EXPECT_EQ(outcome.code, 6) << outcome.err;
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find("--device is cuda, must be cpu: " + cuda_summary()), std::string::npos) << outcome.err;
  EXPECT_FALSE(place.exists("o"));
  EXPECT_EQ(place.run("apply batch_norm --input x.npy --out o --device cuda --transport nccl").code, 6);
}

TEST(Launcher, RanksMustBeTheLaunchers) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const auto run = [&](const char* more) {
    return place.run_with({"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2"},
                          "apply batch_norm --input x.npy --out o " + std::string(more));
  };
  const Outcome outcome = run("--ranks 3");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find("Open MPI"), std::string::npos) << outcome.err;
  EXPECT_FALSE(place.exists("o"));
  for (const char* more : {"--transport threads", "--transport self", "--transport threads --ranks 3"})
    EXPECT_EQ(run(more).code, 0) << more;  // a process that is meant to be alone
}

struct NeverMet {
  std::vector<std::string_view> environment;
  std::string_view tasks;   // the launcher's number
  std::string_view advice;  // what the line says besides
};
class Launchers : public testing::TestWithParam<NeverMet> {};

// Processes that srun or another MPI's mpirun started are ranks of nobody's MPI: they would write the same files.
TEST_P(Launchers, RanksThatNeverMeetAreExitSix) {
  if (!ALLNORM_HAVE_MPI) GTEST_SKIP() << "this build has no MPI";
  const NeverMet& how = GetParam();
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const std::string words = "apply sync_batch_norm --input x.npy --out o";
  const Outcome outcome = place.run_with(how.environment, words);
  EXPECT_EQ(outcome.code, 6) << outcome.err;
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find("ranks of MPI: 1, must be the " + std::string(how.tasks)), std::string::npos)
      << outcome.err;
  EXPECT_NE(outcome.err.find(how.advice), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("--transport self"), std::string::npos) << outcome.err;
  EXPECT_FALSE(place.exists("o"));
  EXPECT_EQ(place.run_with(how.environment, words + " --transport self").code, 0);
  EXPECT_EQ(place.run_with(how.environment, words + " --transport threads --ranks 2").code, 0);
}

INSTANTIATE_TEST_SUITE_P(
    All, Launchers,
    testing::Values(NeverMet{{"SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=0"}, "2 of srun", "srun --mpi=pmix or mpirun"},
                    NeverMet{{"SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=1", "SLURM_NTASKS=2"}, "2 of srun", "rank 1"},
                    NeverMet{{"SLURM_STEP_NUM_TASKS=2"}, "2 of srun", "srun --mpi=pmix or mpirun"},
                    NeverMet{{"PMI_RANK=0", "PMI_SIZE=4"}, "4 of mpirun (PMI)", "this build's MPI"},
                    NeverMet{{"PMI_SIZE=4", "SLURM_STEP_NUM_TASKS=1"}, "4 of mpirun (PMI)", "this build's MPI"},
                    NeverMet{{"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=4", "PMI_SIZE=1"},
                             "4 of mpirun (Open MPI)",
                             "this build's MPI"}));

// What is inherited from around the innermost launcher does not count: Open MPI's daemons may be srun's, and so may
// torchrun be.
TEST(Launcher, TheInnermostCounts) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const std::string words = "apply batch_norm --input x.npy --out o";
  const Outcome torchrun =
      place.run_with({"RANK=0", "WORLD_SIZE=3", "SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=0"}, words);
  EXPECT_EQ(torchrun.code, 2);
  EXPECT_NE(torchrun.err.find("torchrun with 3 ranks: MASTER_ADDR"), std::string::npos) << torchrun.err;
  // One process of torchrun in each task of srun, and of Open MPI: alone.
  EXPECT_EQ(place.run_with({"RANK=0", "WORLD_SIZE=1", "SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID=0"}, words).code, 0);
  EXPECT_EQ(place.run_with({"WORLD_SIZE=3"}, words).code, 0);  // without RANK it has other uses
  if (!ALLNORM_HAVE_MPI) return;
  EXPECT_EQ(
      place
          .run_with({"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=1", "PMI_SIZE=4", "SLURM_STEP_NUM_TASKS=2"}, words)
          .code,
      0);
}

TEST(Launcher, NcclIsNoTransportOfCpuRanks) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const Outcome on_cpu =
      place.run_with({"RANK=0", "WORLD_SIZE=2"}, "apply batch_norm --input x.npy --out o --transport nccl");
  EXPECT_EQ(on_cpu.code, 2);
}

TEST(Launcher, ABatchScriptOfSlurmIsNoRank) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const Outcome outcome =
      place.run_with({"SLURM_PROCID=0", "SLURM_NTASKS=4"}, "apply batch_norm --input x.npy --out o --ranks 2");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
}

TEST(Help, NamesEveryCommandAndLayer) {
  Workplace place;
  const Outcome program = place.run("--help");
  EXPECT_EQ(program.code, 0);
  for (const char* command :
       {"train", "apply", "verify", "bench", "scale", "report", "diagnose", "info", "doctor", "completion", "man"})
    EXPECT_NE(program.out.find(command), std::string::npos);
  const Outcome apply = place.run("apply --help");
  EXPECT_EQ(apply.code, 0);
  for (const char* part : {"--tensor", "--split", "--timeout", "{rank}", "Exit codes", "--save-state"})
    EXPECT_NE(apply.out.find(part), std::string::npos) << part;
  for (const Row& row : catalogue()) {
    EXPECT_NE(apply.out.find(row.name), std::string::npos) << row.name;
    EXPECT_NE(apply.out.find(row.summary.substr(0, 30)), std::string::npos) << row.name;
  }
}

TEST(Help, OfALayerNamesEveryTensorAttributeAndOutput) {
  Workplace place;
  for (const Row& row : catalogue()) {
    const Outcome outcome = place.run("apply " + std::string(row.name) + " --help");
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    const auto has = [&](std::string_view text) {
      EXPECT_NE(outcome.out.find("  " + std::string(text)), std::string::npos) << row.name << ": " << text;
    };
    const Layer layer(row.name);
    for (const TensorSpec& tensor : row.tensors) has(tensor.name);
    for (const OutputSpec& output : row.outputs) has(output.name);
    for (const Attribute& attribute : row.attributes) {
      const std::string value = attribute.get(layer.options);
      has(std::string(attribute.name) + (value.empty() ? "" : " (" + value + ")"));
    }
    EXPECT_NE(flat(outcome.out).find(row.source), std::string::npos);
  }
  EXPECT_EQ(place.run("apply nonsense --help").code, 2);
}

TEST(Help, OfACommandHasTwoSpellings) {
  Workplace place;
  for (const char* command : {"apply", "verify", "info", "apply batch_norm"})
    EXPECT_EQ(place.run("help " + std::string(command)).out, place.run(std::string(command) + " --help").out);
  EXPECT_EQ(place.run("help").out, place.run("--help").out);
  EXPECT_EQ(place.run("-V").out, place.run("--version").out);
}

TEST(Help, MayBeAskedForBehindOtherOptions) {
  Workplace place;
  for (const char* words :
       {"bench --ranks 2", "scale --ranks-list 1,2", "verify --device cpu", "apply batch_norm --out o"}) {
    const std::string asked = words;
    EXPECT_EQ(place.run(asked + " --help").out, place.run(asked.substr(0, asked.find(" -")) + " --help").out) << words;
  }
}

TEST(DidYouMean, IsSilentWhereNothingIsNear) {
  Workplace place;
  for (const char* words :
       {"frobnicate", "apply nonsense --out o", "info --frobnicate", "apply batch_norm --set zz=1"}) {
    const Outcome outcome = place.run(words);
    EXPECT_EQ(outcome.code, 2);
    EXPECT_EQ(outcome.err.find("did you mean"), std::string::npos) << outcome.err;
  }
}

TEST(Version, NamesVersionAndParts) {
  Workplace place;
  const Outcome outcome = place.run("--version");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.out.find(build::version), std::string::npos);
  EXPECT_NE(outcome.out.find(build::commit), std::string::npos);
  for (const build::Part& part : build::parts)
    EXPECT_NE(outcome.out.find(std::string(part.name) + (part.in ? " on" : " off")), std::string::npos) << part.name;
}

TEST(Threads, AreAtMostTheCpusThatTheProcessMayRunOn) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const std::string words = "apply batch_norm --input x.npy --out o --threads ";
  const Outcome many = place.run(words + "1000");
  EXPECT_EQ(many.code, 0);
  EXPECT_NE(many.err.find("warning: --threads is 1000, but this process may run on "), std::string::npos) << many.err;
  EXPECT_EQ(place.run(words + "1").err, "");
}

TEST(Doctor, FindsWhatKeepsAJobFromRunning) {
  Workplace place;
  const auto check = [&](const std::string& name, std::initializer_list<std::string_view> environment = {}) {
    Outcome outcome = place.run_with(environment, "doctor --check " + name);
    outcome.out = flat(outcome.out);
    return outcome;
  };
  for (const char* fine : {"options", "variables", "network", "cpus"}) {
    const Outcome outcome = check(fine);
    EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
    EXPECT_NE(outcome.out.find(" ok " + std::string(fine)), std::string::npos) << outcome.out;
    EXPECT_NE(outcome.out.find("Nothing here keeps a job from running."), std::string::npos) << outcome.out;
  }
  const Outcome half = check("variables", {"OMPI_COMM_WORLD_SIZE=4"});
  EXPECT_EQ(half.code, 1);
  EXPECT_NE(half.out.find("PROBLEM variables"), std::string::npos) << half.out;
  EXPECT_NE(half.out.find("OMPI_COMM_WORLD_SIZE is set without OMPI_COMM_WORLD_RANK"), std::string::npos) << half.out;
  EXPECT_NE(half.out.find("=> unset it"), std::string::npos) << half.out;
  EXPECT_EQ(check("variables", {"WORLD_SIZE=4"}).code, 0);  // has other uses
  if (cuda_devices() == 0) {
    const Outcome gpus = place.run("doctor --check gpus --device cuda");
    EXPECT_EQ(gpus.code, 1);
    EXPECT_NE(gpus.out.find(cuda_summary().substr(0, 15)), std::string::npos) << gpus.out;
  }
  const Outcome few = place.run("doctor --check limits", "prlimit --nofile=30");
  EXPECT_EQ(few.code, 1);
  EXPECT_NE(flat(few.out).find("30 files may be open, must be 72 for 2 ranks => ulimit -n 72"), std::string::npos)
      << few.out;
  EXPECT_EQ(place.run("doctor --check gpu").code, 2);
}

// A launcher that says it is of another MPI than this program's, and none at all.
TEST(Doctor, ComparesTheLauncherWithThisProgramsMpi) {
  if (!ALLNORM_HAVE_MPI) GTEST_SKIP() << "this build has no MPI";
  const bool open_mpi = launch::mpi_library().starts_with("Open MPI");
  const Workplace place;
  const auto doctor = [&](const char* version) {
    place.write_bytes("mpirun", "#!/bin/sh\necho '" + std::string(version) + "'\n");
    std::filesystem::permissions(place.path("mpirun"), std::filesystem::perms::owner_all);
    const std::string path = "PATH=" + place.path("");
    return place.run_with({path}, "doctor --check launchers");
  };
  const char *open = "mpirun (Open MPI) 4.1.4", *hydra = "HYDRA build details: Version: 4.0.2";
  const Outcome same = doctor(open_mpi ? open : hydra), other = doctor(open_mpi ? hydra : open);
  EXPECT_EQ(same.code, 0) << same.out;
  EXPECT_EQ(other.code, 1) << other.out;
  EXPECT_NE(other.out.find("PROBLEM  launchers"), std::string::npos) << other.out;
  const Outcome none = place.run_with({"PATH=/nowhere"}, "doctor --check launchers");
  EXPECT_EQ(none.code, 1);
  EXPECT_NE(none.out.find("no mpirun, mpiexec or srun on PATH"), std::string::npos) << none.out;
}

TEST(Doctor, RanksMeetAsThreadsAndAsProcesses) {
  Workplace place;
  const Outcome outcome = place.run_with({"OMPI_MCA_rmaps_base_oversubscribe=1"}, "doctor --check meeting --ranks 3");
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.out.find("3 ranks as threads meet"), std::string::npos) << outcome.out;
  if (ALLNORM_HAVE_MPI) {
    EXPECT_NE(outcome.out.find("mpirun -n 3: the processes meet"), std::string::npos) << outcome.out;
  }
}

TEST(Info, JsonAndTextNameTheSameParts) {
  Workplace place;
  const Outcome text = place.run("info"), json = place.run("info --json");
  EXPECT_EQ(text.code, 0);
  EXPECT_EQ(json.code, 0);
  const auto parsed = nlohmann::json::parse(json.out);
  EXPECT_EQ(parsed["devices"][1]["detail"], cuda_summary());
  EXPECT_EQ(parsed["devices"][1]["available"], cuda_devices() > 0);
  EXPECT_EQ(parsed["transports"][3]["name"], "nccl");
  EXPECT_EQ(parsed["transports"][3]["available"], ALLNORM_HAVE_NCCL == 1 && cuda_devices() > 0);
  EXPECT_EQ(parsed["transports"][4]["name"], "tcp");
  EXPECT_EQ(parsed["transports"][4]["available"], true);
  EXPECT_EQ(parsed["version"], build::version);
  EXPECT_FALSE(parsed["cpus"].empty());
  EXPECT_NE(parsed["transports"][2]["detail"].get<std::string>().find(launch::mpi_library()), std::string::npos);
  EXPECT_EQ(parsed["parts"].size(), build::parts.size());
  for (const auto& list : {"devices", "transports", "parts"})
    for (const auto& one : parsed[list]) {
      EXPECT_NE(text.out.find(one["name"].get<std::string>()), std::string::npos);
      EXPECT_TRUE(one["available"].get<bool>() || one["detail"] != "") << one["name"];
    }
}

}  // namespace
}  // namespace allnorm::test
