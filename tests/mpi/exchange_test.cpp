// The exchange among processes.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "allnorm/mpi.hpp"
#include "exchange_cases.hpp"
#include "src/transport/mpi_comm.hpp"

namespace mpi_exchange_test {
namespace {

using namespace allnorm;

class MpiExchange : public testing::TestWithParam<int> {
 protected:
  void run(void (*body)(const harness::World&, Queue&)) const {
    Patience patience;
    patience.gather_limit = GetParam();
    Queue queue = Queue::cpu();
    body(mpi(MPI_COMM_WORLD, patience), queue);
  }
};

TEST_P(MpiExchange, SumsAreExact) { run(exchange_cases::sums_are_exact); }
TEST_P(MpiExchange, MomentsAreMerged) { run(exchange_cases::moments_are_merged); }
TEST_P(MpiExchange, ExchangesOverlap) { run(exchange_cases::exchanges_overlap); }
TEST_P(MpiExchange, ARankMayDecline) { run(exchange_cases::a_rank_may_decline); }
TEST_P(MpiExchange, SplitsAreIndependent) { run(exchange_cases::splits_are_independent); }

INSTANTIATE_TEST_SUITE_P(GatherLimit, MpiExchange, testing::Values(32, 1));

TEST(MpiGatheredExchange, SumsAreInRankOrder) {
  Queue queue = Queue::cpu();
  exchange_cases::sums_are_in_rank_order(mpi(MPI_COMM_WORLD), queue);
}
TEST(MpiGatheredExchange, MismatchesAreNamed) {
  Queue queue = Queue::cpu();
  exchange_cases::mismatches_are_named(mpi(MPI_COMM_WORLD), queue);
}

// What this process has of memory that ranks share, as the system lists it.
std::vector<std::string> shared_memory() {
  std::vector<std::string> all;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);)
    if (line.find("/allnorm-") != line.npos) all.push_back(line);
  return all;
}

TEST(MpiSharedMemory, HasNoNameOnceAllHaveCome) {
  EXPECT_TRUE(shared_memory().empty());
  auto world = mpi(MPI_COMM_WORLD);
  MPI_Barrier(MPI_COMM_WORLD);
  const auto all = shared_memory();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_TRUE(all[0].ends_with(" (deleted)")) << all[0];
  world.reset();
  EXPECT_TRUE(shared_memory().empty());
}

// Where the system has no more memory to share: here none for the rank that makes it.
class WithoutSharedMemory : public testing::Test {
 protected:
  void run(void (*body)(const harness::World&, Queue&)) const {
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const auto signal_before = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit less{1 << 12, before.rlim_max};
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == 0) {
      ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &less), 0);
    }
    Queue queue = Queue::cpu();
    const auto world = mpi(MPI_COMM_WORLD);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    std::signal(SIGXFSZ, signal_before);
    EXPECT_TRUE(shared_memory().empty());
    body(world, queue);
  }
};

TEST_F(WithoutSharedMemory, SumsAreExact) { run(exchange_cases::sums_are_exact); }
TEST_F(WithoutSharedMemory, SumsAreInRankOrder) { run(exchange_cases::sums_are_in_rank_order); }
TEST_F(WithoutSharedMemory, MomentsAreMerged) { run(exchange_cases::moments_are_merged); }
TEST_F(WithoutSharedMemory, ExchangesOverlap) { run(exchange_cases::exchanges_overlap); }
TEST_F(WithoutSharedMemory, ARankMayDecline) { run(exchange_cases::a_rank_may_decline); }
TEST_F(WithoutSharedMemory, MismatchesAreNamed) { run(exchange_cases::mismatches_are_named); }

// Ranks whose messages have other lengths, one of them too long for the memory that they share.
TEST(MpiSharedMemory, IsNotAllThatIsLookedAt) {
  Queue queue = Queue::cpu();
  const auto world = mpi(MPI_COMM_WORLD);
  const std::size_t doubles = world->rank() == 0 ? 100'000 : 10;
  EXPECT_NE(harness::error_of([&] {
              world->exchange({Header("bn", Direction::forward, 0), std::vector<double>(doubles, 1.0), 0, {}}, queue);
            }).find("payload length is 10, must be 100000 as on rank 0"),
            std::string::npos);
  EXPECT_EQ(world->exchange({Header("bn", Direction::forward, 1), {1.0}, 0, {}}, queue).payload[0], world->size());
}

// A communicator whose ranks have met: the next exchange has this deadline, in seconds.
std::shared_ptr<Communicator> met(double timeout, Queue& queue) {
  Patience patience;
  patience.timeout = timeout;
  const auto world = mpi(MPI_COMM_WORLD, patience);
  world->exchange({Header("first", Direction::agreement, 0), {}, 0, {}}, queue);
  return world;
}

// A message too large to leave before the peer asks for it, given up on, must not be freed under MPI's hands.
TEST(MpiLateRank, MayComeAfterItsPeersGaveUp) {
  Queue queue = Queue::cpu();
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  {
    const auto world = met(0.2, queue);
    const Message large{Header("bn", Direction::forward, 0), std::vector<double>(400000, 1.0), 0, {}};
    if (rank == 0) {
      EXPECT_NE(harness::error_of([&] { world->exchange(large, queue); }).find("timeout"), std::string::npos);
      MPI_Barrier(MPI_COMM_WORLD);
    } else {
      MPI_Barrier(MPI_COMM_WORLD);
      harness::error_of([&] { world->exchange(large, queue); });
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(MpiLateRank, IsNamedAfterTheDeadline) {
  int size = 0, rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  Queue queue = Queue::cpu();
  {
    const auto world = met(0.3, queue);
    if (rank != size - 1) {
      const auto error = harness::error_of([&] {
        world->exchange({Header("bn", Direction::forward, 0), {1.0}, 0, {}}, queue);
      });
      const std::string last = "rank " + std::to_string(size - 1);
      EXPECT_EQ(error, "timeout: bn, call 0, forward: " + last + " is missing, not done after 0.3 s; " + last +
                           " was last heard of at first, call 0, agreement");
    }
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

TEST(MpiLateRank, IsNamedByThoseWhoDoNotWaitForItThemselves) {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size < 3) GTEST_SKIP() << "needs three ranks";
  Queue queue = Queue::cpu();
  {
    const auto world = met(0.4, queue);
    const auto group = world->split(world->rank() == 0 ? 0 : 1, queue);  // rank 1 waits for rank 2 in there
    group->exchange({Header("bn", Direction::forward, 0), {1.0}, 0, {}}, queue);
    std::string error;
    if (world->rank() != 2) {
      error = harness::error_of([&] {
        group->exchange({Header("bn", Direction::forward, 1), {1.0}, 0, {}}, queue);
        world->exchange({Header("all", Direction::forward, 0), {1.0}, 0, {}}, queue);
      });
      EXPECT_NE(error.find("forward: rank 2 is missing, not done after 0.4 s"), std::string::npos) << error;
    }
    if (world->rank() == 0) {
      EXPECT_NE(error.find("; rank 1 waits for rank 2 "), std::string::npos) << error;
    }
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

// Nothing joins the ranks then, so that nobody can be named.
TEST(MpiLateRank, DoesNotHoldUpTheStart) {
  int size = 0, rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  Patience patience;
  patience.first_timeout = 0.3;
  if (rank == size - 1) std::this_thread::sleep_for(std::chrono::milliseconds(800));
  const auto start = std::chrono::steady_clock::now();
  const std::string error = harness::error_of([&] { mpi(MPI_COMM_WORLD, patience); });
  const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_EQ(error, "timeout: the communicator over MPI: a rank is missing or late, not done after 0.3 s");
  EXPECT_GE(took, 0.3);
  EXPECT_LE(took, 1.3);
  MPI_Barrier(MPI_COMM_WORLD);
}

// It says goodbye: nobody waits for the deadline, and what it sent before counts, however long it takes to come.
TEST(MpiLateRank, ThatHasLeftIsNamedAtOnce) {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  Queue queue = Queue::cpu();
  const Message large{Header("bn", Direction::forward, 0), std::vector<double>(400000, 1.0), 0, {}};
  const auto start = std::chrono::steady_clock::now();
  auto world = met(60, queue);
  if (world->rank() == size - 1) {
    (void)world->start_exchange(large, queue);  // nobody has taken it yet
    world.reset();
  } else {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(world->exchange(large, queue).payload, std::vector<double>(400000, size));
    const std::string last = "rank " + std::to_string(size - 1);
    EXPECT_EQ(
        harness::error_of([&] {
          world->exchange({Header("bn", Direction::forward, 1), {1.0}, 0, {}}, queue);
        }),
        "aborted: bn, call 1, forward: " + last + " has left; " + last + " was last heard of at bn, call 0, forward");
  }
  world.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  MPI_Barrier(MPI_COMM_WORLD);
}

// Another rank has left before they are sent.
TEST(MpiLeftovers, AreNotTakenForMessagesOfTheNextCommunicator) {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  Queue queue = Queue::cpu();
  for (unsigned call = 0; call < 20; ++call) {
    auto world = mpi(MPI_COMM_WORLD);
    const int rank = world->rank();
    if (rank != 0) world.reset();
    MPI_Barrier(MPI_COMM_WORLD);
    for (const std::size_t doubles :
         {1u, call % 2 == 0 ? 2u : 9000u})  // such that leave at once, or wait to be asked for
      if (rank == 0)
        (void)world->start_exchange({Header("old", Direction::forward, call), std::vector<double>(doubles, 7.0), 0, {}},
                                    queue);
    world.reset();
    const auto next = mpi(MPI_COMM_WORLD);
    for (unsigned more = 0; more < 2; ++more)
      EXPECT_EQ(next->exchange({Header("bn", Direction::forward, call + more), {1.0}, 0, {}}, queue).payload,
                std::vector<double>(1, size));
  }
}

// One after the other, of which the slowest rank lets go late: nothing piles up once it has.
TEST(MpiLeftovers, AreFreedWhenAllRanksHaveLeft) {
  Queue queue = Queue::cpu();
  std::vector<std::shared_ptr<Communicator>> kept;
  for (int i = 0; i < 8; ++i) {
    auto world = mpi(MPI_COMM_WORLD);
    world->exchange({Header("bn", Direction::forward, 0), {1.0}, 0, {}}, queue);
    if (world->rank() == 0) kept.push_back(world);
  }
  if (kept.empty()) {
    EXPECT_GE(comms_left(), 8u);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  kept.clear();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (comms_left() > 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_EQ(comms_left(), 0u);
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(MpiNames, OfRanksAreThoseOfTheWorld) {
  int size = 0, rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm turned = MPI_COMM_NULL;
  ASSERT_EQ(MPI_Comm_split(MPI_COMM_WORLD, 0, -rank, &turned), MPI_SUCCESS);
  {
    Queue queue = Queue::cpu();
    const auto world = mpi(turned);
    EXPECT_EQ(world->rank(), size - 1 - rank);
    EXPECT_EQ(world->name_of(world->rank()), "rank " + std::to_string(rank));
    EXPECT_EQ(harness::error_of([&] {
                world->exchange({Header("bn", Direction::forward, rank == 0 ? 1u : 0u), {1.0}, 0, {}}, queue);
              }),
              "mismatch: rank 0 is at bn, call 1, forward, must be at bn, call 0, forward as on rank " +
                  std::to_string(size - 1));
  }
  MPI_Comm_free(&turned);
}

}  // namespace
}  // namespace mpi_exchange_test
