// Ranks meet over TCP and through a file; who is missing, foreign or gone is named.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "harness.hpp"
#include "src/transport/rendezvous.hpp"

namespace rendezvous_test {
namespace {

using namespace allnorm;
using harness::error_of;
using harness::free_port;

std::vector<std::byte> some_bytes() {
  std::vector<std::byte> bytes(128);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37);
  return bytes;
}

constexpr const char* a_token = "0123456789abcdef";

Patience short_patience(double seconds) {
  Patience patience;
  patience.first_timeout = seconds;
  return patience;
}

void on_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) threads.emplace_back(body, rank);
  for (auto& thread : threads) thread.join();
}

std::string heard_within(Gathering& gathering, std::chrono::milliseconds most) {
  const auto end = std::chrono::steady_clock::now() + most;
  std::string why;
  while (why.empty() && std::chrono::steady_clock::now() < end) {
    why = gathering.heard();
    std::this_thread::yield();
  }
  return why;
}
constexpr std::chrono::milliseconds long_enough{20000}, a_moment{50};

TEST(RendezvousTcp, EveryRankGetsTheBytesOfRank0) {
  for (const int ranks : {1, 2, 5}) {
    const int port = free_port();
    on_threads(ranks, [&](int rank) {
      const Gathering gathering({"localhost", port, rank, ranks, "a run"},
                                rank == 0 ? some_bytes() : std::vector<std::byte>(), short_patience(20));
      EXPECT_EQ(gathering.bytes(), some_bytes());
    });
  }
}

TEST(RendezvousTcp, RanksMayComeBeforeRank0) {
  const int port = free_port();
  on_threads(3, [&](int rank) {
    if (rank == 0) std::this_thread::sleep_for(a_moment);
    const Gathering gathering({"127.0.0.1", port, rank, 3, "a run"},
                              rank == 0 ? some_bytes() : std::vector<std::byte>(), short_patience(20));
    EXPECT_EQ(gathering.bytes(), some_bytes());
  });
}

TEST(RendezvousTcp, MissingRanksAreNamed) {
  const int port = free_port();
  on_threads(2, [&](int rank) {
    const std::string error = error_of([&] {
      const Gathering gathering({"127.0.0.1", port, rank, 4, "a run"}, {}, short_patience(0.5));
    });
    const std::string late =
        "rendezvous at port " + std::to_string(port) + ": rank 2 and rank 3 are missing, not done after 0.5 s";
    EXPECT_EQ(error, rank == 0 ? "timeout: " + late : "aborted: rank 0 failed: " + late);
  });
}

// Those that were there and are gone again are missing too.
TEST(RendezvousTcp, RanksThatGaveUpAreMissing) {
  const int port = free_port();
  on_threads(2, [&](int rank) {
    const std::string error = error_of([&] {
      const Gathering gathering({"127.0.0.1", port, rank, 3, "a run"}, {}, short_patience(rank == 0 ? 2 : 0.1));
    });
    if (rank == 0)
      EXPECT_EQ(error, "timeout: rendezvous at port " + std::to_string(port) +
                           ": rank 1 and rank 2 are missing, not done after 2 s");
    else
      EXPECT_NE(error.find("timeout: rendezvous with rank 0 at 127.0.0.1:" + std::to_string(port)), std::string::npos)
          << error;
  });
}

TEST(RendezvousTcp, EveryRankGetsWhatEachShows) {
  const int port = free_port();
  on_threads(3, [&](int rank) {
    const auto size = static_cast<std::size_t>(rank == 1 ? 0 : 4096 - rank);
    const Gathering gathering({"127.0.0.1", port, rank, 3, "a run"}, short_patience(20), [&](const Socket& to_rank_0) {
      EXPECT_EQ(static_cast<bool>(to_rank_0), rank != 0);
      return std::vector<std::byte>(size, static_cast<std::byte>(rank));
    });
    ASSERT_EQ(gathering.cards().size(), 3u);
    for (int other = 0; other < 3; ++other)
      EXPECT_EQ(gathering.cards()[static_cast<std::size_t>(other)],
                std::vector<std::byte>(other == 1 ? 0 : 4096 - static_cast<std::size_t>(other),
                                       static_cast<std::byte>(other)));
  });
}

TEST(RendezvousTcp, WhoIsWaitingIsWarned) {
  const int port = free_port();
  Patience patience = short_patience(0.4);
  std::vector<std::string> warnings;
  patience.warn = [&](const LateReport& late) { warnings.push_back(late.line); };
  error_of([&] { const Gathering gathering({"127.0.0.1", port, 0, 2, "a run"}, {}, patience); });
  EXPECT_EQ(warnings, std::vector<std::string>{"rendezvous at port " + std::to_string(port) +
                                               ": rank 1 is missing, waiting for 0.2 s of 0.4 s"});
}

TEST(RendezvousTcp, WithoutRank0TheDeadlineEndsTheWait) {
  const int port = free_port();
  EXPECT_EQ(error_of([&] {
              const Gathering gathering({"127.0.0.1", port, 1, 2, ""}, {}, short_patience(0.1));
            }),
            "timeout: rendezvous with rank 0 at 127.0.0.1:" + std::to_string(port) +
                ": Connection refused, not done after 0.1 s");
}

TEST(RendezvousTcp, ForeignRanksAreRefusedAndOthersGoOn) {
  const int port = free_port();
  std::atomic<int> refused{0};
  on_threads(4, [&](int place) {
    if (place < 2) {  // the two ranks of the run, rank 1 after the strangers
      while (place == 1 && refused < 2) std::this_thread::yield();
      const Gathering gathering({"127.0.0.1", port, place, 2, "today"},
                                place == 0 ? some_bytes() : std::vector<std::byte>(), short_patience(20));
      EXPECT_EQ(gathering.bytes(), some_bytes());
      return;
    }
    const Meeting wrong =
        place == 2 ? Meeting{"127.0.0.1", port, 1, 2, "yesterday"} : Meeting{"127.0.0.1", port, 1, 3, "today"};
    const std::string error = error_of([&] { const Gathering gathering(wrong, {}, short_patience(20)); });
    ++refused;
    const std::string why =
        place == 2 ? "it is of another run or version" : "its group has 3 ranks, must have 2 as on rank 0";
    EXPECT_EQ(error,
              "transport: rendezvous with rank 0 at 127.0.0.1:" + std::to_string(port) + " refused rank 1: " + why);
  });
}

TEST(RendezvousTcp, AnotherTokenIsRefused) {
  for (const std::string& stolen : {std::string(a_token) + "x", std::string("0123456789abcdeF"), std::string()}) {
    const int port = free_port();
    std::atomic<bool> refused{false};
    on_threads(3, [&](int place) {
      if (place < 2) {
        while (place == 1 && !refused) std::this_thread::yield();
        const Gathering gathering({"127.0.0.1", port, place, 2, "today", a_token},
                                  place == 0 ? some_bytes() : std::vector<std::byte>(), short_patience(20));
        EXPECT_EQ(gathering.bytes(), some_bytes());
        return;
      }
      const std::string error = error_of([&] {
        const Gathering gathering({"127.0.0.1", port, 1, 2, "today", stolen}, {}, short_patience(20));
      });
      refused = true;
      EXPECT_EQ(error, "transport: rendezvous with rank 0 at 127.0.0.1:" + std::to_string(port) +
                           " refused rank 1: its job token is another");
    });
  }
}

TEST(RendezvousTcp, Rank0ListensAtTheGivenAddressOnly) {
  const int port = free_port();
  on_threads(2, [&](int rank) {
    if (rank == 1) {
      const std::string error = error_of([&] {
        const Gathering gathering({"127.0.0.2", port, 1, 2, "a run"}, {}, short_patience(0.2));
      });
      EXPECT_NE(error.find("Connection refused"), std::string::npos) << error;
    }
    const Gathering gathering({"127.0.0.1", port, rank, 2, "a run"},
                              rank == 0 ? some_bytes() : std::vector<std::byte>(), short_patience(20));
    EXPECT_EQ(gathering.bytes(), some_bytes());
  });
  EXPECT_EQ(error_of([&] {
              const Gathering gathering({"192.0.2.1", port, 0, 2, "", a_token}, {}, short_patience(1));
            }),
            "transport: rank 0 cannot listen at 192.0.2.1, port " + std::to_string(port) +
                ": Cannot assign requested address; MASTER_ADDR must be an address of rank 0's machine, ALLNORM_PORT "
                "chooses another port");
  EXPECT_EQ(error_of([&] {
              const Gathering gathering({"192.0.2.1", port, 0, 2, ""}, {}, short_patience(1));
            }).substr(0, 45),
            "invalid argument: the job token is missing, m");
}

TEST(RendezvousTcp, AFailureReachesEveryRank) {
  for (const int failing : {0, 2}) {
    const int port = free_port();
    on_threads(4, [&](int rank) {
      Gathering gathering({"127.0.0.1", port, rank, 4, ""}, {}, short_patience(20));
      if (rank == failing) gathering.tell("eps is -1");
      // rank 0 passes on what others tell; the one that told hears nothing
      const bool told = rank == failing;
      EXPECT_EQ(heard_within(gathering, told ? 4 * a_moment : long_enough), told ? "" : "eps is -1");
    });
  }
}

TEST(RendezvousTcp, AGoodByeIsNoFailure) {
  const int port = free_port();
  on_threads(3, [&](int rank) {
    std::optional<Gathering> gathering;
    gathering.emplace(Meeting{"127.0.0.1", port, rank, 3, ""}, std::vector<std::byte>(), short_patience(20));
    if (rank == 1) gathering.reset();
    if (!gathering) return;
    EXPECT_EQ(heard_within(*gathering, 4 * a_moment), "");
  });
}

TEST(RendezvousTcp, AConnectionThatBreaksIsAFailure) {
  const int port = free_port();
  on_threads(3, [&](int rank) {
    if (rank == 1) {  // a process that is killed after it was welcomed: its system closes the connection
      const auto pid = ::fork();
      if (pid == 0) {
        const Gathering gathering({"127.0.0.1", port, 1, 3, ""}, {}, short_patience(20));
        ::_exit(0);
      }
      EXPECT_EQ(::waitpid(pid, nullptr, 0), pid);
      return;
    }
    Gathering gathering({"127.0.0.1", port, rank, 3, ""}, {}, short_patience(20));
    EXPECT_EQ(heard_within(gathering, long_enough), "rank 1 failed: its connection ended without a word");
  });
}

class Environment : public testing::Test {
 protected:
  void SetUp() override { clear(); }
  void TearDown() override { clear(); }
  static void clear() {
    for (const char* name :
         {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "ALLNORM_PORT", "ALLNORM_RUN", "ALLNORM_JOB_TOKEN",
          "ALLNORM_JOB_TOKEN_FILE", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID"})
      ::unsetenv(name);
  }
  static void set(const char* name, const char* value) { ::setenv(name, value, 1); }
};
using RendezvousEnvironment = Environment;

TEST_F(RendezvousEnvironment, ItsOwnPortAndNeverTheLaunchers) {
  set("MASTER_ADDR", "head");
  set("RANK", "2");
  set("WORLD_SIZE", "3");
  set("ALLNORM_JOB_TOKEN", a_token);
  EXPECT_EQ(meeting_from_environment().port, 29601);
  set("MASTER_PORT", "4000");
  EXPECT_EQ(meeting_from_environment().port, 4001);
  set("ALLNORM_PORT", "5000");
  set("ALLNORM_RUN", "a run");
  const Meeting meeting = meeting_from_environment();
  EXPECT_EQ(meeting.port, 5000);
  EXPECT_EQ(meeting.host, "head");
  EXPECT_EQ(meeting.rank, 2);
  EXPECT_EQ(meeting.size, 3);
  EXPECT_EQ(meeting.run, "a run");
  EXPECT_EQ(meeting.token, a_token);
}

TEST_F(RendezvousEnvironment, ARunIsAStepOfSlurmOrTheTorchrunsOfAJob) {
  set("MASTER_ADDR", "127.0.0.1");
  const auto run_of = [](const char* job, const char* step) {
    set("SLURM_JOB_ID", job);
    set("SLURM_STEP_ID", step);
    return meeting_from_environment(0, 1).run;
  };
  EXPECT_NE(run_of("7", "0"), run_of("7", "1"));
  EXPECT_NE(run_of("7", "0"), run_of("8", "0"));
  set("TORCHELASTIC_RUN_ID", "none");  // one torchrun a host, each started by a step of its own
  EXPECT_EQ(run_of("7", "0"), run_of("7", "1"));
  EXPECT_NE(run_of("7", "0"), run_of("8", "0"));
}

TEST_F(RendezvousEnvironment, WithoutATokenRanksMeetOnTheLoopbackOnly) {
  set("RANK", "0");
  set("WORLD_SIZE", "2");
  for (const char* host : {"127.0.0.1", "127.0.0.2", "::1", "localhost"}) {
    set("MASTER_ADDR", host);
    EXPECT_EQ(meeting_from_environment().host, host);
  }
  for (const char* host : {"192.0.2.1", "0.0.0.0", "::", "::ffff:192.0.2.1"}) {
    set("MASTER_ADDR", host);
    ::unsetenv("ALLNORM_JOB_TOKEN");
    EXPECT_EQ(error_of([] { meeting_from_environment(); }),
              "invalid argument: the job token is missing, must be given (ALLNORM_JOB_TOKEN or "
              "ALLNORM_JOB_TOKEN_FILE) where ranks meet at " +
                  std::string(host) +
                  ", which other machines reach: without one it must be a loopback address, as 127.0.0.1");
    set("ALLNORM_JOB_TOKEN", a_token);
    EXPECT_EQ(meeting_from_environment().token, a_token);
  }
  set("ALLNORM_JOB_TOKEN", "short");
  EXPECT_EQ(error_of([] { meeting_from_environment(); }),
            "invalid argument: the job token has 5 bytes, must have 16 to 256");
}

TEST_F(RendezvousEnvironment, ATokenMayStandInAFile) {
  set("MASTER_ADDR", "192.0.2.1");
  set("RANK", "0");
  set("WORLD_SIZE", "2");
  const std::string path = testing::TempDir() + "allnorm_token_" + std::to_string(::getpid());
  set("ALLNORM_JOB_TOKEN_FILE", path.c_str());
  const std::string missing = error_of([] { meeting_from_environment(); });
  EXPECT_EQ(missing, "invalid argument: ALLNORM_JOB_TOKEN_FILE is " + path +
                         ", must be a file with the job token in its first line");
  std::ofstream(path) << a_token << "\r\nmore\n";
  EXPECT_EQ(meeting_from_environment().token, a_token);
  std::filesystem::remove(path);
}

TEST_F(RendezvousEnvironment, WhatIsMissingIsNamed) {
  EXPECT_EQ(error_of([] { meeting_from_environment(); }),
            "invalid argument: MASTER_ADDR is not set, must be the host of rank 0");
  set("MASTER_ADDR", "head");
  set("WORLD_SIZE", "3");
  EXPECT_EQ(error_of([] { meeting_from_environment(); }),
            "invalid argument: RANK is not set, must be a number from 0 to 2");
  set("RANK", "3");
  EXPECT_EQ(error_of([] { meeting_from_environment(); }),
            "invalid argument: RANK is \"3\", must be a number from 0 to 2");
  set("RANK", "0");
  set("MASTER_PORT", "65535");
  EXPECT_EQ(error_of([] { meeting_from_environment(); }),
            "invalid argument: MASTER_PORT is \"65535\", must be a number from 1 to 65534");
}

class RendezvousFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / ("rendezvous_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "id").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(RendezvousFile, EveryRankGetsTheBytesOfRank0) {
  on_threads(3, [&](int rank) {
    if (rank == 0) std::this_thread::sleep_for(a_moment);
    EXPECT_EQ(
        meet_in_file(path_, "a run", rank, rank == 0 ? some_bytes() : std::vector<std::byte>(), short_patience(20)),
        some_bytes());
  });
}

TEST_F(RendezvousFile, AFileOfAnotherRunIsNotTaken) {
  meet_in_file(path_, "yesterday", 0, std::vector<std::byte>(128), short_patience(20));
  EXPECT_EQ(error_of([&] { meet_in_file(path_, "today", 1, {}, short_patience(0.1)); }),
            "timeout: " + path_ + " is of run yesterday, must be of run today: rank 0 has not written it after 0.1 s");
  std::thread late([&] {
    std::this_thread::sleep_for(a_moment);
    meet_in_file(path_, "today", 0, some_bytes(), short_patience(20));
  });
  EXPECT_EQ(meet_in_file(path_, "today", 1, {}, short_patience(20)), some_bytes());
  late.join();
}

TEST_F(RendezvousFile, WhatIsMissingOrForeignIsNamed) {
  EXPECT_EQ(error_of([&] { meet_in_file(path_, "today", 1, {}, short_patience(0.1)); }),
            "timeout: " + path_ + " is not there, must be of run today: rank 0 has not written it after 0.1 s");
  std::ofstream(path_) << "a letter\n";
  EXPECT_EQ(error_of([&] { meet_in_file(path_, "today", 1, {}, short_patience(20)); }),
            "invalid input: " + path_ + " is another file, must be one that rank 0 may write");
  EXPECT_EQ(error_of([&] { meet_in_file(path_, "", 0, {}, short_patience(20)); }).substr(0, 17), "invalid argument:");
  const std::string nowhere = (folder_ / "missing" / "id").string();
  EXPECT_EQ(error_of([&] { meet_in_file(nowhere, "today", 0, {}, short_patience(20)); }),
            "transport: " + nowhere + " cannot be written, must be where all ranks see it");
}

}  // namespace
}  // namespace rendezvous_test
