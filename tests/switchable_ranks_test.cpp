// Switchable Normalization over ranks that hold samples of their own, or parts of the same ones, and where they
// disagree.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backend.hpp"
#include "harness.hpp"
#include "switchable_cases.hpp"

namespace switchable_ranks_test {
namespace {

using namespace allnorm;
using namespace switchable_cases;
using cases::Extents;
using harness::error_of;

// Ranks whose samples have another number and another size, or that have none.
TEST(SwitchableNorm, OverRanksWithSamplesOfTheirOwnIsOneBatch) {
  const std::vector<std::vector<Extents>> all = {
      {{2, 3, 4}},
      {{2, 3, 4}, {3, 3, 4}},
      {{2, 3, 4}, {1, 3, 7}},
      {{0, 3, 4}, {2, 3, 5, 2}, {1, 3, 1}},
      {{1, 3, 6}, {2, 3, 0}, {3, 3, 2}, {1, 3, 1, 2}},
      {{0, 3, 4}, {2, 3, 0}},
  };
  for (const DType dtype : types)
    for (const auto& shapes : all)
      for (const bool training : {true, false}) {
        if (backend::takes_some && !training && shapes.size() != 2) continue;  // exchanges nothing
        SCOPED_TRACE(std::string(to_string(dtype)) + ", " + std::to_string(shapes.size()) + " ranks" +
                     (training ? "" : ", inference"));
        const Batch batch(shapes, {.training = training}, dtype);
        harness::run(static_cast<int>(shapes.size()),
                     [&](const harness::World& world, Queue&) { batch.expect_calls(world); });
      }
}

void expect_parts_of_samples(const std::vector<std::int64_t>& parts, const Options& o, DType dtype, double ratio = 0,
                             double scale = 1) {
  const Samples samples(parts, o, dtype, ratio, scale);
  std::vector<Arrays> shares(parts.size());
  harness::run(static_cast<int>(parts.size()), [&](const harness::World& world, Queue&) {
    shares[static_cast<std::size_t>(world->rank())] = samples.expect_calls(world);
  });
  samples.expect_sums(shares);
}

TEST(SwitchableNorm, OverRanksWithPartsOfSamplesIsTheWhole) {
  const std::vector<std::vector<std::int64_t>> cuts{{6}, {3, 3}, {1, 5}, {0, 4, 2}, {2, 0, 3, 1}};
  for (const DType dtype : types)
    for (const auto& parts : cuts)
      for (const bool training : {true, false})
        for (const bool unbiased : {false, true}) {
          if (backend::takes_some && unbiased == training) continue;
          SCOPED_TRACE(std::string(to_string(dtype)) + ", " + std::to_string(parts.size()) + " ranks" +
                       (training ? "" : ", inference") + (unbiased ? ", unbiased" : ""));
          expect_parts_of_samples(parts, {.training = training, .unbiased = unbiased}, dtype);
        }
}

TEST(SwitchableNorm, MayBeFarFromZeroAndOfAnyScale) {
  for (const double ratio : {1e4, 1e8}) {
    SCOPED_TRACE("ratio " + std::to_string(ratio));
    expect_parts_of_samples({6}, {}, DType::f64, ratio);
    expect_parts_of_samples({0, 4, 2}, {}, DType::f64, ratio);
  }
  expect_parts_of_samples({4, 2}, {}, DType::f32, 1e4);
  for (const double scale : {1e-140, 1e140}) {
    SCOPED_TRACE("scale " + std::to_string(scale));
    expect_parts_of_samples({4, 2}, {.eps = 0}, DType::f64, 0, scale);
  }
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const double scale : {1e-28, 1e28}) expect_parts_of_samples({4, 2}, {.eps = 0}, dtype, 0, scale);
}

TEST(SwitchableNorm, SaysWhatIsWrongAndTellsTheOtherRanks) {
  const auto told = [](const std::string& first, const std::string& second, const Shape& of_second,
                       const Shape& logits = {3}) {
    std::vector<std::string> all(2);
    harness::run(2, [&](const harness::World& world, Queue& queue) {
      const bool is_first = world->rank() == 0;
      const Shape shape = is_first ? Shape{2, 3, 4} : of_second;
      const backend::Array<double> x(64, 1.0);
      backend::Array<double> y(64);
      const auto operation = make_operation(parse_layer(is_first ? first : second), 3, world, queue);
      all[static_cast<std::size_t>(world->rank())] = error_of([&] {
        operation->forward({{"input", backend::view(x.data(), shape)},
                            {"mean_logits", backend::view(x.data(), is_first ? Shape{3} : logits)}},
                           {{"output", backend::view(y.data(), shape)}}, queue);
      });
      queue.wait();
    });
    return all;
  };
  const std::string batch = "switchable_norm", space = "switchable_norm:shard=space";
  const std::string at = "mismatch: rank 1: switchable_norm, call 0, forward: ";
  EXPECT_EQ(told(batch, batch, {2, 3, 4})[0], "");
  EXPECT_EQ(told(batch, batch, {2, 3, 7})[1], "");
  EXPECT_EQ(told(space, space, {2, 3, 7})[1], "");
  EXPECT_EQ(told(space, space, {3, 3, 4})[0], at + "number of groups is 9, must be 6 as on rank 0");
  EXPECT_EQ(told(batch, batch + ":eps=1", {2, 3, 4})[1], at + "eps is 1, must be 1e-05 as on rank 0");
  EXPECT_NE(told(batch, space, {2, 3, 4})[0].find("shard is space, must be batch as on rank 0"), std::string::npos);
  EXPECT_EQ(told(space, space + ":training=false", {2, 3, 4})[0],
            at + "mode is inference, must be training as on rank 0");
  const auto logits = told(batch, batch, {2, 3, 4}, {2});
  EXPECT_EQ(logits[1], "invalid input: mean_logits has shape (2,), must have (3,)");
  EXPECT_NE(logits[0].find("mean_logits has shape (2,)"), std::string::npos) << logits[0];
  const auto channels = told(space, space, {2, 2, 4});
  EXPECT_EQ(channels[1], "invalid input: input has 2 channels, must have 3");
  EXPECT_NE(channels[0].find("input has 2 channels"), std::string::npos) << channels[0];
}

}  // namespace
}  // namespace switchable_ranks_test
