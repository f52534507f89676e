// Layers over NCCL: what a call costs.
#include <barrier>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "far_cases.hpp"
#include "gpu/operation_step.hpp"
#include "nccl_ranks.hpp"
#include "norm_cases.hpp"
#include "switchable_cases.hpp"

namespace allnorm::test {
namespace {

// Per direction: a launch that makes the record, a collective (beyond the gathering limit one for the heads and one for
// the sums), and a launch that reads what came. There forward adds in two rounds, with a launch before, between and
// after them.
TEST_F(Nccl, ALayerTakesTwoLaunchesPerDirectionAndTheHostDoesNotWait) {
  constexpr int ranks = 2;
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
          EXPECT_EQ(cuda_emulation::launches(), static_cast<std::size_t>(ranks * (limit == 1 ? 5 + 2 : 2 + 2)));
          EXPECT_EQ(cuda_emulation::host_waits(), 0u);
        }
        all.arrive_and_wait();
        queue.wait();
        all.arrive_and_wait();
        if (rank == 0) {
          EXPECT_EQ(fake_nccl::collectives() - before, ranks * (limit == 1 ? 3 + 2 : 1 + 1));
        }
      });
    }
}

// On the GPU whose memory backend.hpp gives.
void on_one_gpu(int ranks, int limit, const std::function<void(const Group&, Queue&)>& body) {
  const NcclId id = NcclId::make();
  on_ranks(ranks, [&](int rank) {
    fake_nccl::set_host_id("host " + std::to_string(rank));
    Queue queue = Queue::cuda(0);
    body(nccl(id, rank, ranks, queue, gathering(limit)), queue);
  });
}

TEST_F(Nccl, FarFromZeroRanksAreOneRank) {
  ::setenv("CUDA_MODULE_LOADING", "EAGER", 1);  // for the ranks as threads that it is compared with
  const auto check = [](int ranks, int limit, DType dtype) {
    std::vector<far_cases::Trace> traces(static_cast<std::size_t>(ranks));
    on_one_gpu(ranks, limit, [&](const Group& group, Queue& queue) {
      traces[static_cast<std::size_t>(group->rank())] = far_cases::check(dtype, group, queue);
    });
    if (limit < ranks) return;
    harness::run(ranks, [&](const harness::World& world, Queue& queue) {
      EXPECT_EQ(far_cases::check(dtype, world, queue), traces[static_cast<std::size_t>(world->rank())]);
    });
  };
  check(3, 32, DType::f64);
  check(2, 1, DType::f64);
  check(5, 1, DType::f64);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) check(3, 1, dtype);
}

TEST_F(Nccl, CompositionsEqualTheOracleBeyondTheLimit) {
  const std::set<std::string> some{"BnCumulativeNoSpace", "Everything", "EverythingFarFromZero"};
  for (const auto& [name, composition] : norm_cases::compositions()) {
    if (some.count(name) == 0) continue;
    SCOPED_TRACE(name);
    on_one_gpu(3, 1, [&, &c = composition](const Group& group, Queue& queue) { norm_cases::check(c, group, queue); });
  }
}

TEST_F(Nccl, MixedStatisticsAreThoseOfTheLoops) {
  using namespace switchable_cases;
  const Batch batch({{0, 3, 4}, {2, 3, 5, 2}, {1, 3, 1}}, {}, DType::f64);
  for (const bool training : {true, false}) {
    const Samples samples({0, 4, 2}, {.training = training}, DType::f32);
    for (const int limit : {32, 1}) {
      SCOPED_TRACE(std::string(training ? "training" : "inference") + ", gathering up to " + std::to_string(limit));
      std::vector<Arrays> shares(3);
      on_one_gpu(3, limit, [&](const Group& group, Queue&) { batch.expect_calls(group); });
      on_one_gpu(3, limit, [&](const Group& group, Queue&) {
        shares[static_cast<std::size_t>(group->rank())] = samples.expect_calls(group);
      });
      samples.expect_sums(shares);
    }
  }
}

// Steps that mix statistics are launches of their own; nothing on the host waits between them.
TEST_F(Nccl, TheHostDoesNotWaitForMixedStatistics) {
  for (const char* layer : {"switchable_norm", "switchable_norm:shard=space"}) {
    SCOPED_TRACE(layer);
    std::barrier all(2);
    on_one_gpu(2, 32, [&](const Group& group, Queue& queue) {
      step_test::OperationStep step(parse_layer(layer), queue, group);
      step.run();  // in which NCCL connects
      queue.wait();
      all.arrive_and_wait();
      if (group->rank() == 0) cuda_emulation::reset();
      all.arrive_and_wait();
      step.run();
      all.arrive_and_wait();
      if (group->rank() == 0) {
        EXPECT_EQ(cuda_emulation::host_waits(), 0u);
      }
      all.arrive_and_wait();
      queue.wait();
      all.arrive_and_wait();
    });
  }
}

}  // namespace
}  // namespace allnorm::test
