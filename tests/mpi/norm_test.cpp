// Whole layers against the oracle among processes, and the same bits as among threads.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "allnorm/mpi.hpp"
#include "far_cases.hpp"
#include "norm_cases.hpp"

namespace mpi_norm_test {
namespace {

using namespace allnorm;
using norm_cases::Composition;

class MpiCompositions : public testing::TestWithParam<std::pair<std::string, Composition>> {};

TEST_P(MpiCompositions, EqualTheOracleAndTheBitsOfThreads) {
  Queue queue = Queue::cpu();
  const auto world = mpi(MPI_COMM_WORLD);
  const Composition& composition = GetParam().second;
  const auto trace = norm_cases::check(composition, world, queue);
  const int rank = world->rank();
  harness::run(world->size(), [&](const harness::World& emulated, Queue& own_queue) {
    const auto other = norm_cases::check(composition, emulated, own_queue);
    if (emulated->rank() == rank) {
      EXPECT_EQ(trace, other);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Family, MpiCompositions, testing::ValuesIn(norm_cases::compositions()),
                         [](const auto& composition) { return composition.param.first; });

TEST(MpiFarFromZero, RanksAreOneRankWithTheBitsOfThreads) {
  Queue queue = Queue::cpu();
  for (const int limit : {32, 1}) {
    Patience patience;
    patience.gather_limit = limit;
    const auto world = mpi(MPI_COMM_WORLD, patience);
    const auto trace = far_cases::check(DType::f64, world, queue);
    harness::run(
        world->size(),
        [&](const harness::World& emulated, Queue& own_queue) {
          const auto other = far_cases::check(DType::f64, emulated, own_queue);
          if (emulated->rank() == world->rank()) {
            EXPECT_EQ(trace, other);
          }
        },
        patience);
  }
}

TEST(MpiSubgroups, NormalizeAmongThemselves) {
  Queue queue = Queue::cpu();
  const auto world = mpi(MPI_COMM_WORLD);
  const auto pair = sync_group(world, Sync{2}, queue);
  const int first = world->rank() / 2 * 2, size = pair->size();
  const double mine = world->rank();
  double y = 0;
  Norm norm(Layer("batch_norm"), 1, pair, queue);
  ForwardInputs in;
  in.input = view(&mine, Shape{1, 1});
  const Saved saved = norm.forward(in, view(&y, Shape{1, 1}), queue);
  EXPECT_EQ(saved.frame().mean[0], size == 2 ? first + 0.5 : first);
  EXPECT_EQ(saved.frame().var[0], size == 2 ? 0.25 : 0.0);
}

}  // namespace
}  // namespace mpi_norm_test
