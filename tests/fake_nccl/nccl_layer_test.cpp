// Layers over NCCL: what a call costs.
#include <barrier>

#include "gpu/step_support.hpp"
#include "nccl_ranks.hpp"

namespace allnorm::test {
namespace {

// Per direction: a launch that makes the record, a collective (beyond the gathering limit one for the heads and one for
// the sums), and a launch that reads what came.
TEST_F(Nccl, ALayerTakesTwoLaunchesPerDirectionAndTheHostDoesNotWait) {
  constexpr int ranks = 2, directions = 2;
  for (const char* layer : {"batch_norm", "batch_norm:activation=relu", "batch_renorm", "cross_mini_batch_norm"})
    for (const int limit : {32, 1}) {
      SCOPED_TRACE(std::string(layer) + ", gathering up to " + std::to_string(limit) + " ranks");
      const NcclId id = NcclId::make();
      std::barrier all(ranks);
      int before = 0;
      on_ranks(ranks, [&](int rank) {
        fake_nccl::set_host_id("host " + std::to_string(rank));
        Queue queue = Queue::cuda(0);
        step_test::Step step(parse_layer(layer), queue, nccl(id, rank, ranks, queue, gathering(limit)));
        step.run();  // in which NCCL connects
        queue.wait();
        all.arrive_and_wait();
        if (rank == 0) {
          cuda_emulation::reset();
          before = fake_nccl::collectives();
        }
        all.arrive_and_wait();
        step.run();
        all.arrive_and_wait();
        if (rank == 0) {
          EXPECT_EQ(cuda_emulation::launches(), static_cast<std::size_t>(ranks * directions * 2));
          EXPECT_EQ(cuda_emulation::host_waits(), 0u);
        }
        all.arrive_and_wait();
        queue.wait();
        all.arrive_and_wait();
        if (rank == 0) {
          EXPECT_EQ(fake_nccl::collectives() - before, ranks * directions * (limit == 1 ? 2 : 1));
        }
      });
    }
}

}  // namespace
}  // namespace allnorm::test
