// Where there is no GPU every test of this program is skipped, with the reason.
#include <gtest/gtest.h>

#include <cstdlib>

#include "allnorm/device.hpp"

namespace allnorm::test {
namespace {

/// Ranks of a test are threads that share the GPU; before anything uses CUDA.
const int kernels_are_loaded_at_the_start = ::setenv("CUDA_MODULE_LOADING", "EAGER", 1);

class NeedsGpu : public testing::Environment {
 public:
  void SetUp() override {
    if (cuda_devices() == 0) GTEST_SKIP() << cuda_summary();
  }
};
const testing::Environment* const needs_gpu = testing::AddGlobalTestEnvironment(new NeedsGpu);

}  // namespace
}  // namespace allnorm::test
