// Ranks that stop, hang, never start or never end: threads held by ptrace, processes stopped by a signal. The program
// says who is missing, leaves in time with code 5, and nothing of it stays.
#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>

#include <nlohmann/json.hpp>

#include "build_config.hpp"
#include "processes.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

bool mpirun_works() { return ALLNORM_HAVE_MPI && std::system("mpirun --version > /dev/null 2>&1") == 0; }

std::string file_of(int rank) { return "x." + std::to_string(rank) + ".npy"; }

// System calls that a rank makes when it gives its files their names, and when it lets go of what had them before.
const std::vector<long> renames{
    SYS_renameat2,
#ifdef SYS_renameat
    SYS_renameat,
#endif
#ifdef SYS_rename
    SYS_rename,
#endif
};
const std::vector<long> removals{
    SYS_unlinkat,
#ifdef SYS_unlink
    SYS_unlink,
#endif
};

// Who is stopped: two in a short run; ALLNORM_STOPPED_RANKS asks for more.
struct Victim {
  int ranks, rank;
  bool groups;
};
std::vector<Victim> victims() {
  const std::vector<Victim> first{{4, 3, true}, {3, 0, false}};
  std::vector<Victim> all = first;
  for (const bool groups : {true, false})
    for (const int ranks : {2, 3, 4})
      for (int rank = 0; rank < ranks; ++rank)
        if (!groups || ranks != 3 || rank != 2) all.push_back({ranks, rank, groups});  // that one nobody waits for
  int runs = 0;
  if (const char* const asked = std::getenv("ALLNORM_STOPPED_RANKS"))
    std::from_chars(asked, asked + std::strlen(asked), runs);
  if (runs < 1) return first;
  std::vector<Victim> some;
  for (std::size_t run = 0; run < static_cast<std::size_t>(runs); ++run) some.push_back(all[run % all.size()]);
  return some;
}
std::string text_of(const Victim& victim) {
  return "rank " + std::to_string(victim.rank) + " of " + std::to_string(victim.ranks) +
         (victim.groups ? " in groups" : "");
}
// And when: a while after it began its steps.
void wait_a_while() {
  static std::mt19937 random(static_cast<std::uint32_t>(Clock::now().time_since_epoch().count()));
  std::this_thread::sleep_for(std::chrono::microseconds(random() % 100000));
}

// A layer on ranks with a file each; `--steps` says for how long.
class Late : public testing::Test {
 protected:
  static constexpr auto of_ranks = "--input x.{rank}.npy --out o --first-timeout 5 ";
  static constexpr auto for_minutes = "--steps 1000000 --timeout 1 ";
  static constexpr auto for_a_moment = "--steps 10 --timeout 2 ";  // a thread whose system calls are watched is slow

  Late() {
    for (int rank = 0; rank < 4; ++rank) place.make(file_of(rank), {rank + 1, 4, 5});
  }
  std::string directory() const { return place.path(".").substr(0, place.path(".").size() - 2); }
  static std::string layer(bool groups) { return groups ? "apply batch_norm --set sync=2 " : "apply sync_batch_norm "; }
  /// When all ranks have opened their files: then they begin their steps.
  static bool begins(Openings& openings, int ranks) {
    return becomes([&] {
      for (int rank = 0; rank < ranks; ++rank)
        if (!openings.has(file_of(rank))) return false;
      return true;
    });
  }

  /// Code 5 after the deadline that the line names, and `at_most` seconds; `words` are in the line, and no process
  /// stays.
  void expect_late(const Outcome& outcome, Clock::time_point stopped, const std::string& words, double at_most) {
    const double took = seconds_since(stopped);
    EXPECT_EQ(outcome.code, 5) << outcome.err;
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
    double deadline = 0;
    for (const char* text : {"not done after ", "not done "}) {
      const auto at = outcome.err.find(text);
      if (at == std::string::npos) continue;
      deadline = std::atof(outcome.err.c_str() + at + std::strlen(text));
      break;
    }
    EXPECT_GT(deadline, 0) << outcome.err;
    EXPECT_GE(took, deadline - 0.05) << outcome.err;  // its peers may have waited since a moment before
    EXPECT_LE(took, deadline + at_most) << outcome.err;
    EXPECT_TRUE(becomes([&] { return processes_in(directory()).empty(); })) << outcome.err;
  }

  /// One line of error; one paragraph with what is known of the ranks, which those who waited for this one wrote down
  /// too, `other` among them.
  void expect_report(const Outcome& outcome, const Victim& victim) {
    expect_report(outcome, victim, victim.groups ? victim.rank ^ 1 : (victim.rank + 1) % victim.ranks);
  }
  void expect_report(const Outcome& outcome, const Victim& victim, int other) {
    int errors = 0, reports = 0;
    std::istringstream lines(outcome.err);
    for (std::string line; std::getline(lines, line);) {
      reports += line.starts_with("allnorm: report: ");
      errors += line.starts_with("allnorm: ") && !line.starts_with("allnorm: report: ") &&
                !line.starts_with("allnorm: warning: ");
      if (line.starts_with("allnorm: report: ")) {
        EXPECT_NE(line.find("rank " + std::to_string(victim.rank) + " was last heard of at "), std::string::npos)
            << line;
        EXPECT_NE(line.find(" has waited "), std::string::npos) << line;
      }
    }
    EXPECT_EQ(errors, 1) << outcome.err;
    EXPECT_GE(reports, 1) << outcome.err;
    // A group whose ranks wait for this one and another that waits for them may each say so.
    EXPECT_LE(reports, victim.groups ? 2 : 1) << outcome.err;
    const std::string name = "records/record.r" + std::to_string(other) + ".json";
    ASSERT_TRUE(place.exists(name)) << outcome.err;
    const auto record = nlohmann::json::parse(place.bytes(name));
    EXPECT_EQ(record["rank"], other);
    ASSERT_EQ(record["end"]["kind"], "late");
    for (const auto& rank : record["late"]["ranks"]) {
      EXPECT_EQ(rank["is"] == "missing", rank["rank"] == victim.rank) << record;
      if (rank["rank"] != other) continue;
      EXPECT_EQ(rank["is"], "waiting");
      EXPECT_GT(rank["pid"], 0);
      EXPECT_GE(rank["seconds"], 0.5);
    }
    const Outcome told = place.run("diagnose records");
    EXPECT_EQ(told.code, 0) << told.err;
    const std::string late = "rank " + std::to_string(victim.rank);
    EXPECT_NE(told.out.find(", " + late + " was late: "), std::string::npos) << told.out;
    EXPECT_NE(told.out.find(" Look at " + late), std::string::npos) << told.out;
  }

  Workplace place;
};

// ---- ranks as threads -----------------------------------------------------------------------------------------------

class LateThread : public Late {
 protected:
#ifdef __SANITIZE_THREAD__
  static constexpr double to_end = 2;  // seconds: the sanitizer sleeps for one when a process ends
#else
  static constexpr double to_end = 1;
#endif

  using Hold = std::function<std::unique_ptr<HeldThread>(pid_t)>;

  // Starts the program, holds the thread of a rank, and says how the program ended; nothing where the system does not
  // let a process hold another one's threads.
  std::optional<Outcome> run(const std::string& command, int rank, const Hold& hold, Clock::time_point& stopped) {
    const pid_t child = place.start(command);
    std::optional<pid_t> thread;
    EXPECT_TRUE(becomes([&] { return (thread = thread_named(child, "rank " + std::to_string(rank))).has_value(); }));
    if (!thread) return place.wait(child);
    const std::unique_ptr<HeldThread> held = hold(*thread);
    stopped = Clock::now();
    if (*held && held->gone(30)) return place.wait(child);
    ::kill(child, SIGKILL);
    if (!*held) {
      place.wait(child);
      return std::nullopt;
    }
    held->gone(30);
    return place.wait(child);
  }
};
constexpr auto no_ptrace = "this system lets no process hold the threads of another one";

TEST_F(LateThread, IsNamedAndTheProcessEnds) {
  for (const Victim& victim : victims()) {
    SCOPED_TRACE(text_of(victim));
    Openings openings(directory());
    const auto in_its_steps = [&](pid_t thread) {
      EXPECT_TRUE(begins(openings, victim.ranks));
      wait_a_while();
      return std::make_unique<HeldThread>(thread);
    };
    Clock::time_point stopped;
    const std::string command =
        layer(victim.groups) + of_ranks + for_minutes + "--record records --ranks " + std::to_string(victim.ranks);
    const auto outcome = run(command, victim.rank, in_its_steps, stopped);
    if (!outcome) GTEST_SKIP() << no_ptrace;
    expect_late(*outcome, stopped, "rank " + std::to_string(victim.rank) + " is missing, ", to_end);
    expect_report(*outcome, victim);
    EXPECT_FALSE(place.exists("o"));
  }
}

// What its peers have written they undo, before they end; what it has itself, the next run.
TEST_F(LateThread, InTheMiddleOfGivingFilesTheirNamesLosesNothing) {
  const std::string command = layer(false) + of_ranks + for_a_moment + "--ranks 2 ";
  ASSERT_EQ(place.run(command).code, 0);
  const auto names = place.list("o");
  const auto content = [&] { return place.bytes("o/output.r0.s0.npy") + place.bytes("o/output.r1.s9.npy"); };
  const std::string before = content();
  const auto at_a_rename = [](pid_t thread) { return std::make_unique<HeldThread>(thread, renames); };
  Clock::time_point stopped;
  const auto outcome = run(command + "--set eps=1", 1, at_a_rename, stopped);
  if (!outcome) GTEST_SKIP() << no_ptrace;
  expect_late(*outcome, stopped, "apply, call 3, agreement: rank 1 is missing, not done after 2 s", to_end + 1);
  EXPECT_NE(place.list("o"), names);

  place.make("y.npy", {2, 3});
  ASSERT_EQ(place.run("apply layer_norm --input y.npy --out o").code, 0);
  auto with_new = names;
  for (const char* made : {"mean.npy", "output.npy", "rstd.npy"}) with_new.emplace_back(made);
  std::sort(with_new.begin(), with_new.end());
  EXPECT_EQ(place.list("o"), with_new);
  EXPECT_EQ(content(), before);
}

TEST_F(LateThread, AfterItsLastExchangeIsNamed) {
  const std::string command = layer(false) + of_ranks + for_a_moment + "--ranks 2 ";
  const auto at_a_removal = [](pid_t thread) { return std::make_unique<HeldThread>(thread, removals); };
  Clock::time_point stopped;
  const auto outcome = run(command, 1, at_a_removal, stopped);
  if (!outcome) GTEST_SKIP() << no_ptrace;
  expect_late(*outcome, stopped, "allnorm: rank 1 is missing at the end, not done 2 s after the first rank\n",
              to_end + 1);
  EXPECT_TRUE(outcome->one_line()) << outcome->err;
  EXPECT_TRUE(place.exists("o/output.r1.s9.npy"));  // that it stays was decided
}

// ---- ranks as processes ---------------------------------------------------------------------------------------------

class LateProcess : public Late {
 protected:
  // The launcher gives the others a second to end, and looks now and then.
  static constexpr double to_end_the_job = 4;  // seconds

  void SetUp() override {
    if (!mpirun_works()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  }
};

// Nor does anything stay in the memory that its processes share, which is moved here so that other jobs are not seen.
TEST_F(LateProcess, IsNamedWhereverItIsStopped) {
  const std::string shared = place.path("shm");
  std::filesystem::create_directory(shared);
  for (const Victim& victim : victims()) {
    SCOPED_TRACE(text_of(victim));
    Openings openings(directory());
    const pid_t launcher =
        place.start(layer(victim.groups) + of_ranks + for_minutes + "--record records ",
                    "mpirun --mca btl_vader_backing_directory " + shared + " -n " + std::to_string(victim.ranks));
    EXPECT_TRUE(begins(openings, victim.ranks));
    wait_a_while();
    const auto process = process_of_rank(directory(), victim.rank);
    if (process) ::kill(*process, SIGSTOP);
    const auto stopped = Clock::now();
    const Outcome outcome = place.wait(launcher);
    ASSERT_TRUE(process) << outcome.err;
    expect_late(outcome, stopped, ": rank " + std::to_string(victim.rank) + " is missing, not done after ",
                to_end_the_job);
    expect_report(outcome, victim);
    EXPECT_FALSE(place.exists("o"));
    EXPECT_TRUE(becomes([&] { return place.list("shm").empty(); }));
  }
}

// The rank that would say what is known of all is stopped, too, when it has answered and before it has spoken.
TEST_F(LateProcess, IsReportedByAnotherRankWhereTheOneThatSpeaksIsStopped) {
  Openings openings(directory());
  const pid_t launcher =
      place.start(layer(false) + of_ranks + "--steps 1000000 --timeout 4 --record records ", "mpirun -n 3");
  EXPECT_TRUE(begins(openings, 3));
  wait_a_while();
  const auto late = process_of_rank(directory(), 2), speaks = process_of_rank(directory(), 0);
  if (late) ::kill(*late, SIGSTOP);
  const auto stopped = Clock::now();
  std::this_thread::sleep_until(stopped + std::chrono::milliseconds(3800));  // it is asked in the last second
  if (speaks) ::kill(*speaks, SIGSTOP);
  const Outcome outcome = place.wait(launcher);
  ASSERT_TRUE(late && speaks) << outcome.err;
  expect_late(outcome, stopped, ": rank 2 is missing, not done after ", to_end_the_job + 2.4);  // that it gives way
  expect_report(outcome, {3, 2, false}, 1);
  std::istringstream lines(outcome.err);
  int warnings = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("allnorm: warning: ")) continue;
    ++warnings;
    const std::string before = ": rank 2 is missing, waiting for ";
    const auto at = line.find(before);
    ASSERT_NE(at, std::string::npos) << line;
    const double waited = std::atof(line.c_str() + at + before.size());
    EXPECT_GE(waited, 2) << line;  // half of the deadline; the others are asked meanwhile
    EXPECT_LT(waited, 4) << line;
  }
  EXPECT_EQ(warnings, 1) << outcome.err;
}

// A rank that is to end saves what it has if all answer within a second. One that is stopped does not.
TEST_F(LateProcess, DoesNotHoldUpTheEndOfATraining) {
  if (place.run("train --epochs none").code == 6) GTEST_SKIP() << "this build has no libtorch";
  const pid_t launcher = place.start("train --data " + of_project("data/digits") +
                                         " --norm group_norm --batch-per-rank 16 --epochs 1000 --timeout 60 "
                                         "--checkpoint c.st --record records",
                                     "mpirun -n 2");
  EXPECT_TRUE(becomes([&] { return place.exists("c.st"); }));
  const auto stopped = process_of_rank(directory(), 1), ends = process_of_rank(directory(), 0);
  if (!stopped || !ends) ::kill(launcher, SIGTERM);
  ASSERT_TRUE(stopped && ends) << place.wait(launcher).err;
  ::kill(*stopped, SIGSTOP);
  const auto start = Clock::now();
  ::kill(*ends, SIGTERM);
  const Outcome outcome = place.wait(launcher);
  const double took = seconds_since(start);
  EXPECT_EQ(outcome.code, 128 + SIGTERM) << outcome.err;
  EXPECT_NE(
      outcome.err.find("allnorm: SIGTERM: not all ranks have answered in a second: ends without a last checkpoint\n"),
      std::string::npos)
      << outcome.err;
  EXPECT_GE(took, 0.95);
  EXPECT_LE(took, 1 + 2 * to_end_the_job);  // mpirun ends one rank after the other
  EXPECT_EQ(nlohmann::json::parse(place.bytes("records/record.r0.json"))["end"]["how"], "SIGTERM");
  EXPECT_TRUE(becomes([&] { return processes_in(directory()).empty(); }));
}

TEST_F(LateProcess, ThatNeverStartsEndsTheJob) {
  place.write_bytes("stop.sh", "kill -STOP $$\n");
  for (const std::string other : {"true", "sleep 60", "sh stop.sh"}) {
    const auto start = Clock::now();
    const Outcome outcome =
        place.run(layer(false) + "--input x.{rank}.npy --out o --first-timeout 1 --record records : -n 1 " + other,
                  "mpirun -n 1");
    expect_late(outcome, start,
                "allnorm: MPI_Init: a rank of mpirun (Open MPI) with 2 ranks is missing or late, not done after 1 s\n",
                to_end_the_job);
    EXPECT_FALSE(place.exists("o"));
    EXPECT_EQ(nlohmann::json::parse(place.bytes("records/record.r0.json"))["end"]["kind"], "late");
    const Outcome told = place.run("diagnose records");
    EXPECT_TRUE(told.out.starts_with("Of 2 ranks, rank 0 waited too long: MPI_Init: ")) << told.out;
    EXPECT_NE(told.out.find("rank 1 left no record. Look at rank 1 first: "), std::string::npos) << told.out;
  }
}

TEST_F(LateProcess, ThatIsSlowToStartIsWaitedFor) {
  place.write_bytes("late.sh", "sleep 1.5\nexec \"$@\"\n");
  const std::string command = layer(false) + "--input x.{rank}.npy --out o --timeout 0.5 --first-timeout 60";
  const Outcome outcome = place.run(command + " : -n 1 sh late.sh " + program() + " " + command, "mpirun -n 1");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(place.exists("o/output.r1.npy"));
}

TEST_F(LateProcess, AfterItsLastExchangeIsNamed) {
  Openings openings(directory());
  const pid_t launcher = place.start(layer(false) + of_ranks + for_a_moment, "mpirun -n 2");
  EXPECT_TRUE(begins(openings, 2));
  const auto process = process_of_rank(directory(), 1);
  std::optional<HeldThread> held;
  if (process) held.emplace(*process, removals);
  const auto stopped = Clock::now();
  if (!held || !*held) {
    const Outcome outcome = place.wait(launcher);
    ASSERT_TRUE(process) << outcome.err;
    GTEST_SKIP() << no_ptrace;
  }
  EXPECT_TRUE(held->gone(30));
  expect_late(place.wait(launcher), stopped,
              "allnorm: the end, call 0, agreement: rank 1 is missing, not done after 2 s", to_end_the_job);
  EXPECT_TRUE(place.exists("o/output.r1.s9.npy"));
}

}  // namespace
}  // namespace allnorm::test
