// Where there is no GPU every test of this program is skipped, with the reason.
#include <gtest/gtest.h>

#include "allnorm/device.hpp"

namespace allnorm::test {
namespace {

class NeedsGpu : public testing::Environment {
 public:
  void SetUp() override {
    if (cuda_devices() == 0) GTEST_SKIP() << cuda_summary();
  }
};
const testing::Environment* const needs_gpu = testing::AddGlobalTestEnvironment(new NeedsGpu);

}  // namespace
}  // namespace allnorm::test
