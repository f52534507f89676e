// `allnorm verify`: its table, its JSON, its exit codes, and what it says of what it cannot run.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/device.hpp"
#include "build_config.hpp"
#include "harness.hpp"
#include "launch/reference/definitions.hpp"
#include "launch/verify/sweep.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

using Json = nlohmann::json;

TEST(Verify, HasAReferenceForEveryRow) {
  const auto all = reference::definitions();
  EXPECT_EQ(all.size(), catalogue().size());
  for (const Row& row : catalogue())
    EXPECT_TRUE(std::any_of(all.begin(), all.end(), [&](const auto& one) { return one.row == row.name; })) << row.name;
}

// One rank alone, and three of which one has nothing.
TEST(Verify, HoldsOnOneRankAndOnThree) {
  Workplace place;
  const Outcome outcome =
      place.run("verify --device cpu --layer layer_norm,positional_norm,conditional_batch_norm --json v.json");
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  const Json json = Json::parse(place.bytes("v.json"));
  EXPECT_TRUE(json["holds"]);
  EXPECT_EQ(json["version"], build::version);
  ASSERT_EQ(json["layers"].size(), 3u);
  for (const Json& layer : json["layers"]) {
    const std::string name = layer["name"];
    EXPECT_NE(outcome.out.find(name), std::string::npos) << outcome.out;
    EXPECT_EQ(layer["failed"], 0);
    const auto all = reference::definitions();
    const auto one = std::find_if(all.begin(), all.end(), [&](const auto& other) { return other.row == name; });
    ASSERT_NE(one, all.end());
    const std::size_t layouts = name == "layer_norm" ? 1 : 2;
    EXPECT_EQ(layer["runs"], 2 * 2 * 4 * layouts * one->variants.size()) << name;  // 2 transports and shapes, 4 types
    const double error = layer["largest"]["error"];
    EXPECT_GT(error, 0) << name;  // what is compared is rounded in both
    EXPECT_LE(error, 1) << name;
    for (const char* field : {"device", "transport", "dtype", "layout", "tensor"})
      EXPECT_NE(layer["largest"][field], "") << field;
  }
}

// An error that would be nothing to the largest values is found in a small one, of every row with more than weights.
TEST(Verify, JudgesEachValueByItself) {
  for (const char* row :
       {"batch_norm", "layer_norm", "group_norm", "switchable_norm", "spade", "adaptive_instance_norm",
        "local_response_norm", "weight_standardization", "decorrelated_batch_norm"}) {
    const auto all = reference::definitions();
    const auto one = std::find_if(all.begin(), all.end(), [&](const auto& other) { return other.row == row; });
    const auto trial = launch::verify::trials_of(*Layer(row).row, *one).front();
    const auto script = launch::verify::script_of(trial, DType::f32);
    for (const char* name : {"output", "grad_input"}) {
      const reference::Answer& want = script.front().answers.find(name)->second;
      const auto tolerances = reference::tolerances_of(want, DType::f32, 0);
      const auto [least, most] = std::minmax_element(tolerances.begin(), tolerances.end());
      EXPECT_LT(3 * *least, *most) << row << " " << name;
      reference::Doubles got = want.values;
      const auto at = least - tolerances.begin();
      got[static_cast<std::size_t>(at)] += 2 * *least;
      const auto found = launch::verify::worst_of(got, want.values, tolerances);
      EXPECT_NEAR(found.error, 2, 1e-3) << row << " " << name;
      EXPECT_EQ(found.value, at);
      EXPECT_EQ(launch::verify::worst_of(want.values, want.values, tolerances).error, 0);
    }
  }
}

// What a value may be off is a model of the rounding, not what happens with one set of numbers.
TEST(Verify, HoldsForOtherNumbersAndScales) {
  std::vector<const Row*> rows;
  for (const Row& row : catalogue()) rows.push_back(&row);
  for (const launch::verify::Draws& draws : {launch::verify::Draws{1, 1}, {2, 1e-3}, {3, 300}}) {
    launch::Rank rank{0, 1, self(), Queue::cpu(), false, nullptr};
    for (const launch::verify::Outcome& outcome : launch::verify::sweep(
             rows, rank, [](const auto&) {}, draws))
      for (const launch::verify::Place& place : outcome.failures)
        ADD_FAILURE() << outcome.row->name << " " << place.attributes << " " << place.dtype << " " << place.layout
                      << ", " << place.tensor << " " << place.value << " of step " << place.step << ": " << place.error
                      << place.reason << ", numbers " << draws.number << " times " << draws.scale;
  }
}

// Of rank 1, whose exchange of that number it is that fails; then all as the group does.
class Failing final : public Communicator {
 public:
  Failing(std::shared_ptr<Communicator> inner, int at) : inner_(std::move(inner)), at_(at) {}
  int rank() const noexcept override { return inner_->rank(); }
  int size() const noexcept override { return inner_->size(); }
  std::string name_of(int rank) const override { return inner_->name_of(rank); }
  std::string_view transport() const noexcept override { return inner_->transport(); }
  Traffic traffic() const noexcept override { return inner_->traffic(); }
  std::shared_ptr<Communicator> split(std::int64_t color, Queue& queue) override { return inner_->split(color, queue); }
  void decline(const Error& error) noexcept override { inner_->decline(error); }
  void abort(const Error& error) noexcept override { inner_->abort(error); }
  Pending start_exchange(Message message, Queue& queue) override {
    expect(rank() != 1 || ++exchanges_ != at_, Code::invalid_input, "the input is as it should not be");
    return inner_->start_exchange(std::move(message), queue);
  }

 private:
  std::shared_ptr<Communicator> inner_;
  int at_, exchanges_ = 0;
};

// With a word to the others or without, and in whichever exchange: one run fails, and all others are made.
TEST(Verify, GoesOnAfterARunThatThrewOnOneRank) {
  const std::vector<const Row*> rows{Layer("layer_norm").row};
  for (const int at : {1, 2, 3}) {
    std::vector<launch::verify::Outcome> outcomes(3);
    harness::run(3, [&](const harness::World& world, Queue&) {
      launch::Rank rank{world->rank(), 3, std::make_shared<Failing>(world, at), Queue::cpu(), true, nullptr};
      outcomes[static_cast<std::size_t>(world->rank())] = launch::verify::sweep(rows, rank, [](const auto&) {})[0];
    });
    for (const launch::verify::Outcome& outcome : outcomes) {
      EXPECT_EQ(outcome.runs, launch::verify::runs_of(rows));
      EXPECT_EQ(outcome.failed, 1);
      ASSERT_EQ(outcome.failures.size(), 1u);
      EXPECT_EQ(outcome.failures[0].reason, "the input is as it should not be") << at;
      EXPECT_EQ(outcome.failures[0].rank, 1);
    }
  }
}

TEST(Verify, SaysWhatItCannotRunAndWhy) {
  Workplace place;
  const Outcome outcome =
      place.run("verify --layer cosine_norm --json v.json" + std::string(cuda_devices() > 0 ? " --device cpu" : ""));
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  std::string told;
  const Json json = Json::parse(place.bytes("v.json"));
  for (const Json& one : json["not_run"]) {
    const std::string name = one["name"], reason = one["reason"];
    told += name + ": " + reason + "\n";
    EXPECT_NE(outcome.out.find("  " + name), std::string::npos) << outcome.out;
  }
  EXPECT_NE(told.find(ALLNORM_HAVE_MPI ? "mpi: there is no launcher" : "mpi: this build has no MPI"), told.npos)
      << told;
  EXPECT_NE(told.find("nccl: "), told.npos) << told;
  EXPECT_NE(told.find("tcp: there is no launcher: torchrun "), told.npos) << told;
  if (cuda_devices() == 0) {
    EXPECT_NE(told.find("cuda: " + cuda_summary()), told.npos) << told;
    EXPECT_EQ(place.run("verify --layer cosine_norm --device cuda").code, 6);
  }
}

TEST(Verify, TakesNamesAndPathsThatAreThere) {
  Workplace place;
  const Outcome layer = place.run("verify --layer rms_norm,grup_norm");
  EXPECT_EQ(layer.code, 2);
  EXPECT_NE(layer.err.find("layer is 'grup_norm'"), std::string::npos) << layer.err;
  EXPECT_NE(layer.err.find("did you mean group_norm?"), std::string::npos) << layer.err;
  EXPECT_EQ(place.run("verify --layer rms_norm,rms_norm").code, 2);
  EXPECT_EQ(place.run("verify --layer rms_norm --transport udp").code, 2);
  EXPECT_EQ(place.run("verify --layer rms_norm --json none/v.json").code, 3);
}

TEST(Verify, ChecksMpiOverTheRanksOfALauncher) {
  if (!ALLNORM_HAVE_MPI || std::system("mpirun --version > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "there is no mpirun, or this build has no MPI";
  Workplace place;
  const Outcome outcome = place.run("verify --layer group_norm,spade --device cpu --json v.json", "mpirun -n 3");
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  const Json json = Json::parse(place.bytes("v.json"));
  EXPECT_TRUE(json["holds"]);
  for (const Json& one : json["layers"]) EXPECT_EQ(one["largest"]["transport"], "mpi") << one;
  for (const char* name : {"self, threads", "tcp", "nccl"})
    EXPECT_TRUE(std::any_of(json["not_run"].begin(), json["not_run"].end(), [&](const Json& one) {
      return one["name"] == name;
    })) << name;
}

}  // namespace
}  // namespace allnorm::test
