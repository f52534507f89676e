// Records of GPUs among processes: through the host, or from GPU to GPU where MPI takes their memory. The emulated
// GPU's memory is the host's, which every MPI takes.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "allnorm/mpi.hpp"
#include "allnorm/norm.hpp"
#include "gpu/records.hpp"
#include "harness.hpp"

#if ALLNORM_CUDA_EMULATED
#include "cuda_emulation.hpp"
#endif

namespace {

using namespace allnorm;
using harness::error_of;
using test::DeviceRecord;

int device_pointers = 0;  // that MPI was given
void look_at(const void* data) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, data) == cudaSuccess && attributes.type == cudaMemoryTypeDevice)
    ++device_pointers;
}

}  // namespace

// In place of the library's, by the names that MPI keeps for this.
extern "C" int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  look_at(data);
  return PMPI_Isend(data, count, type, to, tag, comm, request);
}
extern "C" int MPI_Imrecv(void* data, int count, MPI_Datatype type, MPI_Message* message, MPI_Request* request) {
  look_at(data);
  return PMPI_Imrecv(data, count, type, message, request);
}

namespace {

constexpr std::size_t few = 4, many = 20000;

#if ALLNORM_CUDA_EMULATED
constexpr GpuMemory if_it_can = GpuMemory::taken;
#else
constexpr GpuMemory if_it_can = GpuMemory::ask;
#endif

double value_of(int rank, std::uint64_t call, std::size_t i) {
  return (rank % 2 == 0 ? 1e16 : -1e16) / (rank + 1) + static_cast<double>(call) / static_cast<double>(3 + i);
}
/// The sum of a call, in rank order to the bit.
void expect_sum(Communicator& world, std::uint64_t call, std::size_t count, Queue& queue) {
  std::vector<double> own(count), expected(count, 0.0);
  for (std::size_t i = 0; i < count; ++i) own[i] = value_of(world.rank(), call, i);
  for (int rank = 0; rank < world.size(); ++rank)
    for (std::size_t i = 0; i < count; ++i) expected[i] += value_of(rank, call, i);
  DeviceRecord record(world.room(count, queue), count, queue);
  record.write(Header("bn", Direction::forward, call), own, queue);
  const Gathered all = world.gather(record.view(), queue);
  EXPECT_EQ(all.sums == nullptr ? test::received(all, count, queue).sum
                                : to_host(std::span<const double>(all.sums, count), queue),
            expected);
}

TEST(MpiRecords, GoFromGpuToGpuWhereTheyAreLongAndMpiTakesThem) {
  for (const GpuMemory memory : {GpuMemory::refused, if_it_can}) {
    Queue queue = Queue::cuda();
    const auto world = mpi(MPI_COMM_WORLD, {}, memory);
    expect_sum(*world, 0, many, queue);  // in which the ranks agree to
    std::uint64_t call = 1;
    device_pointers = 0;
    for (const std::size_t count : {few, std::size_t{0}}) expect_sum(*world, call++, count, queue);
    EXPECT_EQ(device_pointers, 0) << "a short record";
    for (const std::size_t count : {many, 3 * many, few, many + 1}) expect_sum(*world, call++, count, queue);
    if (memory != GpuMemory::ask) {
      EXPECT_EQ(device_pointers, memory == GpuMemory::taken ? 3 * 2 * (world->size() - 1) : 0);
    }
    EXPECT_EQ(world->traffic().exchanges, call);
    Queue other = Queue::cuda();
    expect_sum(*world, call, many, other);
  }
}

TEST(MpiRecords, StayOnTheHostWhereOneRankHasItSo) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  Queue queue = Queue::cuda();
  const auto world = mpi(MPI_COMM_WORLD, {}, rank == 1 ? GpuMemory::refused : if_it_can);
  device_pointers = 0;
  for (std::uint64_t call = 0; call < 3; ++call) expect_sum(*world, call, many, queue);
  EXPECT_EQ(device_pointers, 0);
}

TEST(MpiRecords, MayBeOfAnotherGpuOrOfTheHostLater) {
  const auto world = mpi(MPI_COMM_WORLD, {}, if_it_can);
  Queue gpu = Queue::cuda(), other = Queue::cuda(cuda_devices() - 1), cpu = Queue::cpu();
  std::uint64_t call = 0;
  for (int round = 0; round < 2; ++round)
    for (Queue* queue : {&gpu, &other, world->rank() == 1 ? &cpu : &gpu, &cpu})
      for (const std::size_t count : {many, few}) expect_sum(*world, call++, count, *queue);
}

TEST(MpiRecords, WithoutRoomOnOneRankAreDeclined) {
#if ALLNORM_CUDA_EMULATED
  Queue queue = Queue::cuda();
  const auto world = mpi(MPI_COMM_WORLD, {}, if_it_can);
  std::uint64_t call = 0;
  const auto expect_declined = [&](const char* function, const std::string& reason) {
    DeviceRecord record(world->room(many, queue), many, queue);
    record.write(Header("bn", Direction::forward, call++), std::vector<double>(many, 1.0), queue);
    if (world->rank() == 1) cuda_emulation::fail_next(function, cudaErrorMemoryAllocation);
    const std::string said = error_of([&] { world->gather(record.view(), queue); });
    EXPECT_NE(said.find(reason + " on cuda:0 failed: out of memory"), std::string::npos) << said;
    EXPECT_EQ(said.find(world->rank() == 1 ? "device: " : "aborted: rank 1 failed: "), 0u) << said;
    expect_sum(*world, call++, many, queue);
  };
  expect_declined("cudaHostAlloc", "allocating pinned memory");  // through the host
  expect_declined("cudaMalloc", "allocating memory");            // from GPU to GPU
#else
  GTEST_SKIP() << "a GPU does not run out of memory on demand";
#endif
}

TEST(MpiRecords, ThatDisagreeAreNamedAndTheGroupGoesOn) {
  Queue queue = Queue::cuda();
  const auto world = mpi(MPI_COMM_WORLD, {}, if_it_can);
  expect_sum(*world, 0, many, queue);
  const auto gather = [&](const Header& header, std::size_t count) {
    DeviceRecord record(world->room(count, queue), count, queue);
    record.write(header, std::vector<double>(count, 1.0), queue);
    return error_of([&] { world->gather(record.view(), queue); });
  };
  Header header("bn", Direction::forward, 1);
  write_layer(parse_layer(world->rank() == 1 ? "batch_norm:eps=1e-3" : "batch_norm"), header);
  EXPECT_EQ(gather(header, many), "mismatch: rank 1: bn, call 1, forward: eps is 0.001, must be 1e-05 as on rank 0");
  const std::size_t count = world->rank() == 1 ? few : many;  // one of them would go through the host
  EXPECT_EQ(gather(Header("bn", Direction::forward, 2), count),
            "mismatch: rank 1: bn, call 2, forward: payload length is 4, must be 20000 as on rank 0");
  expect_sum(*world, 3, many, queue);
  if (world->rank() == 1) {
    world->decline(Error(Code::invalid_input, "input is empty"));
  } else {
    EXPECT_EQ(gather(Header("bn", Direction::forward, 4), many), "aborted: rank 1 failed: input is empty");
  }
  expect_sum(*world, 5, many, queue);
}

TEST(MpiRecords, OfALateRankEndAtTheDeadline) {
  Queue queue = Queue::cuda();
  {
    Patience patience;
    patience.timeout = 0.3;
    const auto world = mpi(MPI_COMM_WORLD, patience, if_it_can);
    expect_sum(*world, 0, many, queue);
    const int last = world->size() - 1;
    if (world->rank() != last) {
      DeviceRecord record(world->room(many, queue), many, queue);
      record.write(Header("bn", Direction::forward, 1), std::vector<double>(many, 1.0), queue);
      const std::string name = "rank " + std::to_string(last);
      EXPECT_EQ(error_of([&] { world->gather(record.view(), queue); }),
                "timeout: bn, call 1, forward: " + name + " is missing, not done after 0.3 s; " + name +
                    " was last heard of at bn, call 0, forward");
    }
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

TEST(MpiRecords, CannotBeCaptured) {
  Queue queue = Queue::cuda();
  const auto world = mpi(MPI_COMM_WORLD, {}, if_it_can);
  expect_sum(*world, 0, many, queue);
  DeviceRecord record(world->room(many, queue), many, queue);
  const cudaStream_t stream = test::stream_of_queue(queue);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(error_of([&] { world->gather(record.view(), queue); }),
            "unsupported: an exchange of records over mpi waits on the host, it cannot be captured in a graph");
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

/// A layer of so many channels that its records are long.
TEST(MpiRecords, OfALayerGiveTheSameBitsEitherWay) {
  constexpr std::int64_t N = 2, C = 9000;
  const Shape shape{N, C};
  std::vector<std::vector<float>> results;
  for (const GpuMemory memory : {GpuMemory::refused, if_it_can}) {
    Queue queue = Queue::cuda();
    const auto world = mpi(MPI_COMM_WORLD, {}, memory);
    Norm norm(Layer("batch_norm"), C, world, queue);
    const auto size = static_cast<std::size_t>(N * C);
    std::vector<float> x(size), dy(size), out(2 * size);
    Buffer<float> y(size, queue), dx(size, queue);
    const auto on_gpu = [&](float* data) {
      return TensorView{data, DType::f32, queue.device(), shape, Order::channels_first};
    };
    for (int step = 0; step < 3; ++step) {
      for (std::size_t i = 0; i < size; ++i) {
        x[i] = static_cast<float>((i * 37 + static_cast<std::size_t>(world->rank() + step) * 101) % 997) / 100;
        dy[i] = static_cast<float>(i % 89) - 44;
      }
      Buffer<float> input = to_device(x, queue), grad_output = to_device(dy, queue);
      ForwardInputs in;
      in.input = on_gpu(input.data());
      const Saved saved = norm.forward(in, on_gpu(y.data()), queue);
      BackwardOutputs gradients;
      gradients.input = on_gpu(dx.data());
      norm.backward(saved, on_gpu(grad_output.data()), gradients, queue);
      copy_to_host(out.data(), y.data(), size * sizeof(float), queue);
      copy_to_host(out.data() + size, dx.data(), size * sizeof(float), queue);
      queue.wait();
      results.push_back(out);
    }
  }
  for (std::size_t step = 0; step < 3; ++step) EXPECT_EQ(results[step], results[step + 3]) << "step " << step;
}

}  // namespace
