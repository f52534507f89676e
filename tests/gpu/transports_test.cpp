// Communicators of the host with queues on a GPU: ranks as threads go over to GPU memory, a lone rank has reports.
#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "far_cases.hpp"
#include "gpu/records.hpp"
#include "gpu/step_support.hpp"
#include "harness.hpp"

namespace allnorm::test {
namespace {

using harness::error_of;
using World = std::shared_ptr<Communicator>;

struct Rank {
  World world;
  int rank, ranks;
  Queue& queue;
};
void on_threads(int ranks, const Patience& patience, const std::function<void(const Rank&)>& body) {
  const auto worlds = threads(ranks, patience);
  on_ranks(ranks, [&](int rank) {
    Queue queue = Queue::cuda(0);
    body({worlds[static_cast<std::size_t>(rank)], rank, ranks, queue});
  });
}

std::vector<double> values_of(int rank, std::uint64_t call, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = (rank % 2 == 0 ? 1e16 : -1e16) / (rank + 1) + static_cast<double>(call) / static_cast<double>(3 + i);
  return values;
}

// What one exchange of this group gives; where it came from.
struct Answer {
  bool on_device = false;
  std::vector<double> sum{};
};
Answer exchange(Communicator& group, std::uint64_t call, const std::vector<double>& values, Queue& queue) {
  DeviceRecord record(group.room(values.size(), queue), values.size(), queue);
  record.write(Header("bn", Direction::forward, call), values, queue);
  const Gathered all = group.gather(record.view(), queue);
  if (all.sums == nullptr) return {true, received(all, values.size(), queue).sum};
  return {false, to_host(std::span<const double>(all.sums, values.size()), queue)};
}
// A call of all ranks: the sum in rank order, to the bit.
bool on_device(const Rank& r, std::uint64_t call, std::size_t count = 9) {
  const Answer answer = exchange(*r.world, call, values_of(r.rank, call, count), r.queue);
  std::vector<double> expected(count, 0.0);
  for (int rank = 0; rank < r.ranks; ++rank)
    for (std::size_t i = 0; i < count; ++i) expected[i] += values_of(rank, call, count)[i];
  EXPECT_EQ(answer.sum, expected);
  return answer.on_device;
}

TEST(ThreadsOnGpus, GoOverToGpuMemoryAfterOneExchangeThroughTheHost) {
  for (const int ranks : {2, 3, 7})
    on_threads(ranks, {}, [](const Rank& r) {
      EXPECT_EQ(r.world->reporter(r.queue).report, nullptr);
      EXPECT_FALSE(on_device(r, 0));
      for (std::uint64_t call = 1; call < 5; ++call) EXPECT_TRUE(on_device(r, call));
      EXPECT_NE(r.world->reporter(r.queue).report, nullptr);
      EXPECT_EQ(r.world->traffic().exchanges, 5u);
      EXPECT_EQ(r.world->traffic().bytes, 5u * 9u * sizeof(double));
      EXPECT_NO_THROW(r.world->check());
    });
}

TEST(ThreadsOnGpus, RecordsMayGrowAndMessagesOfTheHostMayComeBetween) {
  on_threads(3, {}, [](const Rank& r) {
    std::uint64_t call = 0;
    for (const std::size_t count : {1, 0, 70, 5000, 3}) {
      on_device(r, call++, count);
      const Message sum = r.world->exchange({Header("said", Direction::agreement, call), {1.0}, 0, {}}, r.queue);
      EXPECT_EQ(sum.payload[0], 3);
    }
  });
}

TEST(ThreadsOnGpus, TheHostDoesNotWaitForItsPeers) {
  std::atomic<bool> ahead{false};
  on_threads(2, {}, [&](const Rank& r) {
    on_device(r, 0);
    on_device(r, 1);
    DeviceRecord record(0, 1, r.queue);
    record.write(Header("bn", Direction::forward, 2), {1.0}, r.queue);
    r.queue.wait();
    while (r.rank == 1 && !ahead) std::this_thread::yield();
    const Gathered all = r.world->gather(record.view(), r.queue);
    ahead = true;
    EXPECT_EQ(received(all, 1, r.queue).sum[0], 2);
  });
}

TEST(ThreadsOnGpus, GroupsThatWereSplitHaveTheirOwn) {
  on_threads(4, {}, [](const Rank& r) {
    on_device(r, 0);
    const World half = r.world->split(r.rank % 2, r.queue);
    for (std::uint64_t call = 0; call < 3; ++call) {
      const Answer answer = exchange(*half, call, {r.rank + 1.0}, r.queue);
      EXPECT_EQ(answer.sum[0], r.rank % 2 == 0 ? 4 : 6);
      EXPECT_EQ(answer.on_device, call > 0);
      on_device(r, call + 1);
    }
  });
}

TEST(ThreadsOnGpus, AFirstCallThatDiffersIsNamedAndTheGroupGoesOn) {
  on_threads(2, {}, [](const Rank& r) {
    EXPECT_EQ(error_of([&] { exchange(*r.world, 7 + static_cast<std::uint64_t>(r.rank), {1.0}, r.queue); }),
              "mismatch: rank 1 is at bn, call 8, forward, must be at bn, call 7, forward as on rank 0");
    EXPECT_FALSE(on_device(r, 1));
    EXPECT_TRUE(on_device(r, 2));
  });
}

TEST(ThreadsOnGpus, ARankMayDeclineTheFirstCall) {
  on_threads(3, {}, [](const Rank& r) {
    if (r.rank == 1)
      r.world->decline(Error(Code::invalid_argument, "eps is -1"));
    else
      EXPECT_EQ(error_of([&] { exchange(*r.world, 0, {1.0}, r.queue); }), "aborted: rank 1 failed: eps is -1");
    EXPECT_FALSE(on_device(r, 1));
    EXPECT_TRUE(on_device(r, 2));
  });
}

// Once records go through GPU memory, peers wait in streams: their kernels find the record that says so.
TEST(ThreadsOnGpus, ARankMayDeclineLater) {
  on_threads(3, {}, [](const Rank& r) {
    step_test::Step step(Layer("sync_batch_norm"), r.queue, r.world);
    for (int call = 0; call < 2; ++call) step.run();
    const std::string why = "weight has dtype i64, must have f64, f32, f16 or bf16";
    if (r.rank == 1) {
      const backend::Array<std::int64_t> labels(step_test::C);
      ForwardInputs in;
      in.input = backend::view(step.x.data(), step_test::x_shape);
      in.weight = backend::view(labels.data(), step_test::parameter_shape);
      const auto call = [&] { step.norm.forward(in, backend::view(step.y.data(), step_test::x_shape), r.queue); };
      EXPECT_EQ(error_of(call), "invalid argument: " + why);
    } else {
      step.forward();
      EXPECT_EQ(found_by(*r.world), "aborted: rank 1 failed: " + why);
    }
    EXPECT_EQ(step.norm.running(r.queue).tracked, 2);

    step.forward();  // the group goes on
    if (r.rank == 2) {
      r.world->decline(Error(Code::invalid_argument, "eps is -1"));
    } else {
      step.backward();
      EXPECT_EQ(found_by(*r.world), "aborted: rank 2 failed: eps is -1");
    }
    step.run();
    EXPECT_EQ(step.norm.running(r.queue).tracked, 4);
    for (const float v : step.dx) EXPECT_TRUE(std::isfinite(v));
    EXPECT_NO_THROW(r.world->check());
  });
}

TEST(ThreadsOnGpus, FarFromZeroRanksAreOneRank) {
  for (const int ranks : {2, 3, 5})
    for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16})
      if (ranks == 3 || dtype == DType::f64)
        on_threads(ranks, {}, [dtype](const Rank& r) { far_cases::check(dtype, r.world, r.queue); });
}

TEST(ThreadsOnGpus, AnAbortEndsEveryGroupAndReleasesStreams) {
  std::barrier done(3);  // an abort may end exchanges that have not come back on all ranks
  on_threads(3, {}, [&done](const Rank& r) {
    on_device(r, 0);
    on_device(r, 1);
    const World pair = r.world->split(r.rank == 0 ? 0 : 1, r.queue);
    if (r.rank > 0)
      for (std::uint64_t call = 0; call < 2; ++call) exchange(*pair, call, {1.0}, r.queue);
    done.arrive_and_wait();
    if (r.rank == 0) return r.world->abort(Error(Code::device, "out of memory"));
    (void)error_of([&] { exchange(*r.world, 2, {1.0}, r.queue); });
    r.queue.wait();
    EXPECT_EQ(found_by(*r.world), "aborted: rank 0 failed: out of memory");
    EXPECT_EQ(found_by(*pair), "aborted: rank 0 failed: out of memory");
  });
}

TEST(ThreadsOnGpus, ARankOnTheCpuKeepsItsGroupOnTheHost) {
  const auto worlds = threads(3);
  on_ranks(3, [&](int rank) {
    Queue queue = rank == 1 ? Queue::cpu() : Queue::cuda(0);
    for (std::uint64_t call = 0; call < 3; ++call)
      EXPECT_FALSE(on_device({worlds[static_cast<std::size_t>(rank)], rank, 3, queue}, call));
  });
}

TEST(ThreadsOnGpus, NobodyGoesBackToTheCpu) {
  on_threads(2, {}, [](const Rank& r) {
    on_device(r, 0);
    Queue cpu = Queue::cpu();
    EXPECT_EQ(error_of([&] {
                on_device({r.world, r.rank, r.ranks, cpu}, 1);
              }),
              "invalid argument: the queue of an exchange is on cpu, must be on a GPU as in the group's earlier ones");
  });
}

TEST(ThreadsOnGpus, ACaptureIsRefusedByTheHostAndByGpuMemory) {
  on_threads(2, {}, [](const Rank& r) {
    const auto captured = [&] {
      DeviceRecord record(0, 4, r.queue);
      const cudaStream_t stream = stream_of_queue(r.queue);
      EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
      const std::string error = error_of([&] { r.world->gather(record.view(), r.queue); });
      cudaGraph_t graph = nullptr;
      EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
      EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
      return error;
    };
    EXPECT_EQ(captured(),
              "unsupported: an exchange of records over threads waits on the host, it cannot be captured in a graph");
    on_device(r, 0);
    EXPECT_EQ(captured(), "unsupported: ranks as threads of one GPU cannot be captured in a graph");
    on_device(r, 1);
  });
}

TEST(ALoneRank, HasReportsOnAGpuOnly) {
  const World alone = self();
  Queue cpu = Queue::cpu(), gpu = Queue::cuda(0);
  EXPECT_EQ(alone->reporter(cpu).report, nullptr);
  ASSERT_NE(alone->reporter(gpu).report, nullptr);
  EXPECT_NO_THROW(alone->check());
  alone->reporter(gpu).report->status = ExchangeReport::weights_changed;
  EXPECT_EQ(error_of([&] { alone->check(); }),
            "invalid argument: rank 0: conv_weight has changed within a batch of mini-batches, must be the same until "
            "the batch ends");
  EXPECT_NO_THROW(alone->check());
}

}  // namespace
}  // namespace allnorm::test
