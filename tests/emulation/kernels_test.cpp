// The emulation runs kernels as a GPU would: reductions, vector loads, conversions, cooperative grids, barriers.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "device_array.hpp"
#include "trial_kernels.hpp"

namespace {

using Kernels = emulation_tests::Emulation;
template <class T>
using Device = emulation_tests::DeviceArray<T>;

TEST_F(Kernels, SumByShufflesSharedMemoryAndTheLastBlock) {
  std::vector<float> x(10'007);
  std::iota(x.begin(), x.end(), 1.0f);  // whole numbers: any order gives the same sum
  const double expected = 10'007.0 * 10'008.0 / 2.0;
  const Device<float> input(x);
  for (int blocks : {1, 2, 7, 40}) {
    const Device<double> partial(static_cast<std::size_t>(blocks)), out(1);
    const Device<unsigned> ticket(std::vector<unsigned>{0});
    for (int repeat = 0; repeat < 3; ++repeat) {
      ASSERT_EQ(trial::sum(input.data, 10'007, partial.data, ticket.data, out.data, blocks, nullptr), cudaSuccess);
      EXPECT_EQ(out.host()[0], expected);
    }
  }
  EXPECT_EQ(cuda_emulation::launches(), 12u);
  EXPECT_NE(cuda_emulation::launched_kernels()[0].find("sum_kernel<256>"), std::string::npos)
      << cuda_emulation::launched_kernels()[0];
}

TEST_F(Kernels, MapOverVectors) {
  std::vector<float> x(4 * 333);
  std::iota(x.begin(), x.end(), 0.0f);
  const Device<float> input(x), output(x.size());
  ASSERT_EQ(trial::scale(3.0f, input.data, output.data, 4 * 333, nullptr), cudaSuccess);
  const auto y = output.host();
  for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], 3.0f * x[i]);
}

TEST_F(Kernels, MisalignedVectorAccessFails) {
  const Device<float> memory(64);
  ASSERT_EQ(trial::scale(3.0f, memory.data + 1, memory.data + 1, 4, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
  EXPECT_NE(cuda_emulation::failure().find("misaligned"), std::string::npos);
}

TEST_F(Kernels, ConversionsRoundToNearestEvenAndKeepNaN) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> x{0.0f,       -0.0f,        1.0f,        1.00048828125f, 1.00146484375f, 65519.0f,
                             65520.0f,   -inf,         NAN,         0x1p-24f,       0x1p-25f,       0x1.8p-25f,
                             0x1.8p-24f, 0x1.ffep-15f, 1.00390625f, 1.01171875f,    3.4e38f};
  const std::vector<unsigned short> f16{0,      0x8000, 0x3c00, 0x3c00, 0x3c02, 0x7bff, 0x7c00, 0xfc00, 0x7fff,
                                        0x0001, 0x0000, 0x0001, 0x0002, 0x0400, 0x3c04, 0x3c0c, 0x7c00};
  const std::vector<unsigned short> bf16{0,      0x8000, 0x3f80, 0x3f80, 0x3f80, 0x4780, 0x4780, 0xff80, 0x7fff,
                                         0x3380, 0x3300, 0x3340, 0x33c0, 0x3880, 0x3f80, 0x3f82, 0x7f80};
  const Device<float> input(x);
  const Device<unsigned short> output(2 * x.size());
  ASSERT_EQ(trial::narrow(input.data, output.data, static_cast<int>(x.size()), nullptr), cudaSuccess);
  const auto bits = output.host();
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(bits[i], f16[i]) << x[i];
    EXPECT_EQ(bits[x.size() + i], bf16[i]) << x[i];
  }
}

TEST_F(Kernels, BarrierMakesSharedMemoryVisible) {
  for (int threads : {1, 31, 33, 256, 1024}) {
    const Device<int> out(static_cast<std::size_t>(threads));
    ASSERT_EQ(trial::rotate(out.data, threads, true, nullptr), cudaSuccess);
    const auto values = out.host();
    for (int i = 0; i < threads; ++i) ASSERT_EQ(values[static_cast<std::size_t>(i)], (i + 1) % threads);
  }
}

TEST_F(Kernels, MissingBarrierShowsThePoison) {
  const Device<int> out(256);
  ASSERT_EQ(trial::rotate(out.data, 256, false, nullptr), cudaSuccess);
  int poisoned = 0;
  for (int value : out.host()) poisoned += value == static_cast<int>(0xCBCBCBCBu) ? 1 : 0;
  EXPECT_GT(poisoned, 64);  // of 255 pairs about half run in the wrong order: 128 - 64 is 8 standard deviations
}

TEST_F(Kernels, GridBarrierOfACooperativeLaunch) {
  const int blocks = 9, threads = 96, n = blocks * threads;
  const Device<int> x(n), y(n);
  for (int repeat = 0; repeat < 3; ++repeat) {
    ASSERT_EQ(trial::reverse(x.data, y.data, blocks, threads, nullptr), cudaSuccess);
    const auto values = y.host();
    for (int i = 0; i < n; ++i) ASSERT_EQ(values[static_cast<std::size_t>(i)], n - 1 - i);
  }
  // 4 multiprocessors of 2048 threads hold 8 blocks of 1024
  EXPECT_EQ(trial::reverse(x.data, y.data, 9, 1024, nullptr), cudaErrorCooperativeLaunchTooLarge);
}

/// 512 bytes of its own beside what the launch asks for.
__global__ void both_kernel(int* out) {
  ALLNORM_EMULATED_SHARED(own, int[128]);
  auto* const asked = static_cast<int*>(allnorm_emulated_dynamic_shared());
  if (threadIdx.x == 0) *out = own[127] == asked[0] ? own[127] : 0;
}
/// Never run elsewhere: what it has is not known.
__global__ void unknown_kernel() {}

TEST_F(Kernels, SharedVariablesCountBesideWhatALaunchAsksFor) {
  constexpr std::size_t granted = 48 << 10, most = 227 << 10, own = 512;
  const Device<int> out(1);
  const auto launch = [&](std::size_t bytes) {
    cudaLaunchConfig_t config{};
    config.gridDim = config.blockDim = dim3(1);
    config.dynamicSmemBytes = bytes;
    const cudaError_t error = cudaLaunchKernelEx(&config, both_kernel, out.data);
    return error != cudaSuccess ? error : cudaDeviceSynchronize();
  };
  const auto raise = [](std::size_t bytes) {
    return cudaFuncSetAttribute(both_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  };
  cudaFuncAttributes attributes{};
  ASSERT_EQ(cudaFuncGetAttributes(&attributes, unknown_kernel), cudaSuccess);
  EXPECT_GT(attributes.sharedSizeBytes, own);                    // to be on the safe side
  EXPECT_EQ(launch(granted - own + 4), cudaErrorLaunchFailure);  // as soon as it is known
  EXPECT_NE(cuda_emulation::failure().find("static shared memory"), std::string::npos) << cuda_emulation::failure();
  cuda_emulation::reset();
  EXPECT_EQ(launch(granted - own + 4), cudaErrorInvalidValue);  // as CUDA does
  EXPECT_EQ(launch(granted - own), cudaSuccess);
  EXPECT_EQ(out.host()[0], static_cast<int>(0xCBCBCBCBu));  // both are poisoned
  ASSERT_EQ(cudaFuncGetAttributes(&attributes, both_kernel), cudaSuccess);
  EXPECT_EQ(attributes.sharedSizeBytes, own);
  EXPECT_EQ(attributes.maxDynamicSharedSizeBytes, static_cast<int>(granted - own));
  EXPECT_EQ(raise(most - own + 1), cudaErrorInvalidValue);
  EXPECT_EQ(raise(most - own), cudaSuccess);
  EXPECT_EQ(launch(most - own), cudaSuccess);
  EXPECT_EQ(launch(most - own + 4), cudaErrorInvalidValue);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);  // every device is asked
  EXPECT_EQ(launch(granted), cudaErrorInvalidValue);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
}

TEST_F(Kernels, CountsOverManyBarriers) {
  const Device<int> out(1);
  ASSERT_EQ(trial::many_barriers(out.data, 256, 100, nullptr), cudaSuccess);
  EXPECT_EQ(out.host()[0], 256 * 100);
}

}  // namespace
