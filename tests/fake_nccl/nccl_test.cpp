// Ranks over NCCL: what arrives, and how ranks find each other.
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <vector>

#include "exchange_cases.hpp"
#include "nccl_ranks.hpp"

namespace allnorm::test {
namespace {

// Numbers whose sum depends on the order of adding.
std::vector<double> values_of(int rank, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = (rank % 2 == 0 ? 1e16 : -1e16) / (rank + 1) + 1.0 / static_cast<double>(3 + i) + rank;
  return values;
}
std::vector<double> sum_in_rank_order(int ranks, std::size_t count) {
  std::vector<double> sum(count, 0.0);
  for (int rank = 0; rank < ranks; ++rank) {
    const auto values = values_of(rank, count);
    for (std::size_t i = 0; i < count; ++i) sum[i] += values[i];
  }
  return sum;
}
// ---- what arrives ---------------------------------------------------------------------------------------------------

TEST_F(Nccl, GathersRecordsInRankOrderWithTheBitsOfThreads) {
  constexpr std::size_t count = 37;
  for (const int ranks : {1, 2, 3, 5}) {
    std::vector<double> by_threads;
    harness::run(ranks, [&](const harness::World& world, Queue& queue) {
      auto sum = world->exchange({Header("bn", Direction::forward, 0), values_of(world->rank(), count), 0, {}}, queue);
      if (world->rank() == 0) by_threads = sum.payload;
    });
    on_nccl_ranks(ranks, gathering(), [&](const Group& group, Queue& queue) {
      DeviceRecord record(group->room(count, queue), count, queue);
      for (std::uint64_t call = 0; call < 3; ++call) {
        record.write(Header("bn", Direction::forward, call), values_of(group->rank(), count), queue,
                     static_cast<std::uint64_t>(group->rank()));
        const Gathered gathered = group->gather(record.view(), queue);
        ASSERT_EQ(gathered.sums, nullptr);
        ASSERT_EQ(gathered.ranks, ranks);
        const Received result = received(gathered, count, queue);
        EXPECT_EQ(result.sum, by_threads);
        EXPECT_EQ(result.sum, sum_in_rank_order(ranks, count));
        for (std::size_t rank = 0; rank < result.heads.size(); ++rank) {
          EXPECT_EQ(result.heads[rank].header, Header("bn", Direction::forward, call));
          EXPECT_EQ(result.heads[rank].flags, rank);
          EXPECT_EQ(result.heads[rank].count, count);
        }
      }
      EXPECT_EQ(group->traffic().exchanges, 3u);
      EXPECT_EQ(group->traffic().bytes, 3 * count * sizeof(double));
    });
  }
}

TEST_F(Nccl, BeyondTheLimitHeadsAreGatheredAndDoublesAdded) {
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{100}})
    on_nccl_ranks(5, gathering(2), [&](const Group& group, Queue& queue) {
      DeviceRecord record(group->room(count, queue), count, queue);
      record.write(Header("bn", Direction::forward, 7), whole_numbers(group->rank(), count), queue);
      const Gathered gathered = group->gather(record.view(), queue);
      ASSERT_NE(gathered.sums, nullptr);
      const Received result = received(gathered, count, queue);
      ASSERT_EQ(result.heads.size(), 5u);
      for (const RecordHead& head : result.heads) EXPECT_EQ(head.header, Header("bn", Direction::forward, 7));
      for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(result.sum[i], 15.0 * static_cast<double>(i + 1));
    });
}

TEST_F(Nccl, TheHostDoesNotWait) {
  constexpr std::size_t count = 8;
  std::atomic<int> ahead{0};
  on_nccl_ranks(2, gathering(), [&](const Group& group, Queue& queue) {
    DeviceRecord record(group->room(count, queue), count, queue);
    record.write(Header("bn", Direction::forward, 0), values_of(group->rank(), count), queue);
    group->gather(record.view(), queue);  // connects
    queue.wait();
    ++ahead;
    while (ahead < 2) std::this_thread::yield();
    if (group->rank() == 1)  // comes when rank 0's host has gone through all of its calls
      while (ahead < 3) std::this_thread::yield();
    for (int call = 0; call < 10; ++call) group->gather(record.view(), queue);
    if (group->rank() == 0) ++ahead;
    queue.wait();
  });
  EXPECT_EQ(fake_nccl::collectives(), 22);
}

TEST_F(Nccl, AGatherIsCapturedAndReplayed) {
  constexpr std::size_t count = 5;
  for (const int limit : {32, 1})
    on_nccl_ranks(2, gathering(limit), [&](const Group& group, Queue& queue) {
      DeviceRecord record(group->room(count, queue), count, queue);
      record.write(Header("bn", Direction::forward, 0), whole_numbers(group->rank(), count), queue);
      group->gather(record.view(), queue);  // connects
      queue.wait();
      const cudaStream_t stream = stream_of_queue(queue);
      ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
      const Gathered gathered = group->gather(record.view(), queue);
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t replayed = nullptr;
      ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
      ASSERT_EQ(cudaGraphInstantiate(&replayed, graph, 0), cudaSuccess);
      for (std::uint64_t call = 1; call < 4; ++call) {
        auto values = whole_numbers(group->rank(), count);
        for (double& value : values) value *= static_cast<double>(call);
        record.write(Header("bn", Direction::forward, call), values, queue);
        ASSERT_EQ(cudaGraphLaunch(replayed, stream), cudaSuccess);
        const Received result = received(gathered, count, queue);
        EXPECT_EQ(result.heads[1].header, Header("bn", Direction::forward, call));
        for (std::size_t i = 0; i < count; ++i)
          EXPECT_EQ(result.sum[i], 3.0 * static_cast<double>(call) * static_cast<double>(i + 1));
      }
      ASSERT_EQ(cudaGraphExecDestroy(replayed), cudaSuccess);
      ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    });
}

// ---- exchanges that the host waits for: what every transport must do
// --------------------------------------------------

TEST_F(Nccl, HostExchangesSumExactly) {
  for (const int limit : {32, 1}) on_nccl_ranks(3, gathering(limit), exchange_cases::sums_are_exact);
}
TEST_F(Nccl, HostExchangesSumInRankOrder) { on_nccl_ranks(3, gathering(), exchange_cases::sums_are_in_rank_order); }
TEST_F(Nccl, HostExchangesMergeMoments) {
  for (const int limit : {32, 1}) on_nccl_ranks(3, gathering(limit), exchange_cases::moments_are_merged);
}
TEST_F(Nccl, HostExchangesOverlap) {
  for (const int limit : {32, 1}) on_nccl_ranks(4, gathering(limit), exchange_cases::exchanges_overlap);
}
TEST_F(Nccl, SplitsAreIndependent) { on_nccl_ranks(4, gathering(), exchange_cases::splits_are_independent); }
TEST_F(Nccl, HostExchangesNameMismatches) { on_nccl_ranks(3, gathering(), exchange_cases::mismatches_are_named); }

TEST_F(Nccl, AHostExchangeBeforeAGatherKeepsTheOrderOfAllRanks) {
  constexpr std::size_t count = 4;
  on_nccl_ranks(2, gathering(), [&](const Group& group, Queue& queue) {
    DeviceRecord record(group->room(count, queue), count, queue);
    record.write(Header("bn", Direction::forward, 0), whole_numbers(group->rank(), count), queue);
    Pending pending = group->start_exchange({Header("stop", Direction::agreement, 0), {1.0}, 0, {}}, queue);
    std::vector<double> sum;
    if (group->rank() == 1) sum = pending.wait().payload;  // rank 1 before, rank 0 after
    const Received result = received(group->gather(record.view(), queue), count, queue);
    EXPECT_EQ(result.sum[3], 12.0);
    if (group->rank() == 0) sum = pending.wait().payload;
    EXPECT_EQ(sum, std::vector<double>{2.0});
  });
}

TEST_F(Nccl, AHostExchangeCannotBeCaptured) {
  on_nccl_ranks(1, gathering(), [&](const Group& group, Queue& queue) {
    const cudaStream_t stream = stream_of_queue(queue);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    EXPECT_EQ(error_of([&] {
                group->start_exchange({Header("stop", Direction::agreement, 0), {}, 0, {}}, queue);
              }),
              "unsupported: an exchange that the host waits for cannot be captured in a graph");
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  });
}

// ---- how ranks find each other
// ----------------------------------------------------------------------------------------

TEST_F(Nccl, IdsAreMadeAnewAndTravelWhole) {
  EXPECT_NE(NcclId::make(), NcclId::make());
  harness::run(3, [](const harness::World& world, Queue&) {  // every bit: the ranks would not meet otherwise
    fake_nccl::set_host_id("host " + std::to_string(world->rank()));
    Queue queue = Queue::cuda(0);
    expect_group(nccl_over(world, queue), world->rank(), 3, queue);
  });
}

TEST_F(Nccl, RanksMeetOverTcp) {
  const Meeting meeting{"localhost", harness::free_port(), 0, 3, "a run"};
  on_ranks(3, [&](int rank) {
    fake_nccl::set_host_id("host " + std::to_string(rank));
    Queue queue = Queue::cuda(0);
    Meeting own = meeting;
    own.rank = rank;
    expect_group(nccl_over(own, queue), rank, 3, queue);
  });
}

TEST_F(Nccl, RanksMeetInAFile) {
  const std::string path = testing::TempDir() + "nccl_id_" + std::to_string(::getpid());
  on_ranks(3, [&](int rank) {
    fake_nccl::set_host_id("host " + std::to_string(rank));
    Queue queue = Queue::cuda(0);
    expect_group(nccl_over(path, "a run", rank, 3, queue), rank, 3, queue);
  });
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(Nccl, TheCallersCommunicatorIsUsedAndLeft) {
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  on_ranks(2, [&](int rank) {
    Queue queue = Queue::cuda(rank);
    ASSERT_EQ(cudaSetDevice(rank), cudaSuccess);
    ncclComm_t comm = nullptr;
    ASSERT_EQ(ncclCommInitRank(&comm, 2, id, rank), ncclSuccess);
    expect_group(nccl(comm, queue), rank, 2, queue);
    Queue other = Queue::cuda(1 - rank);
    EXPECT_EQ(error_of([&] { nccl(comm, other); }),
              "invalid argument: the queue is on cuda:" + std::to_string(1 - rank) +
                  ", must be on cuda:" + std::to_string(rank) + " as the NCCL communicator");
    EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);
  });
}

TEST_F(Nccl, TwoRanksOnOneGpuAreRefused) {
  const NcclId id = NcclId::make();
  on_ranks(2, [&](int rank) {
    Queue queue = Queue::cuda(0);
    EXPECT_EQ(error_of([&] { nccl(id, rank, 2, queue); }),
              "transport: NCCL's communicator of 2 ranks on rank " + std::to_string(rank) +
                  " failed: invalid usage: ranks must each have a GPU of their own or an NCCL_HOSTID of their own");
  });
}

TEST_F(Nccl, WrongArgumentsAreNamed) {
  Queue cpu = Queue::cpu(), queue = Queue::cuda(0);
  EXPECT_EQ(error_of([&] { nccl(NcclId{}, 0, 1, cpu); }),
            "invalid argument: the queue of an NCCL group is on cpu, must be on a GPU");
  EXPECT_EQ(error_of([&] { nccl(NcclId{}, 2, 2, queue); }),
            "invalid argument: rank is 2 of 2, must be from 0 to ranks - 1");
  EXPECT_EQ(error_of([&] { nccl(nullptr, queue); }),
            "invalid argument: the NCCL communicator is null, must be an ncclComm_t");
}

}  // namespace
}  // namespace allnorm::test
