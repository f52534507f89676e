// Barriers, shuffles, votes and atomics of the emulation: results, early returns, and misuse that must be reported.
#include <cooperative_groups.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "device_array.hpp"

namespace {

using Sync = emulation_tests::Emulation;
using emulation_tests::DeviceArray;
using emulation_tests::start;

/// The launch must fail, with a reason that names the kernel and contains `reason`.
void expect_failure(cudaError_t launched, const std::string& kernel, const std::string& reason) {
  ASSERT_EQ(launched, cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorLaunchFailure);
  EXPECT_NE(cuda_emulation::failure().find(kernel), std::string::npos) << cuda_emulation::failure();
  EXPECT_NE(cuda_emulation::failure().find(reason), std::string::npos) << cuda_emulation::failure();
}

template <class T>
__global__ void shuffle_kernel(T* out) {  // out: (6, 64)
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const T own = static_cast<T>(threadIdx.x) + static_cast<T>(100);
  const T values[6] = {__shfl_sync(0xffffffffu, own, 5),         __shfl_sync(0xffffffffu, own, lane + 1, 8),
                       __shfl_up_sync(0xffffffffu, own, 3),      __shfl_down_sync(0xffffffffu, own, 3),
                       __shfl_down_sync(0xffffffffu, own, 2, 4), __shfl_xor_sync(0xffffffffu, own, 16)};
  for (int i = 0; i < 6; ++i) out[i * 64 + static_cast<int>(threadIdx.x)] = values[i];
}

template <class T>
void check_shuffles() {
  const DeviceArray<T> out(6 * 64);
  ASSERT_EQ(start(shuffle_kernel<T>, 1, 64, nullptr, out.data), cudaSuccess);
  const auto got = out.host();
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, warp = i / 32 * 32;
    const int sources[6] = {5,
                            lane / 8 * 8 + (lane + 1) % 8,
                            lane < 3 ? lane : lane - 3,
                            lane > 28 ? lane : lane + 3,
                            lane % 4 > 1 ? lane : lane + 2,
                            lane ^ 16};
    for (int k = 0; k < 6; ++k)
      ASSERT_EQ(got[static_cast<std::size_t>(k * 64 + i)], static_cast<T>(100 + warp + sources[k])) << k << " " << i;
  }
}

TEST_F(Sync, ShufflesMoveEveryType) {
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<float>();
  check_shuffles<double>();
  check_shuffles<long long>();
  check_shuffles<unsigned long long>();
}

__global__ void vote_kernel(unsigned* out) {  // out: (8)
  const unsigned lane = threadIdx.x;
  const unsigned odd = __ballot_sync(0xffffffffu, static_cast<int>(lane % 2));
  const int any = __any_sync(0xffffffffu, lane == 7);
  const int all = __all_sync(0xffffffffu, lane < 32);
  const int not_all = __all_sync(0xffffffffu, lane < 31);
  const int sum = __reduce_add_sync(0xffffffffu, -static_cast<int>(lane));
  const int least = __reduce_min_sync(0xffffffffu, static_cast<int>(lane) - 16);
  const unsigned greatest = __reduce_max_sync(0xffffffffu, lane);
  // two halves with masks of their own, in different operations
  const unsigned half = lane < 16 ? __ballot_sync(0x0000ffffu, 1) : __reduce_or_sync(0xffff0000u, 1u << lane);
  if (lane == 31) {
    const unsigned values[8] = {odd,
                                static_cast<unsigned>(any),
                                static_cast<unsigned>(all),
                                static_cast<unsigned>(not_all),
                                static_cast<unsigned>(sum),
                                static_cast<unsigned>(least),
                                greatest,
                                half};
    for (int i = 0; i < 8; ++i) out[i] = values[i];
  }
}

TEST_F(Sync, VotesAndWarpReductions) {
  const DeviceArray<unsigned> out(8);
  ASSERT_EQ(start(vote_kernel, 1, 32, nullptr, out.data), cudaSuccess);
  EXPECT_EQ(out.host(), (std::vector<unsigned>{0xaaaaaaaau, 1, 1, 0, static_cast<unsigned>(-496),
                                               static_cast<unsigned>(-16), 31, 0xffff0000u}));
}

__global__ void early_return_kernel(int* out) {
  if (threadIdx.x % 3 == 1) return;
  const int live = __syncthreads_count(1);
  const int lanes = __popc(__activemask());
  const unsigned mask = __ballot_sync(0xffffffffu, 1);
  const int all = __syncthreads_and(threadIdx.x % 3 != 1);
  const int any = __syncthreads_or(threadIdx.x == 0);
  if (threadIdx.x != 0) return;
  out[0] = live;
  out[1] = lanes;
  out[2] = __popc(mask);
  out[3] = all + 2 * any;
}

TEST_F(Sync, ReturnedThreadsCountAsArrived) {
  const DeviceArray<int> out(4);
  ASSERT_EQ(start(early_return_kernel, 1, 96, nullptr, out.data), cudaSuccess);
  EXPECT_EQ(out.host(), (std::vector<int>{64, 21, 21, 3}));  // 1, 4, ... 31 of the first warp have returned
}

__global__ void atomics_kernel(int* i, unsigned* u, unsigned long long* l, float* f, double* d) {
  atomicAdd(i, -1);
  atomicAdd(u, 2u);
  atomicAdd(l, 1ull << 33);
  atomicAdd(f, 0.5f);
  atomicAdd(d, 0.25);
  atomicMax(i + 1, static_cast<int>(threadIdx.x));
  atomicOr(u + 1, 1u << (threadIdx.x % 32));
  atomicInc(u + 2, 99);
  while (atomicCAS(u + 3, 0u, 1u) != 0) __nanosleep(20);  // a lock
  i[2] += 1;
  __threadfence();
  atomicExch(u + 3, 0u);
}

TEST_F(Sync, AtomicsAndALock) {
  const DeviceArray<int> i(std::vector<int>{0, -5, 0});
  const DeviceArray<unsigned> u(std::vector<unsigned>{0, 0, 0, 0});
  const DeviceArray<unsigned long long> l(std::vector<unsigned long long>{0});
  const DeviceArray<float> f(std::vector<float>{0});
  const DeviceArray<double> d(std::vector<double>{0});
  ASSERT_EQ(start(atomics_kernel, 3, 128, nullptr, i.data, u.data, l.data, f.data, d.data), cudaSuccess);
  EXPECT_EQ(i.host(), (std::vector<int>{-384, 127, 384}));
  EXPECT_EQ(u.host(), (std::vector<unsigned>{768, 0xffffffffu, 384 % 100, 0}));
  EXPECT_EQ(l.host()[0], 384ull << 33);
  EXPECT_EQ(f.host()[0], 192.0f);
  EXPECT_EQ(d.host()[0], 96.0);
}

__global__ void deadlock_kernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncwarp(threadIdx.x == 40 ? 0x0000ffffu : 0xffffffffu);
}

TEST_F(Sync, ADivergentBarrierIsReportedAndNotWaitedFor) {
  expect_failure(start(deadlock_kernel, 1, 64, nullptr), "deadlock_kernel",
                 "32 wait at __syncthreads, 32 in warp operations");
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(start(deadlock_kernel, 1, 64, nullptr), cudaErrorLaunchFailure);  // sticky
  cuda_emulation::reset();
  const DeviceArray<int> out(4);  // and the fibers can be used again
  ASSERT_EQ(start(early_return_kernel, 1, 96, nullptr, out.data), cudaSuccess);
  EXPECT_EQ(out.host()[0], 64);
}

__global__ void outside_mask_kernel() { __shfl_sync(0x1u, 1, 0); }
__global__ void mixed_barriers_kernel() {
  if (threadIdx.x == 0)
    __syncthreads();
  else
    __syncthreads_or(0);
}
__global__ void throwing_kernel() {
  if (threadIdx.x == 3) throw std::runtime_error("planted");
  __syncthreads();
}
__global__ void grid_kernel() { cooperative_groups::this_grid().sync(); }

TEST_F(Sync, MisuseIsReported) {
  expect_failure(start(outside_mask_kernel, 1, 2, nullptr), "outside_mask_kernel", "the mask lacks the calling lane");
  cuda_emulation::reset();
  expect_failure(start(mixed_barriers_kernel, 1, 2, nullptr), "mixed_barriers_kernel", "different kinds");
  cuda_emulation::reset();
  expect_failure(start(throwing_kernel, 1, 64, nullptr), "throwing_kernel", "planted");
  cuda_emulation::reset();
  expect_failure(start(grid_kernel, 2, 32, nullptr), "grid_kernel", "not cooperative");
}

__global__ void lopsided_grid_kernel(int* spin) {
  if (blockIdx.x == 0) return;
  if (blockIdx.x == 1)
    while (atomicAdd(spin, 0) == 0) __nanosleep(100);  // for a block that will never say so
  cooperative_groups::this_grid().sync();
}

TEST_F(Sync, AGridBarrierThatABlockNeverReachesIsReported) {
  const DeviceArray<int> spin(std::vector<int>{0});
  int* pointer = spin.data;
  void* arguments[] = {&pointer};
  expect_failure(cudaLaunchCooperativeKernel(lopsided_grid_kernel, dim3(3), dim3(32), arguments),
                 "lopsided_grid_kernel", "some blocks never reach");
}

__global__ void order_kernel(unsigned* ticket, unsigned* order) {
  order[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(ticket, 1u);
}

TEST_F(Sync, BlocksAndThreadsRunInAnOrderThatTheSeedDecides) {
  const auto order_of = [](std::uint64_t seed) {
    cuda_emulation::set_seed(seed);
    const DeviceArray<unsigned> ticket(std::vector<unsigned>{0}), order(4 * 32);
    EXPECT_EQ(start(order_kernel, 4, 32, nullptr, ticket.data, order.data), cudaSuccess);
    return order.host();
  };
  const auto first = order_of(7);
  EXPECT_EQ(first, order_of(7));
  EXPECT_NE(first, order_of(8));
  cuda_emulation::set_seed(1);
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void overflow_kernel(float* out, int n) {
  __syncthreads();
  if (threadIdx.x == 5) out[n] = 1.0f;
}
__global__ void shared_overflow_kernel() { static_cast<int*>(allnorm_emulated_dynamic_shared())[threadIdx.x] = 1; }

TEST(SyncDeath, AddressSanitizerSeesOverruns) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        const DeviceArray<float> out(13);
        static_cast<void>(start(overflow_kernel, 1, 64, nullptr, out.data, 13));
        cudaDeviceSynchronize();
      },
      "heap-buffer-overflow");
  EXPECT_DEATH(
      {
        static_cast<void>(start(shared_overflow_kernel, 1, 64, nullptr));
        cudaDeviceSynchronize();
      },
      "heap-buffer-overflow");
}
#endif

}  // namespace
