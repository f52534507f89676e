// `allnorm bench --device cuda`: single calls and calls replayed from graphs, what is exchanged, what cannot be had.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "allnorm/device.hpp"
#include "build_config.hpp"
#include "launch/files/json_lines.hpp"
#include "program/runner.hpp"
#include "src/gpu_timing.hpp"

namespace allnorm::test {
namespace {

using Json = nlohmann::ordered_json;

class BenchOnGpus : public testing::Test {
 protected:
  Outcome run(const std::string& words) const {
    return place.run("bench --device cuda --json b.jsonl -n 2 -w 0 --rotate 2 " + words);
  }
  std::vector<Json> events(std::string_view kind) const {
    std::vector<Json> all = launch::read_json_lines(place.path("b.jsonl"));
    std::erase_if(all, [&](const Json& event) { return !launch::is_event(event, kind); });
    return all;
  }
  Workplace place;
};

TEST_F(BenchOnGpus, TimesCallsAndReplays) {
  const Outcome outcome = run("--layer batch_norm --layer layer_norm --shape 2,8,3,3 --csv b.csv");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const Json config = events("config").at(0);
  EXPECT_NE(outcome.out.find(", device cuda:0 (" + config["gpu"].get<std::string>() + ")\n"), std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("# CUDA driver " + config["cuda_driver"].get<std::string>() + ", runtime "),
            std::string::npos)
      << outcome.out;
  EXPECT_GT(config["l2_bytes"], 0);
  const auto lines = events("measurement");
  ASSERT_EQ(lines.size(), 4u);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Json& line = lines[i];
    EXPECT_EQ(line["mode"], i % 2 == 0 ? "eager" : "graph");
    EXPECT_EQ(line["device"], "cuda");
    EXPECT_EQ(line["sets"], 2);
    EXPECT_GT(line["forward_us"], 0.0);
    EXPECT_GE(line["backward_us_p99"], line["backward_us"]);
    EXPECT_GT(line["triad_gb_s"], 0.0);
    EXPECT_EQ(line.value("wrong", -1), 0) << line.dump();
    EXPECT_LT(line["max_error"], 1e-5);
    EXPECT_FALSE(line.contains("exchange_us"));
  }
  EXPECT_EQ(lines[0]["triad_gb_s"], lines[1]["triad_gb_s"]);
  const std::string csv = place.bytes("b.csv");
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 5);
}

TEST_F(BenchOnGpus, ReplaysAFirstCallOfLayersWithAState) {  // whose later calls give other results
  const Outcome outcome =
      run("--layer batch_renorm --layer cross_mini_batch_norm --shape 2,4,2,2 --layout channels_last");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const Json& line : events("measurement")) EXPECT_EQ(line.value("wrong", -1), 0) << line.dump();
}

TEST_F(BenchOnGpus, SaysWhyACallCannotBeCaptured) {
  const Outcome outcome = run("--layer decorrelated_batch_norm:group_size=2 --shape 2,4,2,2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto lines = events("measurement");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_GT(lines[0]["forward_us"], 0.0);
  EXPECT_EQ(lines[0]["wrong"], 0);
  const std::string why = "a call of decorrelated_batch_norm waits on the host, it cannot be captured in a graph";
  EXPECT_EQ(lines[1]["failure"], why);
  EXPECT_FALSE(lines[1].contains("forward_us"));
  EXPECT_NE(outcome.out.find("graph   none: " + why + "\n"), std::string::npos) << outcome.out;
}

TEST_F(BenchOnGpus, TellsWhatThreadsExchange) {
  const Outcome outcome = run("--layer sync_batch_norm --layer batch_norm --shape 2,8,3,3 --ranks 2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto lines = events("measurement");
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0]["message_bytes"], 8.0 * (1 + 2 * 8 + 2 * 8));  // as on a CPU
  EXPECT_GT(lines[0]["exchange_us"], 0.0);
  EXPECT_EQ(lines[0]["wrong"], 0);
  EXPECT_EQ(lines[1]["failure"], "ranks as threads of one GPU cannot be captured in a graph");
  EXPECT_EQ(lines[3]["mode"], "graph");  // what exchanges nothing can be
  EXPECT_EQ(lines[3]["wrong"], 0);
}

TEST_F(BenchOnGpus, ReplaysExchangesOverNccl) {
  if (!ALLNORM_HAVE_NCCL || cuda_devices() < 2) GTEST_SKIP() << "needs NCCL and two GPUs";
  const Outcome outcome = run("--layer sync_batch_norm --shape 2,8,3,3 --ranks 2 --transport nccl");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find(", device cuda:1 ("), std::string::npos) << outcome.out;
  for (const Json& line : events("measurement")) {
    EXPECT_EQ(line.value("message_bytes", 0.0), 8.0 * (1 + 2 * 8 + 2 * 8)) << line.dump();
    EXPECT_GT(line["exchange_us"], 0.0);
    EXPECT_GT(line["ratio_to_local"], 0.0);
    EXPECT_EQ(line["wrong"], 0);
  }
}

TEST_F(BenchOnGpus, SumsAModelAndComparesWithAnEarlierRun) {
  place.write_bytes("tiny.json", R"({"layers": [{"channels": 4, "space": [2, 2], "count": 5}, {"channels": 2}]})");
  const std::string words = "--layer instance_norm --model tiny.json --batch-per-rank 2 -c 0 ";
  ASSERT_EQ(run(words).code, 0);
  auto all = launch::read_json_lines(place.path("b.jsonl"));
  const auto lines = events("measurement"), sums = events("sum");
  ASSERT_EQ(sums.size(), 2u);
  for (std::size_t mode = 0; mode < 2; ++mode) {
    EXPECT_EQ(sums[mode]["count"], 6);
    EXPECT_EQ(sums[mode]["mode"], lines[mode]["mode"]);
    EXPECT_DOUBLE_EQ(sums[mode]["forward_us"],
                     5 * lines[mode]["forward_us"].get<double>() + lines[2 + mode]["forward_us"].get<double>());
  }
  all[0]["gpu"] = "another GPU";
  const auto graph = std::find_if(all.begin(), all.end(), [](const Json& e) { return e.value("mode", "") == "graph"; });
  (*graph)["forward_us"] = 1e-3;
  std::string base;
  for (const Json& event : all) base += event.dump() + "\n";
  place.write_bytes("base.jsonl", base);
  const Outcome again = run(words + "--tolerance 1000 --compare base.jsonl");
  EXPECT_EQ(again.code, 1);
  EXPECT_NE(again.err.find("another machine or device: gpu was \"another GPU\""), std::string::npos) << again.err;
  EXPECT_NE(again.err.find("instance_norm (2,4,2,2) f32 graph, forward: "), std::string::npos) << again.err;
  EXPECT_NE(again.out.find("6 lines, 1 slower"), std::string::npos) << again.out;

  ASSERT_EQ(place.run("bench --shape 2,4 -n 1 -w 0 --json cpu.jsonl").code, 0);
  const Outcome on_cpu = run("--shape 2,4 -c 0 --compare cpu.jsonl");
  EXPECT_EQ(on_cpu.code, 2);
  EXPECT_NE(on_cpu.err.find("another machine or device: device was \"cpu\", is \"cuda\""), std::string::npos)
      << on_cpu.err;
}

TEST(SetsOfData, FillTheL2CacheFourTimes) {  // inputs and outputs of a round
  for (const double bytes : {1e3, 7e5, 6e7, 1e9}) {
    const auto sets = static_cast<double>(sets_beyond(6e7, bytes));
    EXPECT_GE(2 * sets * bytes, 4 * 6e7);
    EXPECT_LT(2 * (sets - 2) * bytes, 4 * 6e7);
  }
}

}  // namespace
}  // namespace allnorm::test
