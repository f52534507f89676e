// Data far from 0 among threads: gathered, along a tree, and resumed in between.
#include <gtest/gtest.h>

#include <mutex>
#include <string>
#include <tuple>

#include "far_cases.hpp"
#include "norm_cases.hpp"

namespace far_test {
namespace {

using namespace allnorm;
using harness::World;

class FarFromZero : public testing::TestWithParam<std::tuple<int, int, DType>> {};

TEST_P(FarFromZero, RanksAreOneRank) {
  const auto [ranks, limit, dtype] = GetParam();
  Patience patience;
  patience.gather_limit = limit;
  const DType type = dtype;
  harness::run(
      ranks, [type](const World& world, Queue& queue) { far_cases::check(type, world, queue); }, patience);
}

std::string name_of(const testing::TestParamInfo<FarFromZero::ParamType>& info) {
  const auto [ranks, limit, dtype] = info.param;
  return std::to_string(ranks) + (ranks <= limit ? "Gathered_" : "InATree_") + std::string(to_string(dtype));
}

INSTANTIATE_TEST_SUITE_P(Groups, FarFromZero,
                         testing::Combine(testing::Values(2, 3, 5), testing::Values(32, 1),
                                          testing::Values(DType::f64, DType::f32, DType::f16, DType::bf16)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(ManyRanks, FarFromZero,
                         testing::Values(std::tuple(33, 32, DType::f64), std::tuple(33, 64, DType::f32)), name_of);

}  // namespace
}  // namespace far_test
