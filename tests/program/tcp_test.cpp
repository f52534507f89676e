// Ranks as processes over TCP, started as torchrun starts them: the same numbers as threads, and who is named, by whom
// and with which code where one of them fails, is stopped, is killed or never comes.
#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "harness.hpp"
#include "launch/parts.hpp"
#include "processes.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

// The program's own lines but for warnings and reports.
std::vector<std::string> errors_in(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);)
    if (line.starts_with("allnorm: ") && !line.starts_with("allnorm: warning: ") &&
        !line.starts_with("allnorm: report: "))
      lines.push_back(line);
  return lines;
}

// Processes with the variables that torchrun gives its ranks.
class TcpRanks : public testing::Test {
 protected:
  struct Ended {
    std::vector<int> codes;  // [rank]; -1 where it was not started
    std::string err;         // of all
    std::vector<std::string> errors() const { return errors_in(err); }
  };

  TcpRanks() {
    for (int rank = 0; rank < 4; ++rank) place.make("x." + std::to_string(rank) + ".npy", {rank + 1, 4, 5});
  }
  ~TcpRanks() override {
    for (const pid_t process : processes)
      if (process > 0) ::kill(process, SIGKILL);
  }

  void start(int rank, int size, const std::string& words, const std::vector<std::string>& more = {}) {
    if (processes.empty()) {
      port = harness::free_port();
      processes.resize(static_cast<std::size_t>(size), -1);
    }
    const std::string number = std::to_string(rank), ranks = std::to_string(size);
    std::vector<std::string> environment{"RANK=" + number,          "WORLD_SIZE=" + ranks,
                                         "LOCAL_RANK=" + number,    "LOCAL_WORLD_SIZE=" + ranks,
                                         "MASTER_ADDR=127.0.0.1",   "MASTER_PORT=" + std::to_string(port - 1),
                                         "TORCHELASTIC_RUN_ID=none"};
    environment.insert(environment.end(), more.begin(), more.end());
    processes[static_cast<std::size_t>(rank)] = place.start_with(environment, words, number);
  }
  void start_all(int size, const std::string& words) {
    for (int rank = 0; rank < size; ++rank) start(rank, size, words);
  }
  pid_t process(int rank) const { return processes[static_cast<std::size_t>(rank)]; }
  void wait_for(int rank, Ended& ended) {
    const auto at = static_cast<std::size_t>(rank);
    ended.codes.resize(processes.size(), -1);
    if (processes[at] < 0) return;
    const Outcome outcome = place.wait(std::exchange(processes[at], -1), std::to_string(rank));
    ended.codes[at] = outcome.code;
    ended.err += outcome.err;
  }
  /// All but one, which is ended then.
  Ended wait_but_for(int rank) {
    Ended ended;
    for (int other = 0; other < static_cast<int>(processes.size()); ++other)
      if (other != rank) wait_for(other, ended);
    if (rank < static_cast<int>(processes.size()) && process(rank) > 0) {
      ::kill(process(rank), SIGKILL);
      Ended unread;
      wait_for(rank, unread);
    }
    processes.clear();
    return ended;
  }
  Ended wait() { return wait_but_for(1 << 20); }
  Ended run(int size, const std::string& words) {
    start_all(size, words);
    return wait();
  }
  std::string directory() const { return place.path(".").substr(0, place.path(".").size() - 2); }
  /// When all ranks have opened their files: then they begin their steps.
  static void await_begin(Openings& openings, int ranks) {
    EXPECT_TRUE(becomes([&] {
      for (int rank = 0; rank < ranks; ++rank)
        if (!openings.has("x." + std::to_string(rank) + ".npy")) return false;
      return true;
    }));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }

  static constexpr auto of_ranks = "--input x.{rank}.npy --out o --first-timeout 30 ";
  static constexpr auto for_minutes = "--steps 1000000 ";

  Workplace place;
  std::vector<pid_t> processes;  // [rank]
  int port = 0;
};

TEST_F(TcpRanks, HaveTheBitsOfThreads) {
  const std::string both = "--input x.{rank}.npy --grad-output x.{rank}.npy ";
  const std::pair<int, std::string> jobs[] = {
      {2, "apply sync_batch_norm --steps 3 " + both},  // without --transport: torchrun's ranks meet over TCP
      {3, "apply sync_batch_norm --transport tcp --set renorm=true --set window=2 --set compensate=false --steps 3 " +
              both},
      {4, "apply batch_norm --transport tcp --set sync=2 --save-state s.{rank}.st " + both}};
  for (const auto& [ranks, words] : jobs) {
    const std::string number = std::to_string(ranks);
    const Ended ended = run(ranks, words + "--out tcp" + number);
    EXPECT_EQ(ended.codes, std::vector<int>(static_cast<std::size_t>(ranks), 0)) << ended.err;
    EXPECT_EQ(ended.err, "");
    std::string as_threads = words;
    if (const auto at = as_threads.find("--transport tcp"); at != as_threads.npos) as_threads.erase(at, 15);
    const Outcome threads = place.run(as_threads + "--ranks " + number + " --out threads" + number);
    ASSERT_EQ(threads.code, 0) << threads.err;
    const auto names = place.list("threads" + number);
    ASSERT_EQ(place.list("tcp" + number), names);
    for (const std::string& name : names)
      EXPECT_EQ(place.bytes("tcp" + number + "/" + name), place.bytes("threads" + number + "/" + name)) << name;
  }
}

TEST_F(TcpRanks, TrainToTheBitsOfThreads) {
  if (!launch::has_part("torch")) GTEST_SKIP() << "this build has no libtorch";
  const std::string words = "train --norm sync_batch_norm --batch-per-rank 32 --epochs 1 --log ";
  const Ended ended = run(2, words + "tcp.jsonl");
  EXPECT_EQ(ended.codes, (std::vector<int>{0, 0})) << ended.err;
  const Outcome threads = place.run(words + "threads.jsonl --ranks 2");
  ASSERT_EQ(threads.code, 0) << threads.err;
  const auto log = [&](const std::string& name) {
    std::vector<nlohmann::json> events;
    std::istringstream lines(place.bytes(name));
    for (std::string line; std::getline(lines, line);) {
      events.push_back(nlohmann::json::parse(line));
      events.back().erase("seconds");
      if (events.back()["event"] == "config") {
        EXPECT_EQ(events.back()["transport"], name.substr(0, name.find('.')));
      }
      events.back().erase("transport");
    }
    return events;
  };
  EXPECT_GT(log("tcp.jsonl").size(), 2u);
  EXPECT_EQ(log("tcp.jsonl"), log("threads.jsonl"));
}

TEST_F(TcpRanks, DisagreeingIsExitFour) {
  start(0, 3, "apply sync_batch_norm --input x.0.npy --out o");
  start(1, 3, "apply sync_batch_norm --input x.1.npy --out o --set eps=1e-3");
  start(2, 3, "apply sync_batch_norm --input x.2.npy --out o");
  const Ended ended = wait();
  EXPECT_EQ(ended.codes, (std::vector<int>{4, 4, 4})) << ended.err;
  EXPECT_EQ(ended.errors(), std::vector<std::string>{"allnorm: rank 1: sync_batch_norm, call 0, forward: eps is 0.001, "
                                                     "must be 1e-05 as on rank 0"})
      << ended.err;
  EXPECT_FALSE(place.exists("o"));
}

TEST_F(TcpRanks, WhatOneRankFindsIsToldOnceAndTheCodeOfAll) {
  place.write_bytes("x.1.npy", "no array");
  const Ended own = run(3, "apply sync_batch_norm --input x.{rank}.npy --out o");
  EXPECT_EQ(own.codes, (std::vector<int>{3, 3, 3})) << own.err;
  ASSERT_EQ(own.errors().size(), 1u) << own.err;
  EXPECT_TRUE(own.errors()[0].starts_with("allnorm: rank 1: x.1.npy")) << own.err;

  const Ended all = run(3, "apply sync_batch_norm --input nowhere.npy --out o");
  EXPECT_EQ(all.codes, (std::vector<int>{3, 3, 3})) << all.err;
  EXPECT_EQ(all.errors().size(), 1u) << all.err;
  EXPECT_FALSE(place.exists("o"));
}

TEST_F(TcpRanks, AMissingStepIsNotAHang) {
  start(0, 2, "apply sync_batch_norm --timeout 5 --input x.0.npy --out o --steps 2");
  start(1, 2, "apply sync_batch_norm --timeout 5 --input x.1.npy --out o");
  const Ended ended = wait();
  EXPECT_EQ(ended.codes, (std::vector<int>{4, 4})) << ended.err;
  EXPECT_EQ(ended.errors().size(), 1u) << ended.err;
}

TEST_F(TcpRanks, OneThatIsStoppedIsNamed) {
  struct Victim {
    int ranks, rank, other;
    std::string layer;
  };
  for (const auto& [ranks, victim, other, layer] :
       {Victim{4, 3, 2, "apply batch_norm --set sync=2 "}, Victim{3, 0, 1, "apply sync_batch_norm "}}) {
    Openings openings(directory());
    start_all(ranks, layer + of_ranks + for_minutes + "--timeout 1 --record records ");
    await_begin(openings, ranks);
    ::kill(process(victim), SIGSTOP);
    const auto stopped = Clock::now();
    const Ended ended = wait_but_for(victim);
    EXPECT_LE(seconds_since(stopped), 8) << ended.err;
    const std::string name = "rank " + std::to_string(victim);
    for (int rank = 0; rank < ranks; ++rank)
      if (rank != victim) {
        EXPECT_EQ(ended.codes[static_cast<std::size_t>(rank)], 5) << ended.err;
      }
    ASSERT_EQ(ended.errors().size(), 1u) << ended.err;
    EXPECT_NE(ended.errors()[0].find(name + " is missing, not done after 1 s"), std::string::npos) << ended.err;
    EXPECT_NE(ended.err.find("allnorm: report: "), std::string::npos) << ended.err;
    EXPECT_NE(ended.err.find(name + " was last heard of at "), std::string::npos) << ended.err;
    const auto record = nlohmann::json::parse(place.bytes("records/record.r" + std::to_string(other) + ".json"));
    EXPECT_EQ(record["end"]["kind"], "late") << record;
    const Outcome told = place.run("diagnose records");
    EXPECT_NE(told.out.find(", " + name + " was late: "), std::string::npos) << told.out;
    EXPECT_FALSE(place.exists("o"));
  }
}

TEST_F(TcpRanks, OneThatIsKilledIsNamedAtOnce) {
  for (const int victim : {0, 2}) {
    Openings openings(directory());
    start_all(3, std::string("apply sync_batch_norm ") + of_ranks + for_minutes + "--timeout 60 ");
    await_begin(openings, 3);
    ::kill(process(victim), SIGKILL);
    const auto killed = Clock::now();
    const Ended ended = wait();
    EXPECT_LE(seconds_since(killed), 8) << ended.err;
    std::vector<int> codes(3, 5);
    codes[static_cast<std::size_t>(victim)] = 128 + SIGKILL;
    EXPECT_EQ(ended.codes, codes) << ended.err;
    ASSERT_EQ(ended.errors().size(), 1u) << ended.err;
    EXPECT_NE(ended.errors()[0].find(": rank " + std::to_string(victim) + " has ended without a goodbye: "),
              std::string::npos)
        << ended.err;
    EXPECT_FALSE(place.exists("o"));
  }
}

TEST_F(TcpRanks, OneThatNeverComesIsNamed) {
  const std::string words =
      std::string("apply sync_batch_norm --input x.{rank}.npy --out o --first-timeout 2 ") + "--record records ";
  start(0, 3, words);
  start(1, 3, words);
  const Ended ended = wait();
  EXPECT_EQ(ended.codes, (std::vector<int>{5, 5, -1})) << ended.err;
  EXPECT_EQ(ended.errors(), std::vector<std::string>{"allnorm: rendezvous at port " + std::to_string(port) +
                                                     ": rank 2 is missing, not done after 2 s"})
      << ended.err;
  EXPECT_EQ(nlohmann::json::parse(place.bytes("records/record.r0.json"))["end"]["kind"], "late");
}

TEST_F(TcpRanks, WithAnotherTokenAreRefused) {
  const std::string words = "apply sync_batch_norm --input x.{rank}.npy --out o --first-timeout 2";
  start(0, 2, words, {"ALLNORM_JOB_TOKEN=0123456789abcdef"});
  start(1, 2, words, {"ALLNORM_JOB_TOKEN=0123456789abcdeF"});
  const Ended ended = wait();
  EXPECT_EQ(ended.codes, (std::vector<int>{5, 5})) << ended.err;
  const std::string at = std::to_string(port);
  EXPECT_NE(ended.err.find("allnorm: rendezvous with rank 0 at 127.0.0.1:" + at +
                           " refused rank 1: its job token is another\n"),
            std::string::npos)
      << ended.err;
  EXPECT_NE(ended.err.find("allnorm: rendezvous at port " + at +
                           ": rank 1 is missing, not done after 2 s; a rank 1 "
                           "was refused: its job token is another\n"),
            std::string::npos)
      << ended.err;
  EXPECT_EQ(ended.err.find("0123456789abcde"), std::string::npos) << "a secret is told";
}

// Held where it removes what its new files have replaced.
TEST_F(TcpRanks, OneThatDoesNotEndIsNamed) {
  const std::vector<long> removals{
      SYS_unlinkat,
#ifdef SYS_unlink
      SYS_unlink,
#endif
  };
  Openings openings(directory());
  start_all(2, std::string("apply sync_batch_norm ") + of_ranks +
                   "--steps 30 --timeout 6 ");  // a thread whose system calls are watched is slow
  await_begin(openings, 2);
  std::optional<HeldThread> held(std::in_place, process(1), removals);
  const bool holds = static_cast<bool>(*held);
  Ended ended;
  wait_for(0, ended);
  if (holds) ::kill(process(1), SIGKILL);
  held.reset();
  if (!holds) {
    wait();
    GTEST_SKIP() << "this system lets no process hold the threads of another one";
  }
  wait_for(1, ended);
  EXPECT_EQ(ended.codes[0], 5) << ended.err;
  EXPECT_EQ(
      ended.errors(),
      std::vector<std::string>{"allnorm: the end, call 0, agreement: rank 1 is missing, not done after 6 s; rank 1 was "
                               "last heard of at apply, call 3, agreement"})
      << ended.err;
}

TEST_F(TcpRanks, MustSayWhereTheyMeet) {
  const std::string words = "apply sync_batch_norm --input x.0.npy --out o ";
  const Outcome implied = place.run_with({"RANK=0", "WORLD_SIZE=2"}, words);
  EXPECT_EQ(implied.code, 2);
  EXPECT_EQ(implied.err,
            "allnorm: the launcher is torchrun with 2 ranks: MASTER_ADDR is not set, must be the host of rank 0 (a "
            "process that is meant to be alone: --transport self or threads)\n");
  const Outcome asked = place.run_with({"RANK=0", "WORLD_SIZE=2"}, words + "--transport tcp");
  EXPECT_EQ(asked.code, 2);
  EXPECT_EQ(asked.err, "allnorm: MASTER_ADDR is not set, must be the host of rank 0\n");
  const Outcome far = place.run_with({"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=192.0.2.1"}, words);
  EXPECT_EQ(far.code, 2);
  EXPECT_NE(far.err.find("the job token is missing"), std::string::npos) << far.err;
  const Outcome elsewhere =
      place.run_with({"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=192.0.2.1", "ALLNORM_JOB_TOKEN=0123456789abcdef"}, words);
  EXPECT_EQ(elsewhere.code, 5);
  EXPECT_TRUE(elsewhere.one_line()) << elsewhere.err;
  const Outcome number = place.run_with({"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1"}, words + "--ranks 3");
  EXPECT_EQ(number.code, 2);
  EXPECT_NE(number.err.find("--ranks is 3, must be 2 under torchrun"), std::string::npos) << number.err;
  const Outcome many = place.run_with({"RANK=0", "WORLD_SIZE=2000000000", "MASTER_ADDR=127.0.0.1"}, words);
  EXPECT_EQ(many.code, 2);
  EXPECT_NE(many.err.find("the rank that torchrun gives is 0 of 2000000000, must be less than the number of ranks"),
            std::string::npos)
      << many.err;
  const Outcome port_of_words =
      place.run_with({"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", "ALLNORM_PORT=http"}, words);
  EXPECT_EQ(port_of_words.code, 2);
  EXPECT_NE(port_of_words.err.find("ALLNORM_PORT is \"http\", must be a number"), std::string::npos)
      << port_of_words.err;
  const Outcome nobody = place.run(words + "--transport tcp --ranks 2");
  EXPECT_EQ(nobody.code, 2);
  EXPECT_NE(nobody.err.find("--transport is tcp, must be threads for --ranks 2 without a launcher"), std::string::npos)
      << nobody.err;
  EXPECT_EQ(place.run(words + "--transport tcp").code, 0);
  EXPECT_EQ(place.run_with({"RANK=1", "WORLD_SIZE=2"}, words + "--transport self").code, 0);
}

// Ranks of any launcher may meet so, whatever an outer one has set.
TEST_F(TcpRanks, MayBeOfAnotherLauncher) {
  for (int rank = 0; rank < 2; ++rank)
    start(rank, 2, "apply sync_batch_norm --transport tcp --input x.{rank}.npy --out o",
          {"OMPI_COMM_WORLD_RANK=" + std::to_string(1 - rank), "OMPI_COMM_WORLD_SIZE=2", "RANK=7", "WORLD_SIZE=9",
           "TORCHELASTIC_RUN_ID="});
  const Ended ended = wait();
  EXPECT_EQ(ended.codes, (std::vector<int>{0, 0})) << ended.err;
  EXPECT_TRUE(place.exists("o/output.r1.npy"));
}

}  // namespace
}  // namespace allnorm::test
