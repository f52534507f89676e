// `allnorm bench`: what it prints, writes and compares, and what it refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "allnorm/catalogue.hpp"
#include "launch/files/json_lines.hpp"
#include "runner.hpp"

namespace program_bench_test {
namespace {

using namespace allnorm;
using namespace allnorm::test;
using Json = nlohmann::ordered_json;

std::vector<Json> events_of(const Workplace& place, std::string_view file, std::string_view kind) {
  std::vector<Json> events = launch::read_json_lines(place.path(file));
  std::erase_if(events, [&](const Json& event) { return !launch::is_event(event, kind); });
  return events;
}

TEST(Bench, PrintsAndWritesALineForEachShape) {
  const Workplace place;
  const Outcome run = place.run("bench --shape 2,8,3,3 --shape 2,8 -n 3 -w 1 --json " + place.path("b.jsonl") +
                                " --csv " + place.path("b.csv"));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.err, "");
  EXPECT_NE(run.out.find("# rank 0: host "), run.out.npos) << run.out;
  EXPECT_NE(run.out.find("(2,8,3,3)"), run.out.npos) << run.out;
  const auto lines = events_of(place, "b.jsonl", "measurement");
  ASSERT_EQ(lines.size(), 2u);
  for (const Json& line : lines) {
    EXPECT_GT(line["forward_us"], 0.0);
    EXPECT_GE(line["backward_us_p99"], line["backward_us"]);
    EXPECT_GT(line["triad_gb_s"], 0.0);
    EXPECT_FALSE(line.contains("exchange_us"));
    EXPECT_LT(line["max_error"], 1e-5);
  }
  EXPECT_DOUBLE_EQ(lines[0]["forward_gb_s"], 1e-3 * 3 * 2 * 8 * 9 * 4 / lines[0]["forward_us"].get<double>());
  const std::string csv = place.bytes("b.csv");
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 3);
}

TEST(Bench, TimesEveryLayerOfActivations) {
  const Workplace place;
  const Outcome run =
      place.run("bench --layer all --shape 2,32,3,3 --layout channels_last --dtype bf16 -n 1 -w 1 --rotate 2 --json " +
                place.path("b.jsonl"));
  ASSERT_EQ(run.code, 0) << run.err;
  const auto rows = catalogue();
  const auto of_activations =
      std::count_if(rows.begin(), rows.end(), [](const Row& row) { return !row.statistics.has(Axis::row); });
  const auto lines = events_of(place, "b.jsonl", "measurement");
  EXPECT_EQ(static_cast<std::ptrdiff_t>(lines.size()), of_activations);
  for (const Json& line : lines) EXPECT_EQ(line.value("wrong", -1), 0) << line.dump();
  EXPECT_EQ(place.run("bench --layer cosine_norm --layer weight_norm --shape 8,16 -n 1 -w 0").code, 0);
}

TEST(Bench, TellsWhatRanksExchange) {
  const Workplace place;
  const Outcome run =
      place.run("bench --layer sync_batch_norm --shape 2,8,3,3 --ranks 2 -n 5 -w 1 --json " + place.path("b.jsonl"));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.out.find("# rank 1: host "), run.out.npos) << run.out;
  const Json line = events_of(place, "b.jsonl", "measurement").at(0);
  EXPECT_EQ(line["message_bytes"], 8.0 * (1 + 2 * 8 + 2 * 8));  // count, means, squares; two sums
  EXPECT_GT(line["exchange_us"], 0.0);
  EXPECT_EQ(line["wrong"], 0);
  EXPECT_DOUBLE_EQ(line["busbw_gb_s"], line["algbw_gb_s"]);  // 2 (n - 1) / n of two ranks
}

TEST(Bench, GivesRanksTheSameWeights) {
  const Workplace place;
  const Outcome run = place.run(
      "bench --layer cross_iteration_batch_norm:sync=world:conv_padding=1 --shape 2,4,5,5 "
      "--ranks 2 -n 2 -w 0");
  EXPECT_EQ(run.code, 0) << run.err;
}

TEST(Bench, TakesGroupsOfWhichOneIsARankAlone) {
  const Workplace place;
  const Outcome run = place.run(
      "bench --layer batch_norm:sync=2 --layer group_norm:groups=2:sync=2 --shape 2,4,3,3 "
      "--ranks 3 -n 2 -w 0 --timeout 10 --json " +
      place.path("b.jsonl"));
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_GT(events_of(place, "b.jsonl", "measurement").at(0)["exchange_us"], 0.0);
}

TEST(Bench, SumsOverAModel) {
  const Workplace place;
  place.write_bytes("tiny.json", R"({"layers": [{"channels": 8, "space": [3, 3], "count": 5}, {"channels": 4}]})");
  const Outcome run = place.run("bench --layer batch_norm --layer batch_norm --model " + place.path("tiny.json") +
                                " --batch-per-rank 2 -n 2 -w 0 --json " + place.path("b.jsonl"));
  ASSERT_EQ(run.code, 0) << run.err;
  const auto lines = events_of(place, "b.jsonl", "measurement");
  ASSERT_EQ(lines.size(), 2u);
  const Json sum = events_of(place, "b.jsonl", "sum").at(0);
  EXPECT_EQ(sum["count"], 6);
  EXPECT_EQ(lines[1]["shape"], "(2,4)");
  EXPECT_DOUBLE_EQ(sum["forward_us"], 5 * lines[0]["forward_us"].get<double>() + lines[1]["forward_us"].get<double>());
  EXPECT_NE(place.run("bench --help").out.find("darknet53, r3d_18, resnet50, retinanet_r50"), std::string::npos);
}

TEST(Bench, ComparesWithAnEarlierRun) {
  const Workplace place;
  const std::string words = "bench --shape 2,8,3,3 -n 2 -w 0 ", base = place.path("b.jsonl");
  ASSERT_EQ(place.run(words + "--json " + base).code, 0);
  const Outcome same = place.run(words + "--tolerance 1000 --compare " + base);
  EXPECT_EQ(same.code, 0) << same.err;
  EXPECT_NE(same.out.find("1 line, 0 slower"), same.out.npos) << same.out;

  auto events = launch::read_json_lines(base);
  events[1]["forward_us"] = 1e-3;
  events[0]["cores"] = 4096;
  place.write_bytes("fast.jsonl", events[0].dump() + "\n" + events[1].dump() + "\n");
  const Outcome slower = place.run(words + "--tolerance 1000 --compare " + place.path("fast.jsonl"));
  EXPECT_EQ(slower.code, 1);
  EXPECT_NE(slower.err.find("batch_norm (2,8,3,3) f32, forward: "), slower.err.npos) << slower.err;
  EXPECT_NE(slower.err.find("is of another machine or device: cores was 4096"), slower.err.npos) << slower.err;

  const Outcome other = place.run("bench --shape 2,4 -n 1 -w 0 --compare " + base);
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("must have a line in common"), other.err.npos) << other.err;
  place.write_bytes("broken.jsonl", "{\"event\": \"config\"\n");
  EXPECT_EQ(place.run(words + "--compare " + place.path("broken.jsonl")).code, 3);
}

TEST(Bench, RefusesWhatItCannotTime) {
  const Workplace place;
  struct Refusal {
    const char* words;
    int code;
    const char* told;
  };
  place.write_bytes("odd.json", R"({"layers": [{"channels": 0}]})");
  const std::string odd = "--model " + place.path("odd.json");
  for (const auto& [words, code, told] :
       {Refusal{"--model resnet5", 2, "did you mean resnet50?"},
        Refusal{"-n 0", 2, "--iterations is 0, must be 1 to 1000000"},
        Refusal{"--rotate 0", 2, "--rotate is 0, must be 1 to 1000000"},
        Refusal{"--shape 2,x", 2, "--shape is '2,x', must be whole numbers"},
        Refusal{"--layer batch_nrom", 2, "batch_norm"}, Refusal{"--layer group_norm:groups=3 --shape 2,8", 2, "groups"},
        Refusal{"--tolerance 0.1", 2, "--tolerance is given, must be with --compare"},
        Refusal{odd.c_str(), 3, "channels is 0, must be a whole number"},
        Refusal{"--device cuda", 6, "--device is cuda, must be cpu"}}) {
    const Outcome run =  // where no GPU is to be seen, if there is one
        place.run_with({"CUDA_VISIBLE_DEVICES=", "ALLNORM_EMULATION_DEVICES=0"}, "bench " + std::string(words));
    EXPECT_EQ(run.code, code) << words << ": " << run.err;
    EXPECT_NE(run.err.find(told), run.err.npos) << run.err;
    EXPECT_TRUE(run.one_line()) << run.err;
  }
}

}  // namespace
}  // namespace program_bench_test
