// Ranks over NCCL: what arrives, how ranks find each other, and what is said when one is wrong, late or gone.
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "allnorm/nccl.hpp"
#include "cuda_emulation.hpp"
#include "exchange_cases.hpp"
#include "fake_nccl.hpp"
#include "gpu/records.hpp"
#include "harness.hpp"

namespace allnorm::test {
namespace {

using harness::error_of;
using Group = std::shared_ptr<Communicator>;

// Ranks share the emulated GPUs: each counts as a host of its own.
void on_nccl_ranks(int ranks, const Patience& patience, const std::function<void(const Group&, Queue&)>& body) {
  const NcclId id = NcclId::make();
  on_ranks(ranks, [&](int rank) {
    fake_nccl::set_host_id("host " + std::to_string(rank));
    Queue queue = Queue::cuda(rank % cuda_devices());
    body(nccl(id, rank, ranks, queue, patience), queue);
  });
}

Patience gathering(int limit = 32) {
  Patience patience;
  patience.gather_limit = limit;
  return patience;
}

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
std::vector<double> whole_numbers(int rank, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<double>(rank + 1) * static_cast<double>(i + 1);
  return values;
}

class Nccl : public testing::Test {
 protected:
  void SetUp() override {
    cuda_emulation::reset();
    fake_nccl::reset();
  }
  void TearDown() override {
    EXPECT_EQ(fake_nccl::living(), 0);
    EXPECT_EQ(fake_nccl::misuses(), 0);
  }
};

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

void expect_group(const Group& group, int rank, int ranks, Queue& queue) {
  EXPECT_EQ(group->rank(), rank);
  EXPECT_EQ(group->size(), ranks);
  EXPECT_EQ(group->transport(), "nccl");
  const Message sum = group->exchange({Header("met", Direction::agreement, 0), {1.0 + rank}, 0, {}}, queue);
  EXPECT_EQ(sum.payload, std::vector<double>{ranks * (ranks + 1) / 2.0});
}

TEST_F(Nccl, IdsAreMadeAnewAndTravelWhole) {
  EXPECT_NE(NcclId::make(), NcclId::make());
  harness::run(3, [](const harness::World& world, Queue&) {  // every bit: the ranks would not meet otherwise
    fake_nccl::set_host_id("host " + std::to_string(world->rank()));
    Queue queue = Queue::cuda(0);
    expect_group(nccl_over(world, queue), world->rank(), 3, queue);
  });
}

TEST_F(Nccl, RanksMeetOverTcp) {
  const Meeting meeting{"localhost", 20000 + ::getpid() % 20000, 0, 3, "a run"};
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
              "transport: NCCL's communicator of rank " + std::to_string(rank) + " of 2 failed: invalid usage");
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

// ---- what goes wrong
// --------------------------------------------------------------------------------------------------

TEST_F(Nccl, AMismatchThatKernelsFindIsNamedOnceAndTheGroupGoesOn) {
  on_nccl_ranks(2, gathering(), [&](const Group& group, Queue& queue) {
    ExchangeReport& report = *group->reporter().report;
    report.first.header = report.other.header = Header("bn1", Direction::forward, 4);
    report.first.header.set(Field::eps, 1e-5);
    report.other.header.set(Field::eps, 1e-3);
    report.rank = 1;
    report.status = ExchangeReport::mismatch;
    EXPECT_EQ(error_of([&] { group->check(); }),
              "mismatch: rank 1: bn1, call 4, forward: eps is 0.001, must be 1e-05 as on rank 0");
    EXPECT_EQ(error_of([&] { group->check(); }), "");
    report.other.header = report.first.header;
    report.first.count = 65;
    report.other.count = 129;
    report.status = ExchangeReport::mismatch;
    EXPECT_EQ(error_of([&] { group->check(); }),
              "mismatch: rank 1: bn1, call 4, forward: payload length is 129, must be 65 as on rank 0");
    report.status = ExchangeReport::weights_changed;
    EXPECT_EQ(
        error_of([&] { group->check(); }),
        "invalid argument: rank 1: conv_weight has changed within a batch of mini-batches, must be the same until "
        "the batch ends");
    expect_group(group, group->rank(), 2, queue);
  });
}

TEST_F(Nccl, ALateRankEndsTheGroupAtTheDeadline) {
  constexpr std::size_t count = 4;
  Patience patience;
  patience.timeout = 30;
  patience.now = [] {  // goes 100 times as fast as it should
    return 100 * std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  std::atomic<int> begun{0};
  on_nccl_ranks(3, patience, [&](const Group& group, Queue& queue) {
    DeviceRecord record(group->room(count, queue), count, queue);
    record.write(Header("bn", Direction::forward, 0), whole_numbers(group->rank(), count), queue);
    const auto exchange = [&] {
      report_begun(group->reporter(), queue);
      group->gather(record.view(), queue);
      report_done(group->reporter(), queue);
    };
    exchange();
    queue.wait();
    ++begun;
    if (group->rank() == 2) {  // comes for the first exchange only
      while (begun < 5) std::this_thread::yield();
      return;
    }
    while (begun < 3) std::this_thread::yield();
    exchange();
    EXPECT_EQ(found_by(*group), "timeout: exchange 2 is not done after 30 s: a rank is missing or late");
    EXPECT_EQ(error_of([&] { group->check(); }),
              "timeout: exchange 2 is not done after 30 s: a rank is missing or late");
    EXPECT_EQ(error_of([&] { group->gather(record.view(), queue); }),
              "timeout: exchange 2 is not done after 30 s: a rank is missing or late");
    queue.wait();  // the stream does not hang
    ++begun;
  });
}

TEST_F(Nccl, RecordsOfDifferentLengthsEndAtTheDeadline) {
  Patience patience;
  patience.first_timeout = patience.timeout = 0.25;
  on_nccl_ranks(2, patience, [&](const Group& group, Queue& queue) {
    const std::size_t count = group->rank() == 0 ? 4 : 6;
    DeviceRecord record(group->room(count, queue), count, queue);
    record.write(Header("bn", Direction::forward, 0), whole_numbers(group->rank(), count), queue);
    report_begun(group->reporter(), queue);
    group->gather(record.view(), queue);
    EXPECT_EQ(found_by(*group), "timeout: exchange 1 is not done after 0.25 s: a rank is missing or late");
    queue.wait();
  });
}

TEST_F(Nccl, AMissingRankIsNotConnectedFor) {
  Patience patience;
  patience.first_timeout = 0.1;
  Queue queue = Queue::cuda(0);
  EXPECT_EQ(error_of([&] { nccl(NcclId::make(), 0, 2, queue, patience); }),
            "timeout: NCCL's communicator of rank 0 of 2 is not connected after 0.1 s: a rank is missing or late");
}

TEST_F(Nccl, AHostExchangeEndsAtTheDeadline) {
  Patience patience;
  patience.first_timeout = 0.2;
  std::atomic<bool> over{false};
  on_nccl_ranks(2, patience, [&](const Group& group, Queue& queue) {
    if (group->rank() == 0) {
      EXPECT_EQ(error_of([&] {
                  group->exchange({Header("stop", Direction::agreement, 5), {}, 0, {}}, queue);
                }),
                "timeout: stop, call 5, agreement: a rank is missing or late, not done after 0.2 s");
      over = true;
    }
    while (!over) std::this_thread::yield();
  });
}

// A communicator of the caller's blocks the host until all ranks have begun their first collective.
TEST_F(Nccl, ACallThatDoesNotReturnIsAborted) {
  constexpr std::size_t count = 4;
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  Patience patience;
  patience.first_timeout = 0.2;
  std::atomic<bool> over{false};
  on_ranks(2, [&](int rank) {
    Queue queue = Queue::cuda(rank);
    ASSERT_EQ(cudaSetDevice(rank), cudaSuccess);
    ncclComm_t comm = nullptr;
    ASSERT_EQ(ncclCommInitRank(&comm, 2, id, rank), ncclSuccess);
    if (rank == 1) {
      while (!over) std::this_thread::yield();
      EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);
      return;
    }
    const Group group = nccl(comm, queue, patience);
    DeviceRecord record(group->room(count, queue), count, queue);
    EXPECT_EQ(error_of([&] { group->gather(record.view(), queue); }),
              "timeout: a call of NCCL does not return: a rank is missing or late");
    queue.wait();
    over = true;  // and the communicator is gone: it was aborted
  });
}

TEST_F(Nccl, AnErrorOfNcclSurfaces) {
  on_nccl_ranks(2, gathering(), [&](const Group& group, Queue& queue) {
    if (group->rank() == 1) {
      fake_nccl::fail_async(1, ncclRemoteError);
      EXPECT_EQ(found_by(*group),
                "transport: an exchange over NCCL failed: remote process exited or there was a network error");
      EXPECT_EQ(error_of([&] {
                  group->exchange({Header("stop", Direction::agreement, 5), {}, 0, {}}, queue);
                }).substr(0, 10),
                "transport:");
    }
  });
}

TEST_F(Nccl, AnAbortReachesPeersThatMetOverTcp) {
  constexpr std::size_t count = 4;
  const Meeting meeting{"localhost", 20000 + (::getpid() + 1) % 20000, 0, 3, "a run"};
  for (const bool declines : {true, false})
    on_ranks(3, [&](int rank) {
      fake_nccl::set_host_id("host " + std::to_string(rank));
      Queue queue = Queue::cuda(0);
      Meeting own = meeting;
      own.rank = rank;
      const Group group = nccl_over(own, queue);
      if (rank == 1) {
        const Error error(Code::invalid_argument, "eps is -1");
        declines ? group->decline(error) : group->abort(error);
      } else {
        DeviceRecord record(group->room(count, queue), count, queue);
        record.write(Header("bn", Direction::forward, 0), whole_numbers(rank, count), queue);
        try {
          group->gather(record.view(), queue);
        } catch (const Error& error) {  // where the news came first
          EXPECT_EQ(error.message(), "rank 1 failed: eps is -1");
        }
      }
      EXPECT_EQ(found_by(*group), "aborted: rank 1 failed: eps is -1");
      queue.wait();
    });
}

}  // namespace
}  // namespace allnorm::test
