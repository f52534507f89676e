// Whole layers against the oracle, on 1 to 4 ranks.
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "backend.hpp"
#include "norm_cases.hpp"

namespace norm_test {
namespace {

using namespace allnorm;
using norm_cases::Composition;

class Compositions : public testing::TestWithParam<std::pair<std::string, Composition>> {};

TEST_P(Compositions, EqualTheOracleOnAnyNumberOfRanks) {
  for (int ranks = 1; ranks <= 4; ++ranks)
    for (std::uint64_t seed : {1u, 2u, 3u}) {
      Composition c = GetParam().second;
      c.seed = 100 * c.seed + seed;
      harness::run(ranks, [&](const harness::World& world, Queue& queue) { norm_cases::check(c, world, queue); });
    }
}

TEST_P(Compositions, EqualTheOracleAlongATree) {
  Patience patience;
  patience.gather_limit = 1;
  harness::run(
      5, [](const harness::World& world, Queue& queue) { norm_cases::check(GetParam().second, world, queue); },
      patience);
}

TEST_P(Compositions, EqualTheOracleInEveryType) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    Composition c = GetParam().second;
    c.dtype = dtype;
    harness::run(2, [&](const harness::World& world, Queue& queue) { norm_cases::check(c, world, queue); });
  }
}

class Resumed : public testing::TestWithParam<std::tuple<std::pair<std::string, Composition>, DType>> {};

TEST_P(Resumed, CompositionsGoOnToTheSameBits) {
  for (const int ranks : {1, 3}) {
    Composition whole = std::get<0>(GetParam()).second;
    whole.dtype = std::get<1>(GetParam());
    std::vector<norm_cases::Trace> traces(static_cast<std::size_t>(ranks));
    harness::run(ranks, [&](const harness::World& world, Queue& queue) {
      traces[static_cast<std::size_t>(world->rank())] = norm_cases::check(whole, world, queue);
    });
    for (int step = 1; step < whole.steps; step += backend::takes_some ? 2 : 1) {
      Composition resumed = whole;
      resumed.resume_step = step;
      harness::run(ranks, [&](const harness::World& world, Queue& queue) {
        EXPECT_EQ(norm_cases::check(resumed, world, queue), traces[static_cast<std::size_t>(world->rank())])
            << "step " << step;
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Family, Compositions, testing::ValuesIn(norm_cases::compositions()),
                         [](const auto& composition) { return composition.param.first; });

INSTANTIATE_TEST_SUITE_P(Family, Resumed,
                         testing::Combine(testing::ValuesIn(norm_cases::compositions()),
                                          testing::Values(DType::f64, DType::f32)),
                         [](const auto& resumed) {
                           return std::get<0>(resumed.param).first + "_" +
                                  std::string(to_string(std::get<1>(resumed.param)));
                         });

}  // namespace
}  // namespace norm_test
