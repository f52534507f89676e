// The program with --device cuda against the same command on the CPU, alone and with ranks as threads on one GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "allnorm/device.hpp"
#include "build_config.hpp"
#include "launch/files/npy_convert.hpp"
#include "program/runner.hpp"

#if ALLNORM_HAVE_TORCH
#include <fstream>
#include <nlohmann/json.hpp>

#include "adapters/torch/streams.hpp"
#endif

namespace allnorm::test {
namespace {

// Eps of what `output` is rounded to.
double eps_of(const std::string& dtype) {
  if (dtype == "f64") return std::numeric_limits<double>::epsilon();
  if (dtype == "f32") return std::numeric_limits<float>::epsilon();
  return dtype == "f16" ? 0x1p-10 : 0x1p-7;
}

struct Call {
  const char* name;
  const char* words;  // beside the tensors that every call has
  int steps = 1;
};
void PrintTo(const Call& call, std::ostream* out) { *out << call.name; }

struct Setting {
  const char* dtype;
  const char* layout;
  int ranks;
};
void PrintTo(const Setting& s, std::ostream* out) { *out << s.dtype << " " << s.layout << " " << s.ranks; }

constexpr int samples[] = {3, 0, 2};  // of ranks 0, 1 and 2

class OnBothDevices : public testing::TestWithParam<std::tuple<Call, Setting>> {
 protected:
  // Files of rank r and step s: x and dy of 6 channels; a, the input of a 3 x 3 convolution that made x; its weight.
  void make_files(int steps) {
    const bool last = std::string(setting().layout) == "channels_last";
    for (int s = 0; s < steps; ++s) {
      const std::string step = std::to_string(s);
      for (int r = 0; r < setting().ranks; ++r) {
        const std::string end = "." + std::to_string(r) + "." + step + ".npy";
        const std::int64_t n = samples[r];
        make("x" + end, last ? Shape{n, 5, 3, 6} : Shape{n, 6, 5, 3}, 1.0 + r + 3 * s);
        make("dy" + end, last ? Shape{n, 5, 3, 6} : Shape{n, 6, 5, 3}, 2.0 + r + 5 * s);
        write_labels("k." + std::to_string(r) + ".npy", n);
        make("a" + end, last ? Shape{n, 5, 3, 2} : Shape{n, 2, 5, 3}, 3.0 + r + 7 * s);
      }
      make("w." + step + ".npy", {6, 2, 3, 3}, 4.0 + 0.001 * (s / 2));  // the same for two mini-batches
    }
    make("g.npy", {6}, 5);
    make("b.npy", {6}, 6);
    make("m.npy", {6}, 7);
    make("t.npy", {4, 6}, 8);
    place.write("v.npy", launch::from_doubles(std::vector<double>{1.5, 2, 2.5, 3, 3.5, 4}, {6}));
  }
  void make(const std::string& name, const Shape& shape, double seed) const {
    std::vector<double> values(static_cast<std::size_t>(shape.elements()));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = 0.5 + std::sin(seed * (static_cast<double>(i) + 1)) + std::cos(1.7 * static_cast<double>(i) + seed);
    place.write(name, launch::from_doubles(values, shape));
  }
  void write_labels(const std::string& name, std::int64_t samples_of_rank) const {
    std::vector<std::int64_t> labels;
    for (std::int64_t n = 0; n < samples_of_rank; ++n) labels.push_back((3 * n + 2) % 4);
    launch::NpyArray array{launch::NpyType::i64, {samples_of_rank}, std::vector<std::byte>(labels.size() * 8)};
    if (!labels.empty()) std::memcpy(array.data.data(), labels.data(), array.data.size());
    place.write(name, array);
  }
  const Setting& setting() const { return std::get<1>(GetParam()); }
  Outcome run(const std::string& device) const {
    const auto& [call, s] = GetParam();
    std::string words = "apply " + std::string(call.words) +
                        " --input x.{rank}.{step}.npy --grad-output dy.{rank}.{step}.npy --dtype " + s.dtype +
                        " --layout " + s.layout + " --ranks " + std::to_string(s.ranks) + " --steps " +
                        std::to_string(call.steps) + " --device " + device + " --out " + device;
    return place.run(words);
  }
  Workplace place;
};

// Statistics are added in double on both, by other trees over n values; what is written in T is rounded to T once, and
// two roundings of nearly the same number are at most one spacing apart. Ten operations lie between sums and results.
TEST_P(OnBothDevices, GiveTheSameNumbers) {
  const auto& [call, s] = GetParam();
  make_files(call.steps);
  const Outcome on_cpu = run("cpu"), on_gpu = run("cuda");
  ASSERT_EQ(on_cpu.code, 0) << on_cpu.err;
  ASSERT_EQ(on_gpu.code, 0) << on_gpu.err;
  const auto names = place.list("cpu");
  ASSERT_EQ(place.list("cuda"), names);
  ASSERT_FALSE(names.empty());
  constexpr double n = 5 * 5 * 3;  // values per channel
  for (const std::string& name : names) {
    const auto expected = place.values("cpu/" + name), found = place.values("cuda/" + name);
    ASSERT_EQ(found.size(), expected.size()) << name;
    double scale = 1;
    for (const double value : expected) scale = std::max(scale, std::abs(value));
    // Parameters, and with them their gradients' inputs, are in f32 unless all is in f64.
    const double eps = std::max(eps_of(s.dtype), std::string(s.dtype) == "f64" ? 0.0 : eps_of("f32"));
    const double bound = (eps + 10 * n * std::numeric_limits<double>::epsilon()) * scale;
    for (std::size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(found[i], expected[i], bound) << name << " at " << i << "\n" << call.words;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layers, OnBothDevices,
    testing::Combine(
        testing::Values(
            Call{"batch_norm", "batch_norm --set sync=world --weight g.npy --bias b.npy --set activation=relu", 2},
            Call{"running", "batch_norm --set training=false --tensor running_mean=m.npy --tensor running_var=v.npy"},
            Call{"renorm", "batch_renorm --set sync=world --weight g.npy --bias b.npy --tensor running_mean=m.npy", 3},
            Call{"group_norm", "group_norm --set groups=3 --weight g.npy --bias b.npy"},
            Call{"mini_batches", "cross_mini_batch_norm --set sync=world --set minibatches=2", 5},
            Call{"all",
                 "cross_iteration_batch_norm --set sync=world --set window=3 --set minibatches=2 --set renorm=true "
                 "--set r_max=3 --set d_max=5 --set conv_padding=1 --tensor conv_input=a.{rank}.{step}.npy --tensor "
                 "conv_weight=w.{step}.npy",
                 7}),
        testing::Values(Setting{"f64", "channels_first", 1}, Setting{"f32", "channels_last", 1},
                        Setting{"f64", "channels_last", 3}, Setting{"f32", "channels_first", 3},
                        Setting{"f16", "channels_first", 3}, Setting{"bf16", "channels_last", 1})));

INSTANTIATE_TEST_SUITE_P(
    Rows, OnBothDevices,
    testing::Combine(testing::Values(Call{"layer_norm", "layer_norm --set normalized_shape=6,5,3"}),
                     testing::Values(Setting{"f64", "channels_first", 1}, Setting{"f32", "channels_first", 3},
                                     Setting{"f16", "channels_first", 1}, Setting{"bf16", "channels_first", 3})));

INSTANTIATE_TEST_SUITE_P(
    Operations, OnBothDevices,
    testing::Combine(
        testing::Values(
            Call{"labels",
                 "conditional_batch_norm --set sync=world --weight t.npy --bias t.npy --tensor labels=k.{rank}.npy", 2},
            Call{"styles", "conditional_instance_norm --weight t.npy --bias t.npy --tensor styles=k.{rank}.npy"},
            Call{"adaptive", "adaptive_instance_norm --tensor style=dy.{rank}.{step}.npy"},
            Call{"maps",
                 "spade --set sync=world --tensor gamma=dy.{rank}.{step}.npy --tensor beta=x.{rank}.{step}.npy"},
            Call{"mixed", "switchable_norm --set sync=world --weight g.npy --bias b.npy --tensor running_mean=m.npy",
                 2},
            Call{"neighbours", "local_response_norm --set alpha=0.5 --set size=4"},
            Call{"tracking", "instance_norm --set track=true --weight g.npy --bias b.npy", 2}),
        testing::Values(Setting{"f64", "channels_last", 1}, Setting{"f32", "channels_first", 3},
                        Setting{"f16", "channels_last", 3}, Setting{"bf16", "channels_first", 1})));

INSTANTIATE_TEST_SUITE_P(Weights, OnBothDevices,
                         testing::Combine(testing::Values(Call{"lengths", "weight_norm --set dim=1 --tensor g=g.npy"}),
                                          testing::Values(Setting{"f64", "channels_first", 1},
                                                          Setting{"bf16", "channels_first", 1})));

struct Wrong {
  const char* words;
  int code;
  const char* part;  // of the line
};

class Disagreement : public testing::Test {
 protected:
  Disagreement() {
    for (const char* rank : {"0", "1"})
      for (const char* step : {"0", "1", "2"}) {
        const std::string end = "." + std::string(rank) + "." + step + ".npy";
        place.make("x" + end, {2, 4, 5, 1});
        place.make("a" + end, {2, 2, 5, 1});
        // rank 1 has another weight at step 1
        place.write("w" + end, launch::from_doubles(std::vector<double>(8, rank[0] == '1' && step[0] == '1' ? 2 : 1),
                                                    {4, 2, 1, 1}));
        place.make("odd" + end, {2, rank[0] == '1' ? 3 : 4, 5});
      }
  }
  Workplace place;
};

TEST_F(Disagreement, HasTheExitCodeAndLineOfTheCpu) {
  const Wrong all[] = {
      {"sync_batch_norm --input odd.{rank}.0.npy", 4, "rank 1: sync_batch_norm, call 0, forward: number of channels"},
      {"sync_batch_norm --input nowhere.npy", 3, "nowhere.npy"},
      {"cross_iteration_batch_norm --set sync=world --set window=2 --input x.{rank}.{step}.npy --tensor "
       "conv_input=a.{rank}.{step}.npy --tensor conv_weight=w.{rank}.{step}.npy --steps 3",
       4, "rank 1: cross_iteration_batch_norm, call 1, forward: conv_weight differs"},
  };
  for (const Wrong& wrong : all) {
    const std::string words = "apply " + std::string(wrong.words) + " --ranks 2 --out o --device ";
    const Outcome on_cpu = place.run(words + "cpu"), on_gpu = place.run(words + "cuda");
    EXPECT_EQ(on_gpu.code, wrong.code) << on_gpu.err;
    EXPECT_EQ(on_gpu.err, on_cpu.err);
    EXPECT_NE(on_gpu.err.find(wrong.part), std::string::npos) << on_gpu.err;
    EXPECT_FALSE(place.exists("o"));
  }
}

TEST_F(Disagreement, ALoneRanksWeightsThatChangeWithinABatchAreExitTwo) {
  const Outcome outcome = place.run(
      "apply cross_iteration_batch_norm --set window=2 --set minibatches=3 --input x.1.{step}.npy --tensor "
      "conv_input=a.1.{step}.npy --tensor conv_weight=w.1.{step}.npy --steps 3 --device cuda --out o");
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_NE(outcome.err.find("conv_weight has changed within a batch"), std::string::npos) << outcome.err;
  EXPECT_FALSE(place.exists("o"));
}

TEST(Labels, WithoutARowAreExitThree) {
  Workplace place;
  place.make("x.npy", {2, 3, 4});
  place.make("t.npy", {4, 3});
  launch::NpyArray labels{launch::NpyType::i64, {2}, std::vector<std::byte>(16)};
  labels.data[8] = std::byte{7};
  place.write("k.npy", labels);
  const Outcome outcome = place.run(
      "apply conditional_batch_norm --input x.npy --weight t.npy --tensor labels=k.npy --device cuda --out o");
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_NE(outcome.err.find("labels had 7 at 1"), std::string::npos) << outcome.err;
  EXPECT_FALSE(place.exists("o"));
}

class OverNccl : public testing::Test {
 protected:
  void SetUp() override {
    if (!ALLNORM_HAVE_NCCL) GTEST_SKIP() << "this build has no NCCL";
    place.make("x.npy", {9, 4, 5});
  }
  Outcome run(int ranks, const std::string& more) const {
    return place.run("apply sync_batch_norm --input x.npy --split batch --ranks " + std::to_string(ranks) + more);
  }
  Workplace place;
};

TEST_F(OverNccl, RanksAsThreadsWithAGpuEachHaveTheBitsOfOtherRanks) {
  const int gpus = std::min(cuda_devices(), 4);
  const Outcome over_nccl = run(gpus, " --device cuda --transport nccl --out nccl");
  const Outcome through_threads = run(gpus, " --device cuda --transport threads --out threads");
  ASSERT_EQ(over_nccl.code, 0) << over_nccl.err;
  ASSERT_EQ(through_threads.code, 0) << through_threads.err;
  const auto names = place.list("nccl");
  EXPECT_EQ(place.list("threads"), names);
  for (const std::string& name : names)
    EXPECT_EQ(place.values("nccl/" + name), place.values("threads/" + name)) << name;
}

TEST_F(OverNccl, TwoRanksOnOneGpuAreExitSix) {
  const int gpus = cuda_devices();
  if (gpus > 8) GTEST_SKIP() << "9 samples are for at most 9 ranks";
  const Outcome outcome = run(gpus + 1, " --device cuda --transport nccl --out o");
  EXPECT_EQ(outcome.code, 6) << outcome.err;
  EXPECT_EQ(outcome.err, "allnorm: ranks 0 and " + std::to_string(gpus) +
                             " are both on cuda:0, must each have a GPU of their own or an NCCL_HOSTID of their own\n");
}

TEST_F(OverNccl, RanksOfSeveralMachinesNeedAJobToken) {
  const Outcome outcome = place.run_with({"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=192.0.2.1"},
                                         "apply sync_batch_norm --input x.npy --out o --device cuda --transport nccl");
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_TRUE(outcome.one_line()) << outcome.err;
  EXPECT_NE(outcome.err.find("ALLNORM_JOB_TOKEN"), std::string::npos) << outcome.err;
}

#if ALLNORM_HAVE_TORCH

// The mean losses of the epochs in a log.
std::vector<double> losses(const std::string& path) {
  std::vector<double> all;
  std::ifstream log(path);
  for (std::string line; std::getline(log, line);) {
    const auto entry = nlohmann::json::parse(line);
    if (entry.contains("loss") && entry["loss"].is_number()) all.push_back(entry["loss"]);
  }
  return all;
}

TEST(TrainingOnGpus, IsForProcesses) {
  const Workplace place;
  const std::string words =
      "train --norm sync_batch_norm --batch-per-rank 1280 --epochs 2 --data " + of_project("data/digits") + " --log ";
  const Outcome threads = place.run(words + "threads --device cuda --ranks 2");
  EXPECT_EQ(threads.code, 6);
  EXPECT_EQ(
      threads.err,
      "allnorm: --device is cuda, must be cpu for ranks as threads: libtorch runs the backward pass of one GPU on "
      "one thread (or: mpirun -n K allnorm train --device cuda ...)\n");
  const Outcome alone = place.run(words + "cuda --device cuda");
  if (!torch_adapter::has_gpus()) {
    EXPECT_EQ(alone.code, 6);
    EXPECT_EQ(alone.err,
              "allnorm: --device is cuda, must be cpu: the libtorch of this build has no CUDA; install one that has it "
              "(pip's torch) and configure again\n");
    return;
  }
  ASSERT_EQ(alone.code, 0) << alone.err;
  ASSERT_EQ(place.run(words + "cpu").code, 0);
  const std::vector<double> on_gpu = losses(place.path("cuda")), on_cpu = losses(place.path("cpu"));
  ASSERT_EQ(on_cpu.size(), 2u);
  ASSERT_EQ(on_gpu.size(), 2u);
  // An epoch is one update: the first loss is of the first weights, the second has the first gradients in it.
  // libtorch's convolutions on GPUs round their factors to 10 bits unless told otherwise (TF32), in each of five
  // blocks.
  for (std::size_t epoch = 0; epoch < 2; ++epoch)
    EXPECT_NEAR(on_gpu[epoch], on_cpu[epoch], 5 * 0x1p-10 * on_cpu[epoch]);
}

#endif

}  // namespace
}  // namespace allnorm::test
