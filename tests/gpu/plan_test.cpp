// How reductions on a GPU cut partitions: every element exactly once, enough blocks, offsets beyond 32 bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/grid.cuh"
#include "kernels_support.hpp"

namespace allnorm::cuda {
namespace {

constexpr std::int64_t h200 = 132;  // multiprocessors

/// How often each element is read, with the group that it is added to checked on the way.
struct Coverage {
  const Partition& p;
  std::vector<int> reads;  // (elements)

  explicit Coverage(const Partition& partition) : p(partition), reads(static_cast<std::size_t>(partition.elements())) {}
  void read(std::int64_t at, int count, std::int64_t group) {
    for (std::int64_t i = at; i < at + count; ++i) {
      ASSERT_GE(i, 0);
      ASSERT_LT(i, p.elements());
      ASSERT_EQ(p.group_of(i), group);
      ++reads[static_cast<std::size_t>(i)];
    }
  }
  void expect_once() const {
    for (std::size_t i = 0; i < reads.size(); ++i) ASSERT_EQ(reads[i], 1) << "element " << i;
  }
};

/// The offsets of a thread's vectors, which are the same on the way back.
template <class Walk>
std::vector<std::int64_t> offsets_of(Walk walk) {
  std::vector<std::int64_t> there, back;
  Walk end = walk;
  for (std::int64_t left = walk.count; left > 0; --left, walk.next()) there.push_back(walk.at);
  if (end.count > 0) end.to_last();
  for (std::int64_t left = end.count; left > 0; --left, end.back()) back.push_back(end.at);
  EXPECT_TRUE(std::equal(there.begin(), there.end(), back.rbegin(), back.rend()));
  return there;
}

void cover(const RunPlan& plan, Coverage& coverage) {
  for (std::int64_t group = 0; group < plan.p.groups(); ++group)
    for (std::int64_t index = 0; index < plan.parts; ++index) {
      const RunPlan::Part part = plan.part(group, index);
      EXPECT_TRUE(part.values() > 0 || plan.p.elements() == 0);
      EXPECT_EQ(part.values(), plan.values_of(index));
      std::int64_t values = 0;
      for (int lane = 0; lane < plan.lanes; ++lane) {
        const auto offsets = offsets_of(plan.walk(part, lane));
        EXPECT_LE(static_cast<std::int64_t>(offsets.size()), plan.most_of_unit());
        for (const std::int64_t at : offsets) {
          coverage.read(at, plan.vector, group);
          values += plan.vector;
          if (lane > 0) continue;
          EXPECT_GE(at, plan.first_of(group));
        }
      }
      EXPECT_EQ(values, part.values());
    }
}

void cover(const ColumnPlan& plan, Coverage& coverage) {
  for (std::int64_t block = 0; block < plan.blocks; ++block) {
    const ColumnPlan::Unit unit = plan.unit(block);
    EXPECT_GT(unit.rows, 0);
    EXPECT_GT(unit.columns, 0);
    EXPECT_EQ(unit.columns % plan.group_width, 0);
    EXPECT_EQ(unit.columns % plan.vector, 0);
    for (int thread = 0; thread < block_threads; ++thread) {
      const auto offsets = offsets_of(plan.walk(unit, thread));
      EXPECT_LE(static_cast<std::int64_t>(offsets.size()), plan.most_of_unit());
      for (const std::int64_t at : offsets)
        for (int j = 0; j < plan.vector; ++j) {
          const std::int64_t column = unit.column + plan.column(thread) + j;
          const std::int64_t group = plan.group_of(unit.matrix, column);
          coverage.read(at + j, 1, group);
          EXPECT_EQ((at + j) % plan.width, column);
          EXPECT_EQ(coverage.p.group_of(plan.first_of(unit.matrix, column)), group);
        }
    }
  }
}

TEST(ReductionPlan, ReadsEveryElementOnce) {
  for (const Partition& given : kernel_test::partitions)
    for (const int vector : {1, 2, 4, 8})
      for (const std::int64_t wanted : {std::int64_t{4}, 2 * h200}) {
        const Partition p = canonical(given);
        SCOPED_TRACE(kernel_test::text(p) + " by " + std::to_string(vector) + " over " + std::to_string(wanted));
        EXPECT_EQ(p.groups(), given.groups());
        if (p.reduce1 % vector == 0) {
          Coverage coverage(given);
          cover(plan_runs(p, vector, wanted), coverage);
          coverage.expect_once();
        }
        if (by_columns(p) && p.keep1 * p.reduce1 % vector == 0) {
          Coverage coverage(given);
          cover(plan_columns(p, vector, wanted), coverage);
          coverage.expect_once();
        }
      }
}

/// The threads of a tile hold whole groups, and no more of them than a block has.
TEST(ReductionPlan, TilesHoldWholeGroups) {
  for (std::int64_t run = 1; run <= short_run; ++run)
    for (const int vector : {1, 2, 4, 8}) {
      const Partition p{1, 32, 8 * 257, run};
      const ColumnPlan plan = plan_columns(p, vector, 2 * h200);
      EXPECT_EQ(plan.tile() % run, 0);
      EXPECT_LE(plan.across, tile_maximum);
      EXPECT_GE(plan.down, 1);
      EXPECT_LE(plan.across * plan.down, block_threads);
      EXPECT_GE(plan.tiles * plan.tile(), plan.width);
      EXPECT_LE((plan.down + 1) / 2 * plan.tile() + 4 * plan.tile(), plan.shared_doubles());
    }
}

TEST(ReductionPlan, FewChannelsFillTheGpu) {
  const std::int64_t wanted = 2 * h200;
  const Partition first = canonical(partition({Axis::channel}, {32, 64, 56, 56}, Order::channels_first)),
                  last = canonical(partition({Axis::channel}, {32, 64, 56, 56}, Order::channels_last));
  ASSERT_FALSE(by_columns(first));
  ASSERT_TRUE(by_columns(last));
  EXPECT_GE(plan_runs(first, 4, wanted).blocks, wanted * 9 / 10);
  EXPECT_GE(plan_columns(last, 4, wanted).blocks, wanted * 9 / 10);
  EXPECT_LE(plan_runs(first, 4, wanted).blocks, wanted);
  EXPECT_LE(plan_columns(last, 4, wanted).blocks, wanted);
  for (const std::int64_t groups : {1, 3, 17})  // one long run each
    EXPECT_GE(plan_runs({1, 1, groups, 1 << 22}, 4, wanted).blocks, wanted * 9 / 10) << groups;
}

/// Groups that leave much of the last wave idle are cut, and no others: time is waves times the values of a part.
TEST(ReductionPlan, WavesAreFull) {
  for (const std::int64_t groups : {64, 100, 132, 140, 200, 300, 2048}) {
    SCOPED_TRACE(groups);
    const Partition p{1, 32, groups, 3136};
    const RunPlan plan = plan_runs(p, 4, h200);
    const auto time = static_cast<double>(ceil_div(plan.blocks, h200) * plan.part_runs * plan.part_length);
    const auto ideal = static_cast<double>(p.elements()) / h200;
    EXPECT_LE(ideal / time, 1);
    EXPECT_GE(ideal / time, 0.75);
    const auto uncut = ideal / static_cast<double>(ceil_div(groups, h200) * p.group_size());
    if (uncut > 7. / 8) {
      EXPECT_EQ(plan.parts, 1);
    }
  }
  const ColumnPlan columns = plan_columns({100, 4096, 64, 1}, 4, h200);
  EXPECT_GE(columns.parts, 5);
}

/// Threads of one warp read adjacent vectors where a run is long enough for them.
TEST(ReductionPlan, WarpsReadAdjacentVectors) {
  for (const std::int64_t run : {128, 1000, 3136, 65536})
    EXPECT_GE(plan_runs({1, 32, 64, run}, 4, 2 * h200).across, 32) << run;
}

TEST(ReductionPlan, OffsetsPassThirtyTwoBits) {
  const Partition runs{1, 70000, 3, 40000};  // 8.4e9 elements
  const RunPlan plan = plan_runs(runs, 4, 2 * h200);
  const RunPlan::Part part = plan.part(2, plan.parts - 1);
  RunWalk walk = plan.walk(part, plan.lanes - 1);
  std::int64_t last = 0;
  for (; walk.count > 0; --walk.count, walk.next()) last = walk.at;
  EXPECT_GT(last, std::int64_t{1} << 32);
  EXPECT_LT(last, runs.elements());
  EXPECT_EQ(runs.group_of(last), 2);
  const Partition columns{1, 3000000000, 4, 1};
  const ColumnPlan tall = plan_columns(columns, 4, 2 * h200);
  const ColumnPlan::Unit unit = tall.unit(tall.blocks - 1);
  EXPECT_EQ(unit.row + unit.rows, columns.reduce0);
}

}  // namespace
}  // namespace allnorm::cuda
