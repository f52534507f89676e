// `allnorm scale`: what it measures, fits and simulates, how an interrupted sweep goes on, and what it refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "launch/files/json_lines.hpp"
#include "launch/parts.hpp"
#include "launch/scale/plan.hpp"
#include "launch/scale/simulated.hpp"
#include "launch/scale/statistics.hpp"
#include "runner.hpp"

namespace program_scale_test {
namespace {

using namespace allnorm;
using namespace allnorm::test;
namespace scale = launch::scale;
using Json = nlohmann::ordered_json;

std::vector<Json> events_of(const Workplace& place, std::string_view file, std::string_view kind) {
  std::vector<Json> events = launch::read_json_lines(place.path(file));
  std::erase_if(events, [&](const Json& event) { return !launch::is_event(event, kind); });
  return events;
}

TEST(Scale, FitsLatencyAndBandwidth) {
  const auto exact = scale::fit({{100, 2 + 0.25}, {1000, 2 + 2.5}, {100, 2 + 0.25}});
  ASSERT_TRUE(exact);
  EXPECT_NEAR(exact->latency_us, 2, 1e-12);
  EXPECT_NEAR(exact->us_per_byte, 0.0025, 1e-15);
  EXPECT_NEAR(exact->residual, 0, 1e-12);
  const auto off = scale::fit({{100, 1}, {100, 2}, {1000, 2}});  // relative to what was measured
  ASSERT_TRUE(off);
  EXPECT_NEAR(off->at(100), 1.2, 1e-12);  // least of (1 - x)^2 + (1 - x / 2)^2
  EXPECT_NEAR(off->at(1000), 2, 1e-12);
  EXPECT_NEAR(off->residual, std::sqrt((0.04 + 0.16) / 3), 1e-12);
  EXPECT_FALSE(scale::fit({{100, 1}, {100, 2}}));
  EXPECT_EQ(scale::fit({{100, 2}, {1000, 1}})->us_per_byte, 0);  // no bandwidth below 0
  EXPECT_EQ(scale::fit({{100, 1}, {1000, 100}})->latency_us, 0);
}

TEST(Scale, GivesIntervals) {
  const scale::Interval three = scale::interval_of({1, 2, 4});
  EXPECT_NEAR(three.mean, 2, 1e-12);
  EXPECT_NEAR(*three.high, 2 * std::exp(4.303 * std::log(2) / std::sqrt(3)), 1e-9);
  EXPECT_NEAR(*three.low * *three.high, 4, 1e-9);
  EXPECT_FALSE(scale::interval_of({3}).low);
  std::vector<double> many;
  for (int i = 0; i < 21; ++i) many.push_back(std::exp(i % 2 == 0 ? 1 : -1));
  const double mean = 1.0 / 21, deviation = std::sqrt((21 - 21 * mean * mean) / 20);
  EXPECT_NEAR(std::log(*scale::interval_of(many).high) - mean, 2.086 * deviation / std::sqrt(21), 1e-3);
}

TEST(Scale, CountsSamplesOfStatistics) {
  const auto of = [](std::string_view layer) { return scale::effective_batch(parse_layer(layer), 8, 2); };
  EXPECT_EQ(of("batch_norm"), 2);
  EXPECT_EQ(of("sync_batch_norm"), 16);
  EXPECT_EQ(of("batch_norm:sync=4"), 8);
  EXPECT_EQ(of("cross_iteration_batch_norm:window=4"), 8);
  EXPECT_EQ(of("cross_mini_batch_norm:minibatches=4"), 5);  // 1, 2, 3 and 4 mini-batches of 2
}

TEST(Scale, FindsTheLengthsOfMessages) {
  const auto sync = scale::messages_of(Layer("sync_batch_norm"), 1000);
  EXPECT_EQ(sync.forward.exchanges, 1);
  EXPECT_EQ(sync.forward.doubles, 1 + 2 * 1000);
  EXPECT_EQ(sync.backward.doubles, 2 * 1000);
  EXPECT_EQ(scale::messages_of(Layer("batch_norm"), 64).forward.exchanges, 0);
}

using Key = std::tuple<int, std::string, int, int>;
std::set<Key> keys_of(const std::vector<Json>& rows) {
  std::set<Key> keys;
  for (const Json& row : rows)
    EXPECT_TRUE(keys.emplace(row["repeat"].get<int>(), row["transport"].get<std::string>(), row["ranks"].get<int>(),
                             row["line"].get<int>())
                    .second)
        << row.dump();
  return keys;
}

TEST(Scale, MeasuresASweepAndGoesOnWhereItWasCut) {
  const Workplace place;
  const std::string words =
                        "scale --ranks-list 1,2 --transport threads --shape 2,8,3,3 --shape 2,64,3,3 -n 2 -w 0 "
                        "--repeats 2 --effective-batch 3 ",
                    whole = place.path("s.jsonl");
  const Outcome run = place.run(words + "--json " + whole);
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NE(
      run.out.find("with statistics over at least 3 samples the least time has sync_batch_norm on threads, 2 ranks"),
      run.out.npos)
      << run.out;
  const auto rows = events_of(place, "s.jsonl", "measurement");
  EXPECT_EQ(keys_of(rows).size(), 8u);  // 2 repeats, 2 numbers of ranks, 2 shapes
  for (const Json& row : rows) EXPECT_EQ(row["simulated"], false);
  const auto fits = events_of(place, "s.jsonl", "fit");
  ASSERT_EQ(fits.size(), 1u);
  EXPECT_EQ(fits[0]["ranks"], 2);
  EXPECT_EQ(fits[0]["points"], 4);
  const auto points = events_of(place, "s.jsonl", "scaling");
  ASSERT_EQ(points.size(), 4u);
  EXPECT_EQ(points[0]["efficiency"], 1.0);
  EXPECT_LE(points[1]["efficiency_low"], points[1]["efficiency"]);
  EXPECT_DOUBLE_EQ(points[1]["speedup"], 2 * points[1]["efficiency"].get<double>());
  EXPECT_EQ(points[1]["effective_batch"], 4);

  const std::string text = place.bytes("s.jsonl");
  std::size_t third = 0;  // config and three rows, and half of the next
  for (int line = 0; line < 4; ++line) third = text.find('\n', third) + 1;
  place.write_bytes("cut.jsonl", text.substr(0, third + 40));
  const std::string cut = place.path("cut.jsonl");
  const Outcome again = place.run("scale --resume " + cut);
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(place.bytes("cut.jsonl").substr(0, third), text.substr(0, third));
  EXPECT_EQ(keys_of(events_of(place, "cut.jsonl", "measurement")), keys_of(rows));

  const std::string finished = place.bytes("cut.jsonl");
  EXPECT_EQ(place.run(words + "--resume " + cut).code, 0);  // the same sweep, said again; nothing is left to run
  EXPECT_EQ(place.bytes("cut.jsonl"), finished);
  const Outcome other = place.run("scale --ranks-list 1,3 --shape 2,8,3,3 --resume " + cut);
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("has ranks_list [1,2], must not be resumed with [1,3]"), other.err.npos) << other.err;

  for (const auto& [field, value] :
       std::initializer_list<std::pair<const char*, Json>>{{"layer", 7}, {"ranks", "two"}, {"ranks", 1e99}}) {
    std::string damaged;
    std::istringstream lines(finished);
    for (std::string line; std::getline(lines, line);) {
      Json row = Json::parse(line);
      if (row["event"] == "measurement") row[field] = value;
      damaged += row.dump() + "\n";
    }
    place.write_bytes("damaged.jsonl", damaged);
    const Outcome refused = place.run("scale --resume damaged.jsonl");
    EXPECT_EQ(refused.code, 3) << field << refused.err;
    EXPECT_NE(refused.err.find("allnorm: damaged.jsonl: lacks what scale writes: "), refused.err.npos) << refused.err;
  }

  const Outcome page = place.run("report " + whole + " -o " + place.path("s.html") + " --plots " + place.path("p"));
  ASSERT_EQ(page.code, 0) << page.err;
  EXPECT_NE(place.bytes("s.html").find("Measured: weak scaling"), std::string::npos);
  EXPECT_EQ(place.bytes("p2.svg").find("<svg "), 0u);
  EXPECT_FALSE(place.exists("p3.svg"));
}

TEST(Scale, DividesTheSamplesOfStrongScaling) {
  const Workplace place;
  place.write_bytes("tiny.json", R"({"layers": [{"channels": 8, "space": [3, 3], "count": 5}, {"channels": 4}]})");
  const Outcome run =
      place.run("scale --strong --ranks-list 1,2 --transport threads --model " + place.path("tiny.json") +
                " --batch-per-rank 2 -n 1 -w 0 --repeats 1 --json " + place.path("s.jsonl"));
  ASSERT_EQ(run.code, 0) << run.err;
  const auto rows = events_of(place, "s.jsonl", "measurement");
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0]["shape"], "(4,8,3,3)");
  EXPECT_EQ(rows[2]["shape"], "(2,8,3,3)");
  const auto points = events_of(place, "s.jsonl", "scaling");
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[1]["speedup"], points[1]["efficiency"].get<double>() * 2);
  EXPECT_EQ(points[1]["effective_batch"], 4);
}

TEST(Scale, RefusesWhatItCannotDo) {
  const Workplace place;
  place.write_bytes("broken.json", "{\"parameters\": {\"ranks_per_node\": 0}}");
  place.write_bytes("log.jsonl", "{\"event\":\"config\",\"command\":\"bench\"}\n");
  struct Refusal {
    std::string words;
    int code;
    const char* told;
  };
  for (const auto& [words, code, told] :
       {Refusal{"--model resnet5", 2, "did you mean resnet50?"}, Refusal{"--shape 2,x", 2, "--shape is '2,x'"},
        Refusal{"-n 0", 2, "--iterations is 0, must be 1 to 1000000"},
        Refusal{"--repeats 0", 2, "--repeats is 0, must be 1 to 1000"},
        Refusal{"--ranks-list 1,0", 2, "--ranks-list is '1,0', must be whole numbers"},
        Refusal{"--ranks-list 2,2", 2, "must be different numbers"},
        Refusal{"--weak --strong", 2, "must be one of them"},
        Refusal{"--strong --ranks-list 1,3 --shape 8,4", 2, "3 does not"},
        Refusal{"--transport nccl", 2, "--transport is 'nccl', must be threads, mpi or tcp"},
        Refusal{"--groups 8", 2, "--groups is given, must be with --cluster"},
        Refusal{"--cluster cloud", 2, "--model is missing"},
        Refusal{"--cluster clod --model resnet50", 2, "did you mean cloud?"},
        Refusal{"--cluster " + place.path("none.json") + " --model resnet50", 3, "none.json"},
        Refusal{"--cluster " + place.path("broken.json") + " --model resnet50", 3,
                "ranks_per_node is '0', must be a whole"},
        Refusal{"--cluster cloud --model resnet50 --compute " + place.path("none.jsonl"), 3, "none.jsonl"},
        Refusal{"--resume " + place.path("none.jsonl"), 3, "none.jsonl"},
        Refusal{"--resume " + place.path("log.jsonl"), 3, "is no log of scale"}}) {
    const Outcome run = place.run("scale " + words);
    EXPECT_EQ(run.code, code) << words << ": " << run.err;
    EXPECT_NE(run.err.find(told), run.err.npos) << run.err;
    EXPECT_TRUE(run.one_line()) << run.err;
  }
  if (launch::has_part("simgrid")) return;
  const Outcome run = place.run("scale --cluster cloud --model resnet50");
  EXPECT_EQ(run.code, 6);
  EXPECT_NE(run.err.find("install libsimgrid-dev"), run.err.npos) << run.err;
}

TEST(Scale, SimulatesClusters) {
  if (!launch::has_part("simgrid")) GTEST_SKIP() << "this build has no SimGrid";
  const Workplace place;
  place.write_bytes("tiny.json", R"({"layers": [{"channels": 64, "space": [2, 2], "count": 3}]})");
  const std::string words = "scale --cluster cloud --cluster gpu_nodes --model " + place.path("tiny.json") +
                            " --ranks-list 8,64 --batch-per-rank 1,2 --layer batch_norm "
                            "--layer cross_mini_batch_norm --transport threads -n 2 -w 0 --effective-batch 32 ";
  const Outcome run = place.run(words + "--json " + place.path("s.jsonl"));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.out.find("# simulated: with statistics over at least 32 samples the least time has "), run.out.npos)
      << run.out;
  auto rows = events_of(place, "s.jsonl", "measurement");
  std::erase_if(rows, [](const Json& row) { return !row.value("simulated", false); });
  // two clusters and layers; 8 ranks alone and together, 64 also in groups of 8 and 32; two batches
  ASSERT_EQ(rows.size(), 2u * 2 * (2 + 4) * 2);
  const auto exposed = [&](const char* cluster, int ranks, int group) {
    const auto at = std::find_if(rows.begin(), rows.end(), [&](const Json& row) {
      return row["cluster"] == cluster && row["ranks"] == ranks && row["group"] == group;
    });
    return at == rows.end() ? -1 : (*at)["exposed_us"].get<double>();
  };
  EXPECT_EQ(exposed("cloud", 8, 1), 0);
  EXPECT_GT(exposed("cloud", 64, 64), exposed("cloud", 64, 8));
  EXPECT_GT(exposed("cloud", 64, 64), 2 * 3 * 48);  // forward and backward of three layers across the network
  EXPECT_GT(exposed("cloud", 64, 64), exposed("gpu_nodes", 64, 64));
  EXPECT_FALSE(events_of(place, "s.jsonl", "calibration").empty());
  const std::string finished = place.bytes("s.jsonl");
  EXPECT_EQ(place.run("scale --resume " + place.path("s.jsonl")).code, 0);
  EXPECT_EQ(place.bytes("s.jsonl"), finished);
}

// The last group is smaller than the others: it gathers what they pass along the tree.
TEST(Scale, SimulatesGroupsWithARest) {
  if (!launch::has_part("simgrid")) GTEST_SKIP() << "this build has no SimGrid";
  const Workplace place;
  place.write_bytes("tiny.json", R"({"layers": [{"channels": 256, "space": [2, 2], "count": 1}]})");
  const Outcome run =
      place.run("scale --cluster cloud --model " + place.path("tiny.json") +
                " --ranks-list 40 --groups 33 --batch-per-rank 1 --layer batch_norm --transport threads "
                "-n 2 -w 0");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.out.find("batch_norm:sync=33"), run.out.npos) << run.out;
}

}  // namespace
}  // namespace program_scale_test
