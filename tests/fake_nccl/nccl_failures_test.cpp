// Ranks over NCCL: what is said, and that nothing hangs, when one is wrong, late or gone.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "nccl_ranks.hpp"

namespace allnorm::test {
namespace {

// ---- what goes wrong
// --------------------------------------------------------------------------------------------------

TEST_F(Nccl, AMismatchThatKernelsFindIsNamedOnceAndTheGroupGoesOn) {
  on_nccl_ranks(2, gathering(), [&](const Group& group, Queue& queue) {
    ExchangeReport& report = *group->reporter(queue).report;
    report.first.header = report.other.header = Header("bn1", Direction::forward, 4);
    write_layer(Layer("batch_norm"), report.first.header);
    write_layer(parse_layer("batch_norm:eps=1e-3"), report.other.header);
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
      report_begun(group->reporter(queue), queue);
      group->gather(record.view(), queue);
      report_done(group->reporter(queue), queue);
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

// By the watcher, of every rank that waits, under its number among all; in a group too, whose first two are to speak.
TEST_F(Nccl, ALateRankIsWarnedOfAndReported) {
  constexpr std::size_t count = 4;
  std::mutex mutex;
  std::vector<LateReport> warnings, reports;
  const auto into = [&mutex](std::vector<LateReport>& all) {
    return [&mutex, &all](const LateReport& late) {
      const std::lock_guard lock(mutex);
      all.push_back(late);
    };
  };
  Patience patience;
  patience.timeout = 2;
  patience.warn = into(warnings);
  patience.report = into(reports);
  std::atomic<int> over{0};
  on_nccl_ranks(5, patience, [&](const Group& world, Queue& queue) {
    const Group group = world->split(world->rank() < 2 ? 0 : 1, queue);
    DeviceRecord record(group->room(count, queue), count, queue);
    record.write(Header("bn", Direction::forward, 0), whole_numbers(group->rank(), count), queue);
    const auto exchange = [&] {
      report_begun(group->reporter(queue), queue);
      group->gather(record.view(), queue);
      report_done(group->reporter(queue), queue);
    };
    exchange();
    queue.wait();
    if (world->rank() > 2) {
      exchange();
      EXPECT_EQ(found_by(*group), "timeout: exchange 2 is not done after 2 s: a rank is missing or late");
      queue.wait();
      ++over;
    }
    while (over < 2) std::this_thread::yield();
  });
  ASSERT_EQ(warnings.size(), 2u);
  ASSERT_EQ(reports.size(), 2u);
  for (auto* all : {&warnings, &reports}) {
    std::sort(all->begin(), all->end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
    EXPECT_EQ((*all)[0].rank, 3);
    EXPECT_EQ((*all)[1].rank, 4);
    EXPECT_TRUE((*all)[0].speaks);  // the second of its group
    EXPECT_FALSE((*all)[1].speaks);
    for (const LateReport& late : *all) EXPECT_TRUE(late.ranks.empty());  // nobody can be asked
  }
  for (const LateReport& late : warnings)
    EXPECT_EQ(late.line, "exchange 2 is not done after 1 s: a rank is missing or late, of 2 s");
  for (const LateReport& late : reports)
    EXPECT_EQ(late.line, "exchange 2 is not done after 2 s: a rank is missing or late");
}

TEST_F(Nccl, RecordsOfDifferentLengthsEndAtTheDeadline) {
  Patience patience;
  patience.first_timeout = patience.timeout = 0.25;
  on_nccl_ranks(2, patience, [&](const Group& group, Queue& queue) {
    const std::size_t count = group->rank() == 0 ? 4 : 6;
    DeviceRecord record(group->room(count, queue), count, queue);
    record.write(Header("bn", Direction::forward, 0), whole_numbers(group->rank(), count), queue);
    report_begun(group->reporter(queue), queue);
    group->gather(record.view(), queue);
    EXPECT_EQ(found_by(*group), "timeout: exchange 1 is not done after 0.25 s: a rank is missing or late");
    queue.wait();
  });
}

TEST_F(Nccl, AMissingRankIsNotConnectedFor) {
  Patience patience;
  patience.first_timeout = 0.1;
  Queue queue = Queue::cuda(0);
  EXPECT_EQ(
      error_of([&] { nccl(NcclId::make(), 0, 2, queue, patience); }),
      "timeout: NCCL's communicator of 2 ranks on rank 0 is not connected after 0.1 s: a rank is missing or late");
}

TEST_F(Nccl, AHostExchangeEndsAtTheDeadline) {
  Patience patience;
  patience.first_timeout = 0.2;
  std::string reported;
  patience.report = [&](const LateReport& late) { reported += late.line; };
  std::atomic<bool> over{false};
  on_nccl_ranks(2, patience, [&](const Group& group, Queue& queue) {
    if (group->rank() == 0) {
      const std::string line = "stop, call 5, agreement: a rank is missing or late, not done after 0.2 s";
      EXPECT_EQ(error_of([&] {
                  group->exchange({Header("stop", Direction::agreement, 5), {}, 0, {}}, queue);
                }),
                "timeout: " + line);
      EXPECT_EQ(reported, line);
      over = true;
    }
    while (!over) std::this_thread::yield();
  });
}

TEST_F(Nccl, AGroupThatEndsFinishesItsHostExchanges) {
  on_nccl_ranks(2, gathering(), [&](const Group& group, Queue& queue) {
    if (group->rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    Pending pending = group->start_exchange({Header("stop", Direction::agreement, 0), {1.0}, 0, {}}, queue);
    if (group->rank() == 1) {
      EXPECT_EQ(pending.wait().payload, std::vector<double>{2.0});
    }
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
  for (const bool declines : {true, false}) {
    const Meeting meeting{"localhost", harness::free_port(), 0, 3, "a run"};
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
}

}  // namespace
}  // namespace allnorm::test
