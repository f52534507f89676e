// Ranks as threads that exchange records in GPU memory, on one GPU and, where there are more, on several.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "gpu/records.hpp"
#include "harness.hpp"
#include "src/transport/device_threads.hpp"

namespace allnorm::test {
namespace {

using harness::error_of;
using Hub = std::shared_ptr<DeviceHub>;

struct Rank {
  Hub hub;
  int rank, ranks;
  Queue& queue;
};
void on_hub(int ranks, int gpus, const Patience& patience, const std::function<void(const Rank&)>& body) {
  std::vector<std::string> names;
  for (int rank = 0; rank < ranks; ++rank) names.push_back("rank " + std::to_string(rank));
  const Hub hub = make_device_hub(names, patience);
  on_ranks(ranks, [&](int rank) {
    Queue queue = Queue::cuda(rank % gpus);
    body({hub, rank, ranks, queue});
    hub->leave(rank);
  });
}

std::vector<double> values_of(int rank, std::uint64_t call, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = (rank % 2 == 0 ? 1e16 : -1e16) / (rank + 1) + static_cast<double>(call) / static_cast<double>(3 + i);
  return values;
}
std::vector<double> sum_in_rank_order(int ranks, std::uint64_t call, std::size_t count) {
  std::vector<double> sum(count, 0.0);
  for (int rank = 0; rank < ranks; ++rank) {
    const auto values = values_of(rank, call, count);
    for (std::size_t i = 0; i < count; ++i) sum[i] += values[i];
  }
  return sum;
}

std::string error_found(const Rank& r) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  std::string error;
  while (error.empty() && std::chrono::steady_clock::now() < end) {
    error = error_of([&] { r.hub->check(r.rank); });
    std::this_thread::yield();
  }
  return error;
}

void expect_sums(const Rank& r, std::uint64_t call, std::size_t count) {
  DeviceRecord record(0, count, r.queue);
  record.write(Header("bn", Direction::forward, call), values_of(r.rank, call, count), r.queue,
               static_cast<std::uint64_t>(r.rank));
  const Received result = received(r.hub->gather(r.rank, record.view(), r.queue), count, r.queue);
  EXPECT_EQ(result.sum, sum_in_rank_order(r.ranks, call, count));
  ASSERT_EQ(result.heads.size(), static_cast<std::size_t>(r.ranks));
  for (std::size_t rank = 0; rank < result.heads.size(); ++rank) {
    EXPECT_EQ(result.heads[rank].header, Header("bn", Direction::forward, call));
    EXPECT_EQ(result.heads[rank].flags, rank);
    EXPECT_EQ(result.heads[rank].count, count);
  }
}

TEST(DeviceThreads, RecordsOfAllRanksAreReadInRankOrder) {
  for (const int ranks : {1, 2, 3, 7})
    on_hub(ranks, 1, {}, [](const Rank& r) {
      for (std::uint64_t call = 0; call < 5; ++call) expect_sums(r, call, 37);
    });
}

TEST(DeviceThreads, RanksOnSeveralGpusReadTheirOwn) {
  if (cuda_devices() < 2) GTEST_SKIP() << "this machine has one GPU, must have two";
  on_hub(5, 2, {}, [](const Rank& r) {
    for (std::uint64_t call = 0; call < 5; ++call) expect_sums(r, call, 37);
  });
}

TEST(DeviceThreads, RecordsGrowAndShrink) {
  on_hub(3, 1, {}, [](const Rank& r) {
    std::uint64_t call = 0;
    for (const std::size_t count : {1, 0, 50, 51, 20000, 3, 60000, 1}) expect_sums(r, call++, count);
  });
}

// Each rank has many exchanges enqueued before another begins; every result is copied away in the stream's order, so a
// slot that is written over too early shows.
TEST(DeviceThreads, HostsRunAheadOfEachOther) {
  constexpr std::size_t count = 64;
  constexpr std::uint64_t calls = 40;
  std::atomic<int> through{0};
  on_hub(3, 1, {}, [&](const Rank& r) {
    expect_sums(r, 0, count);  // the one call in which hosts wait
    const std::size_t stride = sizeof(RecordHead) + count * sizeof(double);
    std::vector<DeviceRecord> records;  // all written before: a copy from the host may wait for the stream
    for (std::uint64_t call = 0; call < calls; ++call) {
      records.emplace_back(0, count, r.queue);
      records.back().write(Header("bn", Direction::forward, call), values_of(r.rank, call, count), r.queue);
    }
    Buffer<std::byte> kept(calls * 3 * stride, r.queue);
    r.queue.wait();
    while (through < r.rank) std::this_thread::yield();
    for (std::uint64_t call = 0; call < calls; ++call) {
      const Gathered all = r.hub->gather(r.rank, records[call].view(), r.queue);
      for (std::size_t rank = 0; rank < 3; ++rank)
        copy_on_device(kept.data() + (call * 3 + rank) * stride, all.records + rank * all.stride, stride, r.queue);
    }
    ++through;
    for (std::uint64_t call = 0; call < calls; ++call) {
      const Gathered all{kept.data() + call * 3 * stride, stride, 3, nullptr};
      EXPECT_EQ(received(all, count, r.queue).sum, sum_in_rank_order(3, call, count)) << call;
    }
  });
}

TEST(DeviceThreads, OtherLengthsAreToldByTheHeads) {
  for (const std::size_t odd : {2u, 5u, 5000u})  // shorter, longer but within the slot or not, beyond it
    on_hub(3, 1, {}, [odd](const Rank& r) {
      expect_sums(r, 0, 4);
      const std::size_t count = r.rank == 1 ? odd : 4;
      DeviceRecord record(0, count, r.queue);
      record.write(Header("bn", Direction::forward, 1), std::vector<double>(count, 1.0), r.queue);
      const Received result = received(r.hub->gather(r.rank, record.view(), r.queue), count, r.queue);
      for (std::size_t rank = 0; rank < 3; ++rank) {
        EXPECT_EQ(result.heads[rank].header, Header("bn", Direction::forward, 1));
        EXPECT_EQ(result.heads[rank].count, rank == 1 ? odd : 4);
      }
      expect_sums(r, 2, 4);  // the group goes on
    });
}

TEST(DeviceThreads, ARankMayChangeItsQueue) {
  on_hub(2, 1, {}, [](const Rank& r) {
    expect_sums(r, 0, 10);
    Queue other = Queue::cuda(0);
    for (std::uint64_t call = 1; call < 4; ++call)
      expect_sums({r.hub, r.rank, 2, call % 2 == 1 ? other : r.queue}, call, 10);
    expect_sums(r, 4, 10);
  });
}

TEST(DeviceThreads, AMismatchThatKernelsFindIsNamedToThatRankOnce) {
  on_hub(2, 1, {}, [](const Rank& r) {
    if (r.rank == 1) return;
    ExchangeReport& report = *r.hub->reporter(0).report;
    report.first.header = report.other.header = Header("bn1", Direction::forward, 4);
    report.other.header.set(Field::channels, std::uint64_t{3});
    report.rank = 1;
    report.status = ExchangeReport::mismatch;
    EXPECT_EQ(error_of([&] { r.hub->check(0); }),
              "mismatch: rank 1: bn1, call 4, forward: number of channels is 3, must be 0 as on rank 0");
    EXPECT_EQ(error_of([&] { r.hub->check(0); }), "");
    report.other = RecordHead(Header("bn1", Direction::forward, 4), "weight is wrong");
    report.status = ExchangeReport::declined;
    EXPECT_EQ(error_of([&] { r.hub->check(0); }), "aborted: rank 1 failed: weight is wrong");
    EXPECT_EQ(error_of([&] { r.hub->check(0); }), "");
  });
}

TEST(DeviceThreads, ALateRankIsNamedAndNoStreamHangs) {
  Patience patience;
  patience.timeout = 0.3;
  std::atomic<int> over{0};
  on_hub(3, 1, patience, [&](const Rank& r) {
    const auto exchange = [&](std::uint64_t call) {
      DeviceRecord record(0, 4, r.queue);
      record.write(Header("bn", Direction::forward, call), {1, 2, 3, 4}, r.queue);
      report_begun(r.hub->reporter(r.rank), r.queue);
      r.hub->gather(r.rank, record.view(), r.queue);
      report_done(r.hub->reporter(r.rank), r.queue);
    };
    exchange(0);
    if (r.rank == 1) {  // comes for the first exchange only
      while (over < 2) std::this_thread::yield();
    } else {
      exchange(1);
      r.queue.wait();
      ++over;
    }
    EXPECT_EQ(error_found(r), "timeout: exchange 2 is not done after 0.3 s: rank 1 is missing or late");
    EXPECT_EQ(error_of([&] { exchange(2); }), "timeout: exchange 2 is not done after 0.3 s: rank 1 is missing or late");
  });
}

TEST(DeviceThreads, ARankThatNeverComesIsNamed) {
  Patience patience;
  patience.first_timeout = 0.2;
  on_hub(3, 1, patience, [](const Rank& r) {
    if (r.rank == 2) return;
    DeviceRecord record(0, 4, r.queue);
    EXPECT_EQ(error_of([&] { r.hub->gather(r.rank, record.view(), r.queue); }),
              "timeout: exchange 1: rank 2 is missing, not done after 0.2 s");
  });
}

TEST(DeviceThreads, AnAbortReleasesStreamsThatWait) {
  std::barrier done(3);  // after an abort nothing keeps a rank from writing over what others still read
  on_hub(3, 1, {}, [&done](const Rank& r) {
    expect_sums(r, 0, 4);
    done.arrive_and_wait();
    if (r.rank == 1) {
      r.hub->abort("rank 1 failed: eps is -1");
    } else {
      DeviceRecord record(0, 4, r.queue);
      try {
        for (int ahead = 0; ahead < 3; ++ahead) r.hub->gather(r.rank, record.view(), r.queue);
      } catch (const Error& error) {  // where the news came first
        EXPECT_EQ(error.message(), "rank 1 failed: eps is -1");
      }
      r.queue.wait();
    }
    EXPECT_EQ(error_found(r), "aborted: rank 1 failed: eps is -1");
  });
}

TEST(DeviceThreads, LazyLoadingOfKernelsIsRefused) {
#if ALLNORM_CUDA_EMULATED  // the driver reads its environment once
  ::setenv("CUDA_MODULE_LOADING", "LAZY", 1);
  EXPECT_NE(error_of([] {
              make_device_hub({"rank 0", "rank 1"}, {});
            }).find("set CUDA_MODULE_LOADING=EAGER"),
            std::string::npos);
  ::setenv("CUDA_MODULE_LOADING", "EAGER", 1);
  EXPECT_EQ(error_of([] { make_device_hub({"rank 0", "rank 1"}, {}); }), "");
#else
  GTEST_SKIP() << "the driver reads CUDA_MODULE_LOADING once";
#endif
}

TEST(DeviceThreads, CaptureIsRefused) {
  on_hub(1, 1, {}, [](const Rank& r) {
    DeviceRecord record(0, 4, r.queue);
    const cudaStream_t stream = stream_of_queue(r.queue);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    EXPECT_EQ(error_of([&] { r.hub->gather(0, record.view(), r.queue); }),
              "unsupported: ranks as threads of one GPU cannot be captured in a graph");
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  });
}

TEST(DeviceThreads, MoreRanksThanConnectionsAreRefused) {
  ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "2", 1);
  on_hub(3, 1, {}, [](const Rank& r) {
    DeviceRecord record(0, 4, r.queue);
    EXPECT_EQ(
        error_of([&] { r.hub->gather(r.rank, record.view(), r.queue); }),
        "unsupported: 3 ranks share cuda:0, must be at most 2: CUDA_DEVICE_MAX_CONNECTIONS (up to 32) allows more");
  });
  ::unsetenv("CUDA_DEVICE_MAX_CONNECTIONS");
}

}  // namespace
}  // namespace allnorm::test
