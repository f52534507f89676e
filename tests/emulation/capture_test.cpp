// Stream capture in the emulation: what is recorded, what a replay does, what ends a capture.
#include <thread>

#include "device_array.hpp"

namespace {

using CaptureTest = emulation_tests::Emulation;
using emulation_tests::DeviceArray;
using emulation_tests::start;
using emulation_tests::Stream;

__global__ void add_kernel(int* out, int value) { out[threadIdx.x] += value; }

cudaError_t begin(cudaStream_t stream, cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
  return cudaStreamBeginCapture(stream, mode);
}

TEST_F(CaptureTest, RecordsWithoutRunningAndReplays) {
  Stream stream;
  const DeviceArray<int> out(std::vector<int>(32, 0));
  ASSERT_EQ(begin(stream), cudaSuccess);
  int value = 5;
  ASSERT_EQ(start(add_kernel, 1, 32, stream, out.data, value), cudaSuccess);
  value = 100;  // the argument was copied
  ASSERT_EQ(start(add_kernel, 1, 32, stream, out.data, 1), cudaSuccess);
  cudaStreamCaptureStatus status;
  ASSERT_EQ(cudaStreamIsCapturing(stream, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_EQ(cuda_emulation::launches(), 0u);
  EXPECT_EQ(out.host()[0], 0);
  std::size_t nodes = 0;
  ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 2u);
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(out.host(), std::vector<int>(32, 18));
  EXPECT_EQ(cuda_emulation::launches(), 6u);
  EXPECT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
}

TEST_F(CaptureTest, EventsForkAndJoinStreams) {
  Stream origin, side;
  cudaEvent_t fork = nullptr, join = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
  const DeviceArray<int> out(std::vector<int>(32, 0));
  for (const bool joins : {true, false}) {
    ASSERT_EQ(begin(origin), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(fork, origin), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(side, fork), cudaSuccess);
    ASSERT_EQ(start(add_kernel, 1, 32, side, out.data, 1), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(join, side), cudaSuccess);
    if (joins) {
      ASSERT_EQ(cudaStreamWaitEvent(origin, join), cudaSuccess);
    }
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(origin, &graph), joins ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    cudaStreamCaptureStatus status;
    ASSERT_EQ(cudaStreamIsCapturing(side, &status), cudaSuccess);
    EXPECT_EQ(status, cudaStreamCaptureStatusNone);
    if (joins) {
      EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    }
  }
  EXPECT_EQ(cudaStreamWaitEvent(side, join), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaEventDestroy(fork), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(join), cudaSuccess);
}

/// Begins a capture, makes a call that CUDA forbids in it, and checks that the capture is lost.
template <class F>
void expect_forbidden(cudaStreamCaptureMode mode, cudaError_t error, F&& call) {
  Stream stream;
  ASSERT_EQ(begin(stream, mode), cudaSuccess);
  EXPECT_EQ(call(stream.handle), error);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(graph, nullptr);
}

TEST_F(CaptureTest, ForbiddenCallsEndIt) {
  constexpr auto forbidden = cudaErrorStreamCaptureUnsupported;
  const DeviceArray<int> memory(1);
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  for (const auto mode :
       {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed}) {
    expect_forbidden(mode, forbidden, [](cudaStream_t stream) { return cudaStreamSynchronize(stream); });
    expect_forbidden(mode, forbidden, [](cudaStream_t stream) { return cudaStreamQuery(stream); });
    expect_forbidden(mode, cudaErrorCapturedEvent, [&](cudaStream_t stream) {
      EXPECT_EQ(cudaEventRecord(event, stream), cudaSuccess);
      return cudaEventQuery(event);
    });
    ASSERT_EQ(cudaEventRecord(event, nullptr), cudaSuccess);
    expect_forbidden(mode, cudaErrorStreamCaptureIsolation,
                     [&](cudaStream_t stream) { return cudaStreamWaitEvent(stream, event); });
  }
  for (const auto mode : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal}) {
    expect_forbidden(mode, forbidden, [](cudaStream_t) {
      void* pointer = nullptr;
      return cudaMalloc(&pointer, 4);
    });
    expect_forbidden(mode, forbidden, [&](cudaStream_t) { return cudaFree(memory.data); });
    expect_forbidden(mode, forbidden, [&](cudaStream_t) {
      int value = 0;
      return cudaMemcpy(&value, memory.data, 4, cudaMemcpyDeviceToHost);
    });
  }
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST_F(CaptureTest, TheModeDecidesWhichThreadsMayAllocate) {
  const auto allocate = [] {
    cudaError_t error = cudaSuccess;
    std::thread([&error] {
      void* pointer = nullptr;
      error = cudaMalloc(&pointer, 4);
      if (error == cudaSuccess) cudaFree(pointer);
    }).join();
    return error;
  };
  Stream stream;
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(begin(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(allocate(), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  ASSERT_EQ(begin(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(allocate(), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);

  auto mode = cudaStreamCaptureModeRelaxed;  // a thread may declare its calls harmless
  ASSERT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaSuccess);
  EXPECT_EQ(mode, cudaStreamCaptureModeGlobal);
  ASSERT_EQ(begin(stream), cudaSuccess);
  { const DeviceArray<int> memory(4); }
  ASSERT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

TEST_F(CaptureTest, TheLegacyStreamMayNotMeetACapturingBlockingStream) {
  Stream stream(cudaStreamDefault);
  const DeviceArray<int> out(std::vector<int>(32, 0));
  ASSERT_EQ(begin(stream), cudaSuccess);
  EXPECT_EQ(start(add_kernel, 1, 32, nullptr, out.data, 1), cudaErrorStreamCaptureImplicit);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(begin(nullptr), cudaErrorStreamCaptureUnsupported);
}

}  // namespace
