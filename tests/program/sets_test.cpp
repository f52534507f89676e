// `allnorm apply --split` of layers whose ranks hold parts of the same sets: attributes and shapes name the whole, and
// K ranks equal one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "build_config.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

using Values = std::vector<double>;

// An output of all ranks, its parts behind one another along `axis`.
Values joined(const Workplace& place, const std::string& name, int ranks, int axis) {
  std::vector<Values> parts;
  std::vector<std::size_t> inner;
  std::size_t outer = 1;
  for (int r = 0; r < ranks; ++r) {
    const std::string file = name + ".r" + std::to_string(r) + ".npy";
    const Shape shape = place.read(file).shape;
    outer = static_cast<std::size_t>(shape.product(0, axis));
    inner.push_back(static_cast<std::size_t>(shape.product(axis, shape.rank())));
    parts.push_back(place.values(file));
  }
  Values all;
  for (std::size_t i = 0; i < outer; ++i)
    for (std::size_t r = 0; r < parts.size(); ++r) {
      const auto from = parts[r].begin() + static_cast<std::ptrdiff_t>(i * inner[r]);
      all.insert(all.end(), from, from + static_cast<std::ptrdiff_t>(inner[r]));
    }
  return all;
}

Values added(const Workplace& place, const std::string& name, int ranks) {
  Values sum = place.values(name + ".r0.npy");
  for (int r = 1; r < ranks; ++r) {
    const Values more = place.values(name + ".r" + std::to_string(r) + ".npy");
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  }
  return sum;
}

void expect_near(const Values& got, const Values& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], want[i], 1e-11 * std::max(1.0, std::abs(want[i]))) << what << " " << i;
}

bool has_mpirun() { return ALLNORM_HAVE_MPI && std::system("mpirun --version > /dev/null 2>&1") == 0; }

struct Case {
  std::string words;     // layer and attributes
  Shape shape, affine;   // of files: input, weight
  std::string split;     // and what follows it
  int axis;              // of the input that is cut,
  int affine_axis = -1;  // of the weight; not cut
  int statistics = -1;   // of mean and rstd; every rank has all of them
  bool bias = true;
  int ranks = 2;
};

class Cut : public testing::TestWithParam<Case> {};

TEST_P(Cut, OverRanksIsOneRank) {
  const Case& c = GetParam();
  Workplace place;
  place.make("x.npy", c.shape);
  place.make("dy.npy", c.shape);
  place.make("r.npy", c.shape);
  place.make("w.npy", c.affine);
  const std::string words = "apply " + c.words +
                            " --input x.npy --grad-output dy.npy --weight w.npy --tensor residual=r.npy" +
                            (c.bias ? " --bias w.npy" : "");
  ASSERT_EQ(place.run(words + " --out whole").code, 0);
  const std::string set = words + " --set sync=world --split " + c.split;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    if (ranks != c.ranks && ranks != 1 && c.ranks > 0) continue;
    const std::string out = "o" + std::to_string(ranks);
    const Outcome outcome = place.run(set + " --ranks " + std::to_string(ranks) + " --out " + out);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    if (ranks == 1) {
      for (const char* name : {"/output.npy", "/grad_input.npy", "/rstd.npy", "/grad_weight.npy"})
        EXPECT_EQ(place.values(out + name), place.values("whole" + std::string(name))) << name;
      continue;
    }
    const auto whole = [&](const char* name) { return place.values("whole/" + std::string(name) + ".npy"); };
    for (const char* name : {"output", "grad_input", "grad_residual"})
      expect_near(joined(place, out + "/" + name, ranks, c.axis), whole(name), name);
    for (const char* name : {"grad_weight", "grad_bias"}) {
      if (!c.bias && name == std::string("grad_bias")) continue;
      const std::string file = out + "/" + name;
      expect_near(c.affine_axis >= 0 ? joined(place, file, ranks, c.affine_axis) : added(place, file, ranks),
                  whole(name), name);
    }
    for (const char* name : {"mean", "rstd"}) {
      if (!c.bias && name == std::string("mean")) continue;
      const std::string file = out + "/" + name;
      if (c.statistics >= 0) {
        expect_near(joined(place, file, ranks, c.statistics), whole(name), name);
        continue;
      }
      for (int r = 0; r < ranks; ++r)
        expect_near(place.values(file + ".r" + std::to_string(r) + ".npy"), whole(name), name);
    }
  }
}

// With `ranks` 0 on 1 to 4 of them, of which some have more than others, or none.
const Case cases[] = {
    {"instance_norm", {3, 4, 5, 2}, {4}, "space", 2, -1, -1, true, 0},
    {"instance_norm", {2, 3, 3}, {3}, "space", 2, -1, -1, true, 4},
    {"instance_norm --layout channels_last", {3, 5, 2, 4}, {4}, "space", 1, -1, -1, true, 3},
    {"group_norm --set groups=2", {3, 4, 5}, {4}, "space", 2, -1, -1, true, 3},
    {"group_norm --set groups=1", {3, 5, 3}, {5}, "channels", 1, 0, -1, true, 0},
    {"group_norm --set groups=1 --layout channels_last", {3, 3, 5}, {5}, "channels", 2, 0, -1, true, 3},
    {"group_norm --set groups=4", {3, 8, 3}, {8}, "channels", 1, 0, 1, true, 2},
    {"group_norm --set groups=4", {3, 12, 2}, {12}, "channels", 1, 0, 1, true, 2},
    {"group_norm --set groups=3", {3, 9, 2}, {9}, "channels", 1, 0, 1, true, 3},
    {"layer_norm", {3, 5, 4}, {5, 4}, "space", 1, 0, -1, true, 0},
    {"layer_norm --set normalized_shape=3,4", {2, 5, 3, 4}, {3, 4}, "space", 2, 0, -1, true, 4},
    {"layer_norm --set normalized_shape=5,4", {3, 5, 4}, {5, 4}, "channels", 1, 0, -1, true, 3},
    {"layer_norm --set normalized_shape=5,4 --layout channels_last", {3, 5, 4}, {5, 4}, "channels", 2, 1, -1, true, 3},
    {"layer_norm --set normalized_shape=5,4", {5, 4}, {5, 4}, "batch", 0, 0, -1, true, 3},
    {"rms_norm --set normalized_shape=5,4", {3, 5, 4}, {5, 4}, "space", 1, 0, -1, false, 3},
    {"rms_norm", {3, 2, 4}, {2, 4}, "channels", 1, 0, -1, false, 3},
};
INSTANTIATE_TEST_SUITE_P(Sets, Cut, testing::ValuesIn(cases));

// Groups that lie on two ranks each: mean and rstd of a rank are those of its group.
TEST(CutSets, OfTwoRanksEach) {
  Workplace place;
  place.make("x.npy", {3, 8, 5});
  place.make("dy.npy", {3, 8, 5});
  const std::string words = "apply group_norm --set groups=2 --input x.npy --grad-output dy.npy";
  ASSERT_EQ(place.run(words + " --out whole").code, 0);
  const Outcome outcome = place.run(words + " --set sync=world --split channels --ranks 4 --out o");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* name : {"output", "grad_input"})
    expect_near(joined(place, "o/" + std::string(name), 4, 1), place.values("whole/" + std::string(name) + ".npy"),
                name);
  const Values mean = place.values("whole/mean.npy");
  for (int r = 0; r < 4; ++r) {
    const Values own = place.values("o/mean.r" + std::to_string(r) + ".npy");
    for (std::size_t n = 0; n < 3; ++n) EXPECT_NEAR(own[n], mean[2 * n + static_cast<std::size_t>(r) / 2], 1e-12);
  }
  EXPECT_EQ(place.read("o/mean.r1.npy").shape, (Shape{3, 1}));
}

// Each rank its own part of a set.
TEST(CutSets, WithoutSyncAreEachRanksOwn) {
  Workplace place;
  place.make("x.npy", {2, 4, 6});
  ASSERT_EQ(place.run("apply instance_norm --split space --ranks 2 --input x.npy --out o").code, 0);
  EXPECT_NE(place.values("o/mean.r0.npy"), place.values("o/mean.r1.npy"));
  ASSERT_EQ(place.run("apply layer_norm --split space --ranks 2 --input x.npy --out l").code, 0);
  EXPECT_NE(place.values("l/mean.r0.npy"), place.values("l/mean.r1.npy"));
  // whole groups are the same either way
  ASSERT_EQ(place.run("apply group_norm --set groups=2 --input x.npy --out whole").code, 0);
  ASSERT_EQ(place.run("apply group_norm --set groups=2 --split channels --ranks 2 --input x.npy --out g").code, 0);
  expect_near(joined(place, "g/output", 2, 1), place.values("whole/output.npy"), "output");
  ASSERT_EQ(place.run("apply group_norm --set groups=1 --split channels --ranks 2 --input x.npy --out h").code, 0);
  EXPECT_NE(place.values("h/mean.r0.npy"), place.values("h/mean.r1.npy"));
}

TEST(CutSets, KeepRunningStatisticsOfTheWhole) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  const std::string words = "apply instance_norm --set track=true --input x.npy --steps 2 ";
  ASSERT_EQ(place.run(words + "--out whole").code, 0);
  const Outcome outcome = place.run(words + "--set sync=world --split space --ranks 3 --save-state s.st --out o");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* rank : {"0", "1", "2"})
    for (const char* name : {"running_mean", "running_var"})
      expect_near(place.values("o/" + std::string(name) + ".r" + rank + ".s1.npy"),
                  place.values("whole/" + std::string(name) + ".s1.npy"), name);
  EXPECT_EQ(
      place.run("apply instance_norm --set track=true --set training=false --load-state s.st --input x.npy --out p")
          .code,
      0);
}

TEST(CutSets, AreRefusedWhereNothingIsShared) {
  Workplace place;
  place.make("x.npy", {4, 6, 4});
  const auto told = [&](const std::string& words) {
    const Outcome outcome = place.run("apply " + words + " --input x.npy --out o");
    EXPECT_EQ(outcome.code, 2) << words << ": " << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_FALSE(place.exists("o"));
    return outcome.err;
  };
  const std::string two = " --set sync=world --ranks 2 --split ";
  EXPECT_NE(told("instance_norm" + two + "channels").find("--split"), std::string::npos);
  told("instance_norm" + two + "batch");
  told("group_norm --set groups=2" + two + "batch");
  told("layer_norm" + two + "batch");
  EXPECT_NE(told("layer_norm --set normalized_shape=4" + two + "channels").find("axis 1"), std::string::npos);
  told("rms_norm --set normalized_shape=6,4" + two + "batch");
  // rank 1 of three has channels 2 and 3, of two groups
  const std::string groups = told("group_norm --set groups=2 --set sync=world --ranks 3 --split channels");
  EXPECT_NE(groups.find("rank 1 has channels 2 to 3, a group has 3"), std::string::npos) << groups;
  told("group_norm --set groups=2 --ranks 3 --split channels");
  told("group_norm --set groups=4 --set sync=world --ranks 2 --split channels");  // of 6 channels
  told("group_norm --set groups=2 --set sync=world --ranks 7 --split channels");
  told("layer_norm --set normalized_shape=3,4" + two + "space");
}

TEST(CutSets, AreTheSameOverProcesses) {
  if (!has_mpirun()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  for (const auto& [words, split] : {std::pair<std::string, std::string>{"instance_norm", "space"},
                                     {"group_norm --set groups=2", "channels"},
                                     {"layer_norm", "space"}}) {
    const std::string call =
        "apply " + words + " --set sync=world --input x.npy --grad-output x.npy --split " + split + " --out ";
    const std::string ranks = split == "channels" ? "4" : "3";
    ASSERT_EQ(place.run(call + "threads --ranks " + ranks).code, 0);
    const Outcome outcome = place.run(call + "processes", "mpirun -n " + ranks);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    for (const std::string& file : place.list("threads"))
      EXPECT_EQ(place.bytes("threads/" + file), place.bytes("processes/" + file)) << words << ", " << file;
  }
  // Ranks without a group in common find that they disagree, too.
  const std::string base = "apply group_norm --set groups=2 --set sync=world --input x.npy --split channels --out o";
  const Outcome differ = place.run(base + " : -n 1 " + program() + " " + base + " --set eps=1e-3", "mpirun -n 1");
  EXPECT_EQ(differ.code, 4) << differ.err;
  EXPECT_NE(differ.err.find("eps is 0.001, must be 1e-05 as on rank 0"), std::string::npos) << differ.err;
}

// All ranks read the files of grad_mean and grad_std, which are of the whole set: they count once.
TEST(CutSets, OverProcessesCountGradientsOfStatisticsOnce) {
  if (!has_mpirun()) GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  Workplace place;
  place.make("x.npy", {2, 5, 3});
  place.make("dy.npy", {2, 5, 3});
  place.make("w.npy", {1, 1, 3});
  place.make("m.npy", {2, 1, 3});
  place.make("s.npy", {2, 1, 3});
  for (const std::string more : {" --grad-output dy.npy", ""}) {
    const std::string call =
        "apply positional_norm --set eps=1e-3 --input x.npy --weight w.npy --bias w.npy --tensor grad_mean=m.npy "
        "--tensor grad_std=s.npy" +
        more;
    const Outcome whole = place.run(call + " --out whole");
    ASSERT_EQ(whole.code, 0) << whole.err;
    const std::string cut = call + " --set sync=world --split channels --out ";
    ASSERT_EQ(place.run(cut + "threads --ranks 3").code, 0);
    const Outcome outcome = place.run(cut + "processes", "mpirun -n 3");
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto of_whole = [&](const char* name) { return place.values("whole/" + std::string(name) + ".npy"); };
    for (const char* name : {"output", "grad_input"})
      expect_near(joined(place, "processes/" + std::string(name), 3, 1), of_whole(name), name);
    for (const char* name : {"grad_weight", "grad_bias"})
      expect_near(added(place, "processes/" + std::string(name), 3), of_whole(name), name);
    for (const char* name : {"mean", "std"})
      for (const char* rank : {"0", "1", "2"})
        expect_near(place.values("processes/" + std::string(name) + ".r" + rank + ".npy"), of_whole(name), name);
    for (const std::string& file : place.list("threads"))
      EXPECT_EQ(place.bytes("threads/" + file), place.bytes("processes/" + file)) << file;
  }
}

}  // namespace
}  // namespace allnorm::test
