// The exchange among processes.
#include <gtest/gtest.h>

#include "allnorm/mpi.hpp"
#include "exchange_cases.hpp"

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

// A message too large to leave before the peer asks for it, given up on, must not be freed under MPI's hands.
TEST(MpiLateRank, MayComeAfterItsPeersGaveUp) {
  Patience patience;
  patience.first_timeout = 0.2;
  Queue queue = Queue::cpu();
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  {
    const auto world = mpi(MPI_COMM_WORLD, patience);
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
  Patience patience;
  patience.first_timeout = 0.3;
  Queue queue = Queue::cpu();
  {
    const auto world = mpi(MPI_COMM_WORLD, patience);
    if (rank != size - 1) {
      const auto error = harness::error_of([&] {
        world->exchange({Header("bn", Direction::forward, 0), {1.0}, 0, {}}, queue);
      });
      EXPECT_EQ(error,
                "timeout: bn, call 0, forward: rank " + std::to_string(size - 1) + " is missing, not done after 0.3 s");
    }
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

}  // namespace
