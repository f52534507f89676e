// Checkpoints of `allnorm train` that lie: every field and tensor is checked before it is used, and what is written can
// be read.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "launch/files/data_sets.hpp"
#include "launch/train/checkpoint.hpp"
#include "places.hpp"
#include "program/files_support.hpp"

namespace allnorm::launch::train {
namespace {

using files_support::bytes_of;
using files_support::expect_refused;
using files_support::TemporaryFolder;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// A run of two normalizations, stopped after the first epoch of the second: events of every kind, and a state with a
/// window.
class Stopped : public testing::Test {
 protected:
  static void SetUpTestSuite() { run_ = std::make_unique<Run>(); }
  static void TearDownTestSuite() { run_.reset(); }

  struct Run {
    TemporaryFolder folder;
    std::string path = folder / "c";
    DataSet data = load_data_set(test::of_project("data/digits"));
    Settings settings = parse({"--norm", "group_norm,cross_iteration_batch_norm:renorm=true:burn_in=2",
                               "--batch-per-rank", "320", "--epochs", "2"});
    Rank rank{0, 1, self(), Queue::cpu(1), false};
    Json config = config_event(settings, data, rank);
    Events events{config};
    std::vector<Job> jobs = jobs_of(settings);
    Position position{1, 1};
    std::unique_ptr<Trainer> trainer;

    Run() {
      for (std::int64_t step = 0; step < 3; ++step) {
        const Job& job = jobs[static_cast<std::size_t>(step / 2)];
        if (step % 2 == 0) trainer = std::make_unique<Trainer>(settings, job, data, rank);
        for (Json& event : epoch_events(settings, job, step % 2, *trainer->run(step % 2, {})))
          events.push_back(std::move(event));
        if (step == 1) events.push_back(result_event(settings, job, events));
      }
      EXPECT_EQ(write_checkpoint(path, events, position, *trainer, rank), "");
    }
    Events read(const Json& list) const { return read(list.dump()); }
    Events read(const std::string& text) const { return read_events(path, text, settings, config, position); }
    /// Writes the content and resumes from it, into a trainer that is thrown away.
    void resume(const TensorFile& content) {
      const std::string bad = folder / "bad";
      write_safetensors(bad, content);
      if (!spare_) spare_ = std::make_unique<Trainer>(settings, jobs[1], data, rank);
      Checkpoint(bad, settings, config).restore(*spare_, rank);
    }
    void expect_bad(const TensorFile& content, const std::string& part) {
      expect_refused([&] { resume(content); }, folder / "bad", part);
    }

   private:
    std::unique_ptr<Trainer> spare_;
  };

  Run& run() { return *run_; }

 private:
  static std::unique_ptr<Run> run_;
};
std::unique_ptr<Stopped::Run> Stopped::run_;

TEST_F(Stopped, GoesOn) {
  const Checkpoint checkpoint(run().path, run().settings, run().config);
  EXPECT_EQ(checkpoint.position().job, 1u);
  EXPECT_EQ(checkpoint.position().epoch, 1);
  EXPECT_EQ(checkpoint.events(), run().events);
  Trainer fresh(run().settings, run().jobs[1], run().data, run().rank);
  checkpoint.restore(fresh, run().rank);
  EXPECT_EQ(fresh.velocity(), run().trainer->velocity());
}

// Positions beyond the run, negative ones, fractions: each would skip epochs, or all of them.
TEST_F(Stopped, PositionsAreOfTheRun) {
  const auto read = [&](const std::string& text) { return read_position(run().path, text, run().settings); };
  for (const char* good : {"[0,0]", "[0,1]", "[1,0]", "[1,1]", "[2,0]", "[0,0,1]", "[1,1,7]"})
    EXPECT_NO_THROW(read(good)) << good;
  for (const char* bad : {"[7,0]",
                          "[-1,0]",
                          "[0.5,1.9]",
                          "[0,9999999999]",
                          "[0,2]",
                          "[2,1]",
                          "[3,0]",
                          "[0,-1]",
                          "[0]",
                          "[0,0,0]",
                          "[2,0,1]",
                          "[0,0,-1]",
                          "[0,0,1.5]",
                          "[0,0,1,1]",
                          "[0,0,99999999999999999]",
                          "[]",
                          "{}",
                          "null",
                          "0",
                          "\"0\"",
                          "[true,0]",
                          "[null,0]",
                          "[\"0\",\"1\"]",
                          "[[0],1]",
                          "[1e300,0]",
                          "[99999999999999999999,0]",
                          "[1e999,0]",
                          "[0,",
                          ""})
    expect_refused([&] { read(bad); }, run().path, "position is ");
  expect_refused([&] { read(std::string(100'000, '[')); }, run().path, "position is nested deeper");
}

TEST_F(Stopped, EventsAreThoseOfTheRun) {
  const Json good = Json::parse(Json(run().events).dump());
  EXPECT_EQ(run().read(good), run().events);
  const auto bad = [&](const std::string& part, const std::function<void(Json&)>& change) {
    Json list = good;
    change(list);
    expect_refused([&] { run().read(list); }, run().path, part);
  };
  bad("events[1] is missing, must be an object", [](Json& e) { e.erase(e.begin() + 1, e.end()); });
  bad("events[1].event is missing, must be \"epoch\"", [](Json& e) { e[1] = Json::object(); });
  bad("events[0] is 7, must be an object", [](Json& e) { e[0] = 7; });
  bad("events is {}, must be a list", [](Json& e) { e = Json::object(); });
  bad("settings.epochs is 20, must be 2", [](Json& e) { e[0]["settings"]["epochs"] = 20; });
  bad("events[0].settings.'more' is 1, must be left out", [](Json& e) { e[0]["settings"]["more"] = 1; });
  bad("events[0].settings is missing, must be {", [](Json& e) { e[0].erase("settings"); });
  bad("events[1].epoch is 2, must be 1", [](Json& e) { e.erase(1); });
  bad("must have " + std::to_string(good.size()), [](Json& e) { e.push_back(e[0]); });
  bad(".layer is 1, must be 6", [](Json& e) { e.push_back(e[e.size() - 5]); });
  bad("events[0].settings.norms[1].attributes.eps is 7, must be \"1e-05\"",
      [](Json& e) { e[0]["settings"]["norms"][1]["attributes"]["eps"] = 7; });
  for (const std::string& text : {std::string(100'000, '['), "[{\"settings\":" + std::string(100'000, '[')})
    expect_refused([&] { run().read(text); }, run().path, "events is nested deeper than 16 levels");
  for (const char* text : {"", "[", "nonsense", "[1e999]"})
    expect_refused([&] { run().read(std::string(text)); }, run().path, "events is not JSON");
}

/// What a value of the file may be: exactly what it was, or anything of a kind.
std::vector<Json> wrong_values(const std::string& member, bool exact) {
  static const std::set<std::string> texts{"version", "commit", "transport"};
  static const std::set<std::string> percents{"test_error", "test_error_own_statistics"};
  static const std::set<std::string> amounts{"seconds", "exchanges", "exchange_bytes"};
  std::vector<Json> wrong{Json::object(), Json::array(), Json::array({0}), true};
  const auto add = [&](std::initializer_list<Json> more) { wrong.insert(wrong.end(), more); };
  if (exact)
    add({nullptr, "another", -7, 0.125, 1e300});
  else if (texts.contains(member))
    add({nullptr, 1});
  else if (percents.contains(member))
    add({nullptr, "1", -1, 101});
  else if (amounts.contains(member))
    add({nullptr, "1", -1});
  else
    add({"1"});  // measured: null where it was not finite
  return wrong;
}

TEST_F(Stopped, EveryFieldOfEveryEventIsChecked) {
  const Json good = Json::parse(Json(run().events).dump());
  static const std::set<std::string> free{
      "version",   "commit",         "transport",      "loss",          "test_error",   "test_error_own_statistics",
      "seconds",   "exchanges",      "exchange_bytes", "mean_gap_mean", "mean_gap_max", "r_mean",
      "r_max",     "d_mean",         "d_max",          "clipped",       "stale_mean",   "compensated_mean",
      "stale_var", "compensated_var"};
  int leaves = 0;
  std::set<std::string> kinds;
  const Json flat = good.flatten();
  for (const auto& [text, value] : flat.items()) {
    const Json::json_pointer pointer(text);
    const std::string member = pointer.back();
    const Json& event = good[Json::json_pointer("/" + text.substr(1, text.find('/', 1) - 1))];
    const bool exact = event["event"] == "result" || text.starts_with("/0/settings/") || !free.contains(member);
    // Every layer and every past iteration has the same fields.
    const bool again = (event.contains("layer") && event["layer"] != 2) || text.find("/past/1") != text.npos;
    if (again) continue;
    ++leaves;
    kinds.insert(event["event"]);
    const bool of_list = good[pointer.parent_pointer()].is_array();
    Json::json_pointer named = pointer;  // elements of a list have a number
    while (named.back().find_first_not_of("0123456789") == std::string::npos) named.pop_back();
    const auto refused = [&](const Json& list) { expect_refused([&] { run().read(list); }, run().path, named.back()); };
    for (const Json& wrong : wrong_values(member, exact)) {
      if (wrong == value) continue;
      Json list = good;
      list[pointer] = wrong;
      refused(list);
    }
    if (member == "test_error_own_statistics") continue;  // there in the last epoch of some layers
    Json list = good;
    Json& parent = list[pointer.parent_pointer()];
    if (of_list)
      parent.erase(std::stoul(member));
    else
      parent.erase(member);
    refused(list);
  }
  EXPECT_EQ(kinds, (std::set<std::string>{"config", "epoch", "statistics", "result"}));
  EXPECT_GT(leaves, 80);
}

TEST_F(Stopped, MetadataMustBeThere) {
  const TensorFile good = read_safetensors(run().path);
  EXPECT_NO_THROW(run().resume(good));
  for (const char* field : {"position", "events"}) {
    TensorFile file = good;
    file.metadata.erase(field);
    run().expect_bad(file, std::string(field) + " is missing");
  }
  TensorFile file = good;
  file.metadata["format"] = "allnorm train checkpoint 0";
  run().expect_bad(file, "is not a checkpoint");
}

TEST_F(Stopped, EveryTensorIsChecked) {
  const TensorFile good = read_safetensors(run().path);
  int tensors = 0;
  for (std::size_t i = 0; i < good.tensors.size(); ++i) {
    const std::string& name = good.tensors[i].name;
    const std::string prefix = "rank0.norm2.";
    const bool of_layer = name.starts_with(prefix);
    if (name.starts_with("rank") && !of_layer) continue;  // all layers have the same
    ++tensors;
    const std::size_t mark = name.find("per_rank/");
    // The layer's own errors name the entry as the layer does.
    const std::string entry = !of_layer ? name : name.substr(mark == name.npos ? prefix.size() : mark + 9);
    const auto bad = [&](const std::string& part, const std::function<void(StoredTensor&)>& change) {
      TensorFile file = good;
      change(file.tensors[i]);
      SCOPED_TRACE(name);
      run().expect_bad(file, part);
    };
    TensorFile without = good;
    without.tensors.erase(without.tensors.begin() + static_cast<std::ptrdiff_t>(i));
    run().expect_bad(without, entry.starts_with("allnorm.layer.") ? "allnorm.layer." : entry);
    const bool integer = good.tensors[i].dtype == "I64";
    bad(entry.starts_with("allnorm.layer.") ? "allnorm.layer." : entry, [&](StoredTensor& t) {
      t.dtype = integer ? "F64" : t.dtype == "F64" ? "I64" : "I32";
    });
    bad(name, [&](StoredTensor& t) {
      t.dtype = "U8";
      t.shape = Shape{static_cast<std::int64_t>(t.data.size())};
    });
    bad(entry, [&](StoredTensor& t) {
      t.data.insert(t.data.end(), t.data.begin(), t.data.end());
      t.shape = Shape{static_cast<std::int64_t>(t.data.size()) / (t.dtype == "F32" ? 4 : 8)};
    });
    if (integer)
      bad("", [&](StoredTensor& t) {
        const std::int64_t value = -1;
        std::memcpy(t.data.data(), &value, sizeof value);
      });
    else
      bad("tensor '" + name + "' has nan at 0, must be finite", [&](StoredTensor& t) {
        const auto narrow = static_cast<float>(nan);
        if (t.dtype == "F32")
          std::memcpy(t.data.data(), &narrow, sizeof narrow);
        else
          std::memcpy(t.data.data(), &nan, sizeof nan);
      });
  }
  EXPECT_GT(tensors, 15);
  for (const char* name : {"rank7.norm1.running_mean", "junk"}) {
    TensorFile file = good;
    file.tensors.push_back(stored(name, Shape{1}, std::span(&nan, 0)));
    file.tensors.back().data.resize(8);
    run().expect_bad(file, "must have " + std::to_string(good.tensors.size()));
  }
  TensorFile early = good;  // tensors of a run that has not begun
  early.metadata["position"] = "[1,0]";
  Json events = run().events;
  while (events.back()["event"] != "result") events.erase(events.size() - 1);
  early.metadata["events"] = events.dump();
  run().expect_bad(early, "must not be at epoch 0");
}

TEST_F(Stopped, RandomDamageIsRefusedInOneLine) {
  const std::string good = bytes_of(run().path);
  const std::string path = run().folder / "damaged";
  files_support::damage(good, 200, 8, [&](const std::string& bytes) {
    run().folder.put("damaged", bytes);
    Checkpoint(path, run().settings, run().config).restore(*run().trainer, run().rank);
  });
}

// One batch with values that are not finite spoils the weights: what was written before stays.
TEST_F(Stopped, ValuesThatAreNotFiniteNeverReplaceGoodOnes) {
  const std::string good = bytes_of(run().path);
  const auto write = [&](const Position& position) {
    return write_checkpoint(run().path, run().events, position, *run().trainer, run().rank);
  };
  for (float* value : {&run().trainer->velocity()[3], &run().trainer->network().parameters()[5]}) {
    const float before = *value;
    *value = static_cast<float>(nan);
    EXPECT_NE(write(run().position).find("has nan at "), std::string::npos);
    EXPECT_NE(write({2, 0}).find("has nan at "), std::string::npos);  // at the end of a run too
    *value = std::numeric_limits<float>::infinity();
    EXPECT_NE(write(run().position).find("has inf at "), std::string::npos);
    *value = before;
  }
  EXPECT_EQ(bytes_of(run().path), good);
}

// A loss that was not finite is null in JSON; what was written is read.
TEST_F(Stopped, EventsThatAreNotFiniteAreRead) {
  Events events = run().events;
  for (Json& event : events) {
    if (event.contains("loss")) event["loss"] = nan;
    if (event.contains("clipped")) event["clipped"] = event["r_max"] = nan;
    if (event.contains("past")) event["past"][0]["stale_var"] = std::numeric_limits<double>::infinity();
  }
  const std::string path = run().folder / "spoilt";
  ASSERT_EQ(write_checkpoint(path, events, run().position, *run().trainer, run().rank), "");
  const Checkpoint checkpoint(path, run().settings, run().config);
  int seen = 0;
  for (const Json& event : checkpoint.events())
    for (const char* member : {"loss", "clipped", "r_max"})
      if (event.contains(member)) {
        EXPECT_TRUE(std::isnan(event[member].get<double>())) << event;
        ++seen;
      }
  EXPECT_GT(seen, 3);
}

TEST_F(Stopped, TheDigestIsOfTheWholeFile) {
  const TensorFile good = read_safetensors(run().path);
  const std::string path = run().folder / "other";
  const auto digest = [&](const TensorFile& content) {
    write_safetensors(path, content);
    return Checkpoint(path, run().settings, run().config).digest();
  };
  const std::uint64_t first = digest(good);
  EXPECT_EQ(first, Checkpoint(run().path, run().settings, run().config).digest());
  for (std::size_t i : {std::size_t{0}, good.tensors.size() - 1}) {
    TensorFile file = good;
    file.tensors[i].data[0] ^= std::byte{1};
    EXPECT_NE(digest(file), first) << good.tensors[i].name;
  }
  TensorFile file = good;
  Json events = run().events;
  events[1]["loss"] = 1.5;
  file.metadata["events"] = events.dump();
  EXPECT_NE(digest(file), first);
}

}  // namespace
}  // namespace allnorm::launch::train
