// What cannot be written is found before the work; a disk that is full in between costs a warning.
#include <gtest/gtest.h>

#include <sys/stat.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "files_support.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

const std::string train = "train --data " + of_project("data/digits") + " --norm group_norm --batch-per-rank 64 ";

// Without libtorch everything but the help is exit code 6.
bool can_train(const Workplace& place) { return place.run("train --epochs none").code != 6; }

TEST(FilesThatCannotBeWritten, AreFoundBeforeTraining) {
  Workplace place;
  if (!can_train(place)) GTEST_SKIP() << "this build has no libtorch";
  place.write_bytes("file", "");
  for (const std::string option : {"--report", "--checkpoint", "--log"})
    for (const std::string path : {"nowhere/f", "file/f", "."}) {
      // So many epochs take hours.
      const Outcome outcome = place.run(train + "--epochs 100000 " + option + " " + path, "timeout 60");
      EXPECT_EQ(outcome.code, 3) << option << " " << path << outcome.err;
      EXPECT_TRUE(outcome.one_line()) << outcome.err;
      EXPECT_NE(outcome.err.find(path), std::string::npos) << outcome.err;
    }
}

TEST(FilesThatCannotBeWritten, AreFoundBeforeAnInputIsRead) {
  Workplace place;
  place.write_bytes("file", "");
  std::filesystem::create_directory(place.path("d"));
  for (const std::string words :
       {"--out file", "--out file/o", "--out d/../file/o/p", "--out o --save-state nowhere/s.st",
        "--out o --save-state file/s.st", "--out o --save-state d"}) {
    const Outcome outcome = place.run("apply batch_norm --input missing.npy " + words);
    EXPECT_EQ(outcome.code, 3) << words;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_EQ(outcome.err.find("missing.npy"), std::string::npos) << outcome.err;
    EXPECT_FALSE(place.exists("o"));
  }
  place.make("x.npy", {3, 4, 5});
  EXPECT_EQ(place.run("apply batch_norm --input x.npy --out o/p --save-state o/s.st").code, 0);
}

TEST(FilesThatCannotBeWritten, AreFoundInAFolderOfAnotherUser) {
  Workplace place;
  const std::string nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
  ASSERT_EQ(::chmod(place.path(".").c_str(), 0755), 0);
  if (::geteuid() != 0 || place.run("--version", nobody).code != 0) GTEST_SKIP() << "needs root, and setpriv";
  const Outcome outcome = place.run("apply batch_norm --input missing.npy --out o", nobody);
  EXPECT_EQ(outcome.code, 3);
  EXPECT_NE(outcome.err.find("o: cannot be written: Permission denied"), std::string::npos) << outcome.err;
}

TEST(FileSizeLimit, IsAnErrorWithALine) {
  Workplace place;
  place.make("x.npy", {30, 40, 50});
  const Outcome outcome = place.run("apply batch_norm --input x.npy --out o", "prlimit --fsize=4096");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find("File too large"), std::string::npos) << outcome.err;
  EXPECT_TRUE(place.list("o").empty());
}

// What watches a job does not end it.
TEST(FileSizeLimit, OfATraceAndARecordIsAWarning) {
  Workplace place;
  place.make("x.npy", {2, 3});
  const Outcome outcome =
      place.run("apply layer_norm --input x.npy --out o --steps 20 --trace t.json --record r", "prlimit --fsize=4096");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err,
            "allnorm: warning: t.json: the trace ends: cannot be written: File too large\n"
            "allnorm: warning: the record of rank 0 cannot be written: r/record.r0.json: cannot be written: File too "
            "large\n");
  EXPECT_EQ(place.list("o").size(), 60u);
  EXPECT_TRUE(nlohmann::json::parse(place.bytes("t.json")).is_array());
  EXPECT_TRUE(place.list("r").empty());
}

TEST(StandardOutput, ThatIsFullIsExitOne) {
  Workplace place;
  place.write_bytes("full.sh", "exec \"$@\" >/dev/full\n");
  for (const char* words :
       {"info", "apply batch_norm --help", "bench --layer group_norm:groups=2 --shape 2,4,5 -n 1"}) {
    const Outcome outcome = place.run(words, "sh full.sh");
    EXPECT_EQ(outcome.code, 1) << words << outcome.err;
    EXPECT_NE(("\n" + outcome.err).find("\nallnorm: standard output cannot be written\n"), std::string::npos)
        << words << outcome.err;
  }
}

TEST(FileSizeLimit, DuringTrainingIsAWarning) {
  Workplace place;
  if (!can_train(place)) GTEST_SKIP() << "this build has no libtorch";
  place.write_bytes("c.st", "before");
  // Enough for what is printed, too little for the events of 8 epochs, which are in the last checkpoint too.
  const Outcome outcome = place.run("train --data " + of_project("data/digits") +
                                        " --norm group_norm --batch-per-rank 640 --epochs 8 --log l.jsonl "
                                        "--checkpoint c.st",
                                    "prlimit --fsize=1500");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("group_norm"), std::string::npos) << outcome.out;
  const auto warnings = [&](std::string_view text) {
    int count = 0;
    for (auto at = outcome.err.find(text); at != outcome.err.npos; at = outcome.err.find(text, at + 1)) ++count;
    return count;
  };
  EXPECT_EQ(warnings("allnorm: warning: c.st: cannot be written: File too large; the training goes on"), 8)
      << outcome.err;
  EXPECT_EQ(warnings("allnorm: warning: l.jsonl: cannot be written"), 1) << outcome.err;
  EXPECT_EQ(files_support::bytes_of(place.path("c.st")), "before");
  const std::string log = files_support::bytes_of(place.path("l.jsonl"));
  EXPECT_GT(log.size(), 500u);
  EXPECT_EQ(log.back(), '\n') << log;  // no part of a line
  for (const std::string& name : place.list(".")) EXPECT_FALSE(name.starts_with(".allnorm-")) << name;
}

TEST(Resume, WithAnotherSettingNamesItAndItsTwoValues) {
  Workplace place;
  if (!can_train(place)) GTEST_SKIP() << "this build has no libtorch";
  ASSERT_EQ(place.run(train + "--epochs 2 --checkpoint c.st").code, 0);
  const auto resume = [&](const std::string& words) {
    const Outcome outcome = place.run("train --data " + of_project("data/digits") + " --resume c.st " + words);
    EXPECT_EQ(outcome.code, 3);
    EXPECT_TRUE(outcome.one_line());
    EXPECT_LT(outcome.err.size(), 200u) << outcome.err;
    return outcome.err;
  };
  EXPECT_NE(resume("--epochs 2 --norm batch_norm --batch-per-rank 64").find(R"("group_norm", must be "batch_norm")"),
            std::string::npos);
  EXPECT_NE(resume("--epochs 3 --norm group_norm --batch-per-rank 64").find("settings.epochs is 2, must be 3"),
            std::string::npos);
  EXPECT_NE(resume("--epochs 2 --norm group_norm:eps=0.5 --batch-per-rank 64")
                .find(R"(settings.norms[0].norm is "group_norm", must be "group_norm:eps=0.5")"),
            std::string::npos);
}

TEST(TrainOptions, SayWhatTheyWereAndMustBe) {
  Workplace place;
  if (!can_train(place)) GTEST_SKIP() << "this build has no libtorch";
  const std::pair<const char*, const char*> wrong[] = {
      {"--lr -1", "--lr is -1, must be above 0 and below 1e6"},
      {"--epochs 1.5", "--epochs is '1.5', must be a whole number"},
      {"--epochs 99999999999", "--epochs is 99999999999, must be 1 to 1000000"},
      {"--seeds 0", "--seeds is 0, must be 1 to 1000000"},
      {"--norm batch_nrom", "did you mean batch_norm?"},
      {"--epoch 3", "did you mean --epochs?"}};
  for (const auto& [words, says] : wrong) {
    const Outcome outcome = place.run("train " + std::string(words));
    EXPECT_EQ(outcome.code, 2) << words;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_NE(outcome.err.find(says), std::string::npos) << outcome.err;
  }
}

}  // namespace
}  // namespace allnorm::test
