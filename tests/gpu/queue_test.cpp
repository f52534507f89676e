// CUDA queues: memory, order, capture, and what is said about wrong pointers and devices.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/error.hpp"
#include "harness.hpp"
#include "src/runtime/cuda/memory.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::test {
namespace {

constexpr std::size_t many = 1 << 16;

std::vector<int> count_from(int first, std::size_t size = many) {
  std::vector<int> values(size);
  std::iota(values.begin(), values.end(), first);
  return values;
}

cudaStream_t stream_of(const Queue& queue) { return static_cast<cudaStream_t>(queue.stream()); }

template <class F>
std::string message_of(Code code, const F& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.message();
    EXPECT_EQ(error.message().find('\n'), std::string::npos) << error.message();
    return error.message();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

// What is enqueued between construction and end() becomes a graph.
class Graph {
 public:
  explicit Graph(Queue& queue) : stream_(stream_of(queue)) {
    EXPECT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  }
  void end() {
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&exec_, graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
  }
  void replay() { ASSERT_EQ(cudaGraphLaunch(exec_, stream_), cudaSuccess); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

// ---- memory ---------------------------------------------------------------------------------------------------------

TEST(CudaMemory, IsZeroWhereAskedAlsoWhenItWasUsedBefore) {
  Queue queue = Queue::cuda();
  for (int round = 0; round < 3; ++round) {
    Buffer<int> buffer(many, queue);
    EXPECT_EQ(to_host(buffer, queue), std::vector<int>(many, 0)) << round;
    copy_to_device(buffer.data(), count_from(1).data(), many * sizeof(int), queue);
  }
}

TEST(CudaMemory, IsAlignedAndWritableWithoutFill) {
  Queue queue = Queue::cuda();
  for (const std::size_t size : {std::size_t{1}, std::size_t{3}, std::size_t{257}, many}) {
    Buffer<int> buffer(size, queue, Fill::none);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0u);
    const std::vector<int> values = count_from(7, size);
    copy_to_device(buffer.data(), values.data(), size * sizeof(int), queue);
    EXPECT_EQ(to_host(buffer, queue), values);
  }
}

TEST(CudaMemory, OfNoElementsIsNull) {
  Queue queue = Queue::cuda();
  const Buffer<int> buffer(0, queue);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_TRUE(to_host(buffer, queue).empty());
}

TEST(CudaMemory, OutlivesItsQueue) {
  std::optional<Queue> queue(Queue::cuda());
  Buffer<int> buffer = to_device(count_from(3), *queue);
  queue->wait();
  queue.reset();
  Queue other = Queue::cuda();
  EXPECT_EQ(to_host(buffer, other), count_from(3));
}

TEST(CudaMemory, ThatIsNotThereIsAnErrorAndTheQueueGoesOn) {
  Queue queue = Queue::cuda();
  constexpr std::size_t petabyte = std::size_t{1} << 50;
  const std::string said = message_of(Code::device, [&] { Buffer<char>(petabyte, queue); });
  EXPECT_EQ(said.find("cuda:0 has "), 0u) << said;
  EXPECT_NE(said.find(" bytes free, must have " + std::to_string(petabyte)), std::string::npos) << said;
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  EXPECT_EQ(to_host(to_device(count_from(1), queue), queue), count_from(1));
}

// ---- order ----------------------------------------------------------------------------------------------------------

TEST(CudaCopies, HappenInTheOrderOfTheCalls) {
  Queue queue = Queue::cuda();
  Buffer<int> first(many, queue), second(many, queue);
  std::vector<int> values;
  for (int round = 0; round < 20; ++round) {
    values = count_from(round);
    copy_to_device(first.data(), values.data(), many * sizeof(int), queue);
    std::fill(values.begin(), values.end(), -1);  // the call is done with it
    copy_on_device(second.data(), first.data(), many * sizeof(int), queue);
    copy_to_device(first.data(), values.data(), many * sizeof(int), queue);
    EXPECT_EQ(to_host(second, queue), count_from(round));
    EXPECT_EQ(to_host(first, queue), values);
  }
}

TEST(CudaCopies, FromPinnedMemoryAreDoneWithItOnReturn) {
  Queue queue = Queue::cuda();
  const cuda::PinnedBlock source(many * sizeof(int), 0);
  Buffer<int> buffer(many, queue), busy(16 * many, queue), more(16 * many, queue);
  const std::vector<int> values = count_from(5);
  for (int i = 0; i < 20; ++i) copy_on_device(more.data(), busy.data(), 16 * many * sizeof(int), queue);
  std::memcpy(source.host(), values.data(), source.size());
  copy_to_device(buffer.data(), source.host(), source.size(), queue);
  std::memset(source.host(), 0xff, source.size());
  EXPECT_EQ(to_host(buffer, queue), values);
}

TEST(CudaCopies, ToPinnedMemoryAreThereAfterWait) {
  Queue queue = Queue::cuda();
  const cuda::PinnedBlock target(many * sizeof(int), 0);
  const Buffer<int> buffer = to_device(count_from(9), queue);
  copy_to_host(target.host(), buffer.data(), target.size(), queue);
  queue.wait();
  const int* seen = static_cast<const int*>(target.host());
  EXPECT_EQ(std::vector<int>(seen, seen + many), count_from(9));
}

TEST(PinnedMemory, IsZeroAndTheSameForDeviceAndHost) {
  Queue queue = Queue::cuda();
  cuda::PinnedBlock block(sizeof(int) * 4, 0);
  const int* seen = static_cast<const int*>(block.host());
  EXPECT_EQ(std::vector<int>(seen, seen + 4), std::vector<int>(4, 0));
  const Buffer<int> buffer = to_device(count_from(1, 4), queue);
  copy_on_device(block.device(), buffer.data(), block.size(), queue);
  queue.wait();
  EXPECT_EQ(std::vector<int>(seen, seen + 4), count_from(1, 4));
  const cuda::PinnedBlock moved(std::move(block));
  EXPECT_EQ(moved.host(), seen);
  EXPECT_EQ(cuda::PinnedBlock(0, 0).host(), nullptr);
}

// ---- capture --------------------------------------------------------------------------------------------------------

TEST(CudaCapture, KeepsWhatWasAllocatedInIt) {
  Queue queue = Queue::cuda();
  Buffer<int> in(many, queue), out(many, queue);
  Graph graph(queue);
  {
    Buffer<int> scratch(many, queue, Fill::none);
    copy_on_device(scratch.data(), in.data(), many * sizeof(int), queue);
    copy_on_device(out.data(), scratch.data(), many * sizeof(int), queue);
  }
  graph.end();
  const Buffer<int> later = to_device(std::vector<int>(many, -7), queue);  // would lie where scratch was
  for (const int first : {1, 1000}) {
    copy_to_device(in.data(), count_from(first).data(), many * sizeof(int), queue);
    graph.replay();
    EXPECT_EQ(to_host(out, queue), count_from(first));
    EXPECT_EQ(to_host(later, queue), std::vector<int>(many, -7));
  }
}

TEST(CudaCapture, ZeroesAgainInEveryReplay) {
  Queue queue = Queue::cuda();
  Buffer<int> out(many, queue);
  const Buffer<int> ones = to_device(std::vector<int>(many, 1), queue);
  std::optional<Buffer<int>> zeros;
  Graph graph(queue);
  zeros.emplace(many, queue);
  copy_on_device(out.data(), zeros->data(), many * sizeof(int), queue);
  copy_on_device(zeros->data(), ones.data(), many * sizeof(int), queue);
  graph.end();
  for (int round = 0; round < 2; ++round) {
    copy_on_device(out.data(), ones.data(), many * sizeof(int), queue);
    graph.replay();
    EXPECT_EQ(to_host(out, queue), std::vector<int>(many, 0));
  }
}

TEST(CudaCapture, CopiesWhatTheHostHadThen) {
  Queue queue = Queue::cuda();
  Buffer<int> out(many, queue);
  std::vector<int> values = count_from(2);
  Graph graph(queue);
  copy_to_device(out.data(), values.data(), many * sizeof(int), queue);
  graph.end();
  std::fill(values.begin(), values.end(), -1);
  for (int round = 0; round < 2; ++round) {
    copy_to_device(out.data(), values.data(), many * sizeof(int), queue);
    graph.replay();
    EXPECT_EQ(to_host(out, queue), count_from(2));
  }
}

TEST(CudaCapture, KeepsWhatIsReleasedInIt) {
  Queue queue = Queue::cuda();
  Buffer<int> out(many, queue);
  std::optional<Buffer<int>> in(to_device(count_from(4), queue));
  queue.wait();
  Graph graph(queue);
  copy_on_device(out.data(), in->data(), many * sizeof(int), queue);
  in.reset();
  graph.end();
  const Buffer<int> later = to_device(std::vector<int>(many, -7), queue);
  graph.replay();
  EXPECT_EQ(to_host(out, queue), count_from(4));
}

TEST(CudaCapture, IsNotBrokenByAWaitOrAPageableCopy) {
  Queue queue = Queue::cuda();
  Buffer<int> in = to_device(count_from(6), queue), out(many, queue);
  std::vector<int> target(many);
  queue.wait();
  Graph graph(queue);
  EXPECT_EQ(message_of(Code::device, [&] { queue.wait(); }),
            "the stream of cuda:0 is being captured, must not be waited for");
  EXPECT_EQ(message_of(Code::device, [&] { copy_to_host(target.data(), in.data(), many * sizeof(int), queue); }),
            "a copy from cuda:0 goes to pageable memory, must go to pinned memory while the stream is being captured");
  copy_on_device(out.data(), in.data(), many * sizeof(int), queue);
  graph.end();
  graph.replay();
  EXPECT_EQ(to_host(out, queue), count_from(6));
}

TEST(CudaCapture, OfTheCallersStreamMayBeginBeforeTheQueue) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  {
    Queue owner = Queue::cuda(0);
    Buffer<int> in = to_device(count_from(8), owner), out(many, owner);
    owner.wait();
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    Queue queue = Queue::cuda(0, stream);
    copy_on_device(out.data(), in.data(), many * sizeof(int), queue);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    EXPECT_EQ(to_host(out, queue), count_from(8));
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  }
  cudaStreamDestroy(stream);
}

// ---- tickets --------------------------------------------------------------------------------------------------------

std::vector<unsigned> read_tickets(unsigned* tickets, std::size_t count, Queue& queue) {
  std::vector<unsigned> values(count);
  copy_to_host(values.data(), tickets, count * sizeof(unsigned), queue);
  queue.wait();
  return values;
}

TEST(Tickets, AreZeroAndStay) {
  Queue queue = Queue::cuda();
  unsigned* const few = cuda::tickets(queue, 10);
  EXPECT_EQ(cuda::tickets(queue, 4096), few);
  EXPECT_EQ(read_tickets(few, 4096, queue), std::vector<unsigned>(4096, 0));
  unsigned* const more = cuda::tickets(queue, many);
  EXPECT_EQ(read_tickets(more, many, queue), std::vector<unsigned>(many, 0));
  EXPECT_EQ(cuda::tickets(queue, 10), more);
  EXPECT_EQ(read_tickets(few, 4096, queue), std::vector<unsigned>(4096, 0));  // a graph may use them
}

TEST(Tickets, ThatGrowInACaptureAreZeroBeforeAnyReplay) {
  Queue queue = Queue::cuda();
  Graph graph(queue);
  unsigned* const grown = cuda::tickets(queue, many);
  graph.end();
  EXPECT_EQ(read_tickets(grown, many, queue), std::vector<unsigned>(many, 0));
}

// ---- pointers and devices -------------------------------------------------------------------------------------------

TEST(CudaPointers, AreNamedWhereTheyAreWrong) {
  Queue queue = Queue::cuda(), cpu = Queue::cpu();
  const Buffer<int> buffer(many, queue);
  const std::vector<int> host(many);
  EXPECT_NO_THROW(expect_memory(buffer.data(), queue, "input"));
  EXPECT_NO_THROW(expect_memory(buffer.data() + many / 2, queue, "input"));
  EXPECT_NO_THROW(expect_memory(nullptr, queue, "input"));
  EXPECT_NO_THROW(expect_memory(host.data(), cpu, "input"));
  EXPECT_NO_THROW(expect_memory(nullptr, cpu, "input"));
  EXPECT_EQ(message_of(Code::device, [&] { expect_memory(host.data(), queue, "input"); }),
            "input is in host memory, must be on cuda:0");
  EXPECT_EQ(message_of(Code::device, [&] { expect_memory(buffer.data() + 1, cpu, "weight"); }),
            "weight is on cuda:0, must be in host memory");
}

TEST(CudaPointers, OfPinnedMemoryPassEverywhere) {
  Queue queue = Queue::cuda(), cpu = Queue::cpu();
  const cuda::PinnedBlock block(64, 0);
  EXPECT_NO_THROW(expect_memory(block.host(), queue, "input"));
  EXPECT_NO_THROW(expect_memory(block.host(), cpu, "input"));
}

TEST(CudaDevices, OfOtherNumbersAreNamedAndTheCurrentOneStays) {
  if (cuda_devices() < 2) GTEST_SKIP() << "there is one GPU";
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  Queue first = Queue::cuda(0), second = Queue::cuda(1);
  Buffer<int> there = to_device(count_from(1), second);
  EXPECT_EQ(to_host(there, second), count_from(1));
  EXPECT_EQ(there.device(), (Device{DeviceKind::cuda, 1}));
  EXPECT_EQ(message_of(Code::device, [&] { expect_memory(there.data(), first, "grad_output"); }),
            "grad_output is on cuda:1, must be on cuda:0");
  int current = -1;
  ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
  EXPECT_EQ(current, 0);
}

TEST(CudaDevices, ThatAreNotThereAreErrors) {
  const int count = cuda_devices();
  const std::string must =
      " is not there, must be cuda:0" + (count > 1 ? " to cuda:" + std::to_string(count - 1) : std::string());
  for (const int index : {-1, count, count + 5})
    EXPECT_EQ(message_of(Code::device, [&] { Queue::cuda(index); }), "device cuda:" + std::to_string(index) + must);
}

TEST(CudaDevices, AreDescribed) {
  const std::string summary = cuda_summary();
  for (const char* part : {"compute capability ", " multiprocessors, ", " GiB; ", "driver "})
    EXPECT_NE(summary.find(part), std::string::npos) << summary;
}

TEST(CudaQueues, KnowTheirStreamAndDevice) {
  Queue queue = Queue::cuda();
  EXPECT_NE(queue.stream(), nullptr);
  EXPECT_EQ(cuda::stream_of(queue), stream_of(queue));
  EXPECT_EQ(queue.threads(), 1);
  EXPECT_EQ(queue.device(), (Device{DeviceKind::cuda, 0}));
  int multiprocessors = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
  EXPECT_EQ(cuda::properties_of(queue).multiProcessorCount, multiprocessors);
}

TEST(CudaQueues, LeaveMultiprocessorsToOthers) {
  Queue queue = Queue::cuda(), host = Queue::cpu();
  EXPECT_EQ(queue.multiprocessors_left(), 0);
  queue.leave_multiprocessors(16);
  EXPECT_EQ(queue.multiprocessors_left(), 16);
  EXPECT_EQ(harness::error_of([&] { queue.leave_multiprocessors(-1); }),
            "invalid argument: multiprocessors left to others are -1, must be 0 or more");
  EXPECT_EQ(queue.multiprocessors_left(), 16);
  EXPECT_EQ(harness::error_of([&] { host.leave_multiprocessors(16); }),
            "invalid argument: a queue on cpu has no multiprocessors to leave to others, must be on a GPU");
  EXPECT_EQ(host.multiprocessors_left(), 0);
}

TEST(CudaQueues, LeaveTheCallersStreamToTheCaller) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  {
    Queue queue = Queue::cuda(0, stream);
    EXPECT_EQ(queue.stream(), stream);
    EXPECT_EQ(to_host(to_device(count_from(1), queue), queue), count_from(1));
  }
  EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
  cudaStreamDestroy(stream);
}

TEST(CudaQueues, MayUseTheDefaultStreamWhileAnotherIsCaptured) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);  // the default stream waits for this kind
  {
    Queue captured = Queue::cuda(0, stream), other = Queue::cuda(0, nullptr);
    EXPECT_EQ(other.stream(), nullptr);
    EXPECT_EQ(to_host(to_device(count_from(1), other), other), count_from(1));
    EXPECT_FALSE(cuda::is_capturing(captured));
    Graph graph(captured);
    EXPECT_TRUE(cuda::is_capturing(captured));
    EXPECT_FALSE(cuda::is_capturing(other));
    graph.end();
  }
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace allnorm::test
