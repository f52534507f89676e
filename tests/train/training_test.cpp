// `allnorm train`: the same numbers however ranks are started, after a resume, and on one rank with all images.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "launch/command.hpp"
#include "launch/random.hpp"
#include "launch/train/checkpoint.hpp"
#include "launch/train/images.hpp"
#include "launch/train/settings.hpp"
#include "launch/train/train.hpp"
#include "places.hpp"

namespace allnorm::launch::train {
namespace {

namespace fs = std::filesystem;

const std::string digits = test::of_project("data/digits");
const std::string program = test::program();

/// A directory for one test.
class Training : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "allnorm-train-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  /// Runs the command in this process; returns its exit code. stdout goes to `out`, an error's text to `said`.
  int train(Arguments arguments) {
    arguments.insert(arguments.end(), {"--data", digits});
    testing::internal::CaptureStdout();
    int code = -1;
    try {
      code = run_train(arguments);
    } catch (const Error& error) {
      code = exit_code(error.code());
      said = error.what();
    }
    out = testing::internal::GetCapturedStdout();
    return code;
  }

  /// The log without what differs from run to run: times and how the ranks were started.
  std::vector<Json> log(const std::string& name) const {
    std::ifstream file(path(name));
    std::vector<Json> events;
    for (std::string line; std::getline(file, line);) {
      Json event = Json::parse(line);
      event.erase("seconds");
      event.erase("transport");
      events.push_back(event);
    }
    return events;
  }

  static std::vector<double> numbers(const std::vector<Json>& events, const std::string& member) {
    std::vector<double> values;
    for (const Json& event : events)
      if (event["event"] == "epoch") values.push_back(event[member]);
    return values;
  }

  std::string out, said;

 private:
  fs::path folder_;
};

TEST(Random, DependsOnItsKeyAlone) {
  Random a(Purpose::order, {1, 2}), b(Purpose::order, {1, 2}), c(Purpose::order, {2, 1}), d(Purpose::split, {1, 2});
  const double first = a.uniform();
  EXPECT_EQ(first, b.uniform());
  EXPECT_NE(first, c.uniform());
  EXPECT_NE(first, d.uniform());
}

TEST(Random, HasTheMomentsOfItsDistributions) {
  Random random(Purpose::weights, {7});
  constexpr int n = 100000;
  double sum = 0, square = 0, flat = 0;
  for (int i = 0; i < n; ++i) {
    const double x = random.normal();
    sum += x;
    square += x * x;
    flat += random.uniform();
  }
  const double deviation = 1 / std::sqrt(static_cast<double>(n));  // of a mean of n; the limits are five of them
  EXPECT_NEAR(sum / n, 0, 5 * deviation);
  EXPECT_NEAR(square / n, 1, 5 * std::sqrt(2.0) * deviation);
  EXPECT_NEAR(flat / n, 0.5, 5 * std::sqrt(1.0 / 12) * deviation);
  std::vector<std::int64_t> items{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  random.shuffle(items);
  EXPECT_EQ(std::set<std::int64_t>(items.begin(), items.end()).size(), 10u);
}

TEST(Images, ADigitsRunHasTheExperimentsSizes) {
  const DataSet data = load_data_set(digits);
  Images images(data, Split::iid, 4, 0);
  EXPECT_EQ(images.train_count(), 1280);
  EXPECT_EQ(images.test_count(), 4 * 517);
  EXPECT_EQ(images.shape().height, 12);
  images.begin_epoch(0, 1, 1);
  EXPECT_EQ(images.updates(), 320);
  images.begin_epoch(0, 3, 1);
  EXPECT_EQ(images.updates(), 106);  // the last, incomplete update is dropped
}

TEST(Images, RanksShareWhatOneRankSees) {
  const DataSet data = load_data_set(digits);
  Images four(data, Split::iid, 4, 3), one(data, Split::iid, 1, 3);
  four.begin_epoch(2, 2, 2);
  one.begin_epoch(2, 8, 2);
  const auto values = static_cast<std::size_t>(four.shape().values());
  std::vector<float> together(8 * values), part(2 * values);
  std::vector<std::int64_t> labels(8), some(2);
  for (std::int64_t call = 0; call < 2; ++call) {
    one.fill(0, 5, call, together.data(), labels.data());
    for (int rank = 0; rank < 4; ++rank) {
      four.fill(rank, 5, call, part.data(), some.data());
      const auto r = static_cast<std::size_t>(rank);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), together.begin() + static_cast<std::ptrdiff_t>(2 * r * values)));
      EXPECT_TRUE(std::equal(some.begin(), some.end(), labels.begin() + static_cast<std::ptrdiff_t>(2 * r)));
    }
  }
}

TEST(Images, SplitByLabelGivesARankFewLabels) {
  const DataSet data = load_data_set(digits);
  Images images(data, Split::label, 4, 0);
  images.begin_epoch(1, 320, 1);
  std::vector<float> pixels(static_cast<std::size_t>(320 * images.shape().values()));
  std::vector<std::int64_t> labels(320), all;
  for (int rank = 0; rank < 4; ++rank) {
    images.fill(rank, 0, 0, pixels.data(), labels.data());
    EXPECT_LE(std::set<std::int64_t>(labels.begin(), labels.end()).size(), 4u);
    all.insert(all.end(), labels.begin(), labels.end());
  }
  EXPECT_EQ(std::set<std::int64_t>(all.begin(), all.end()).size(), 10u);
}

TEST(Images, TestImagesDoNotChangeWithTheEpoch) {
  const DataSet data = load_data_set(digits);
  Images a(data, Split::iid, 4, 1), b(data, Split::iid, 2, 1);
  b.begin_epoch(3, 1, 1);
  std::vector<float> x(static_cast<std::size_t>(a.shape().values())), y(x.size()), z(x.size());
  EXPECT_EQ(a.fill_test(600, x.data()), b.fill_test(600, y.data()));
  EXPECT_EQ(x, y);
  a.fill_test(600 - 517, z.data());  // the same digit, augmented otherwise
  EXPECT_NE(x, z);
}

TEST(Settings, FillInTheExperimentsAttributes) {
  const Settings settings =
      parse({"--norm", "batch_renorm,cross_iteration_batch_norm:window=3,cross_mini_batch_norm,group_norm"});
  ASSERT_EQ(settings.norms.size(), 4u);
  const Layer renorm = *layers_of(settings.norms[0], 1, 1, 1000).norm;
  EXPECT_EQ(renorm.options.variant, RenormVariant::var);
  EXPECT_EQ(renorm.options.r_max_ramp, (Ramp{{40, 1}, {300, 1.5}}));
  EXPECT_EQ(renorm.options.d_max_ramp, (Ramp{{40, 0}, {200, 0.5}}));
  const Layer window = *layers_of(settings.norms[1], 1, 1, 1000).norm;
  EXPECT_EQ(window.options.window, 3);
  EXPECT_EQ(window.options.burn_in, 500);
  EXPECT_TRUE(window.options.fill_in_burn_in);
  EXPECT_EQ(calls_per_update(settings, settings.norms[2]), 4);
  EXPECT_EQ(layers_of(settings.norms[2], 1, 4, 1000).options().burn_in, 500);  // batches
  EXPECT_EQ(layers_of(settings.norms[3], 1, 1, 1000).options().groups, 4);
  EXPECT_EQ(layers_of(parse({"--norm", "group_norm:groups=2"}).norms[0], 1, 1, 1).options().groups, 2);
}

TEST_F(Training, RefusesWhatItCannotDo) {
  EXPECT_EQ(train({"--norm", "no_such_norm"}), exit_usage);
  EXPECT_EQ(train({"--norm", "batch_norm:window=0"}), exit_usage);
  EXPECT_EQ(train({"--norm", "group_norm:sync=world"}), exit_usage);  // ranks have no samples in common
  EXPECT_EQ(train({"--norm", "cross_mini_batch_norm:minibatches=3", "--accumulate", "4"}), exit_usage);
  for (const char* what : {"batch_norm:activation=leaky_relu", "layer_norm:normalized_shape=12",
                           "cross_iteration_batch_norm:conv_stride=2", "instance_norm:track=true:training=false",
                           "weight_norm:dim=1", "spade", "moment_shortcut", "conditional_batch_norm",
                           "weight_norm+weight_standardization", "batch_norm+group_norm", "batch_norm+"}) {
    EXPECT_EQ(train({"--norm", what}), exit_usage) << what;
    EXPECT_NE(said.find("must"), std::string::npos) << what << ": " << said;
  }
  EXPECT_EQ(train({"--norm", "batch_norm:eps=1e-3:momentum=0.1,batch_norm:momentum=0.1:eps=0.001"}), exit_usage);
  EXPECT_EQ(train({"--norm", "weight_norm+group_norm,group_norm,weight_norm+group_norm"}), exit_usage);
}

TEST_F(Training, AllAreTheRowsThatNeedTheirInputAlone) {
  const Settings settings = parse({"--norm", "all"});
  std::vector<std::string> labels;
  for (const NormChoice& choice : settings.norms) labels.push_back(choice.label);
  for (const char* never : {"spade", "moment_shortcut", "adaptive_instance_norm", "conditional_instance_norm"})
    EXPECT_EQ(std::count(labels.begin(), labels.end(), never), 0) << never;
  for (const char* always : {"batch_norm", "switchable_norm", "positional_norm", "filter_response_norm", "weight_norm",
                             "weight_standardization+group_norm"})
    EXPECT_EQ(std::count(labels.begin(), labels.end(), always), 1) << always;
  ASSERT_EQ(train({"--norm", "all", "--ranks", "2", "--batch-per-rank", "16", "--epochs", "2", "--log", path("all")}),
            0);
  std::vector<double> first, last;
  for (const Json& event : log("all"))
    if (event["event"] == "epoch") (event["epoch"] == 1 ? first : last).push_back(event["loss"]);
  ASSERT_EQ(last.size(), labels.size());
  for (std::size_t i = 0; i < last.size(); ++i) EXPECT_LT(last[i], first[i]) << labels[i];  // it learns; nan does not
  EXPECT_EQ(train({"--epochs", "0"}), exit_usage);
  EXPECT_EQ(train({"--split", "odd"}), exit_usage);
  EXPECT_EQ(train({"--batch-per-rank", "5000", "--epochs", "1"}), exit_usage);
  EXPECT_EQ(train({"--resume", path("missing.safetensors")}), 3);
}

TEST_F(Training, SaysHowFarItIsWhereThereIsNoTerminal) {
  const auto lines = [&](const char* kind) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(train({"--norm", "group_norm", "--ranks", "2", "--batch-per-rank", "64", "--epochs", "1", "--seeds", "2",
                     "--progress", kind}),
              0);
    return testing::internal::GetCapturedStderr();
  };
  for (const char* kind : {"auto", "lines"}) {  // of one rank alone, one per run
    const std::string said_by_one = lines(kind);
    EXPECT_EQ(std::count(said_by_one.begin(), said_by_one.end(), '\n'), 2) << said_by_one;
    for (const char* part :
         {"group_norm, seed 0, epoch 1 of 1: loss ", "seed 1", "test error ", " updates/s, ", "0:00 left"})
      EXPECT_NE(said_by_one.find(part), std::string::npos) << part << " in " << said_by_one;
  }
  EXPECT_EQ(lines("none"), "");
  EXPECT_EQ(train({"--progress", "odd"}), exit_usage);
}

TEST_F(Training, RanksWithSharedStatisticsTrainAsOneRankWithAllImages) {
  const auto run = [&](const std::string& name, std::initializer_list<std::string> more) {
    // The second begins with lengths of its weights that the first images of all ranks give.
    Arguments arguments{"--norm", "sync_batch_norm,weight_norm", "--epochs", "1", "--seeds", "1"};
    arguments.insert(arguments.end(), more);
    arguments.insert(arguments.end(), {"--log", path(name)});
    ASSERT_EQ(train(arguments), 0);
  };
  run("four", {"--ranks", "4", "--batch-per-rank", "64"});
  run("one", {"--ranks", "1", "--batch-per-rank", "256"});
  // Five updates. Single precision rounds differently when 4 times 64 images are added instead of 256: 2^-24 times the
  // square root of the some thousand additions behind a gradient, and the updates carry it on.
  for (const std::size_t norm : {0, 1})
    EXPECT_NEAR(numbers(log("four"), "loss")[norm], numbers(log("one"), "loss")[norm],
                5 * 0x1p-24 * std::sqrt(256 * 144.0));
}

/// Keeps every checkpoint that appears under a name while it lives: what a run that was killed at some time leaves.
class Collector {
 public:
  explicit Collector(std::string path) : path_(std::move(path)), thread_([this] { watch(); }) {}
  ~Collector() { stop(); }
  /// The files in the order of their appearance.
  const std::vector<std::string>& stop() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
    return files_;
  }

 private:
  void watch() {
    while (!done_) {
      // A checkpoint is renamed into place, so that a link to it keeps its content when the next one comes.
      const std::string link = path_ + "." + std::to_string(files_.size());
      std::error_code error;
      fs::create_hard_link(path_, link, error);
      if (!error && !files_.empty() && fs::equivalent(link, files_.back(), error))
        fs::remove(link);
      else if (!error)
        files_.push_back(link);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  std::string path_;
  std::vector<std::string> files_;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

TEST_F(Training, GoesOnFromACheckpointAsIfItHadNotStopped) {
  const Arguments common{"--norm",
                         "batch_renorm,cross_iteration_batch_norm,batch_norm:sync=2,switchable_norm,"
                         "weight_norm+mean_only_batch_norm,weight_norm",
                         "--ranks",
                         "4",
                         "--batch-per-rank",
                         "40",
                         "--epochs",
                         "3",
                         "--seeds",
                         "2"};
  const auto with = [&](std::initializer_list<std::string> more) {
    Arguments arguments = common;
    arguments.insert(arguments.end(), more);
    return arguments;
  };
  Collector collector(path("c"));
  ASSERT_EQ(train(with({"--log", path("whole"), "--checkpoint", path("c")})), 0);
  const std::vector<std::string> checkpoints = collector.stop();
  const std::vector<Json> whole = log("whole");
  EXPECT_EQ(numbers(whole, "loss").size(), 36u);
  ASSERT_GT(checkpoints.size(), 4u);
  for (std::size_t i = 0; i < checkpoints.size(); i += std::max<std::size_t>(1, checkpoints.size() / 5)) {
    ASSERT_EQ(train(with({"--resume", checkpoints[i], "--log", path("again")})), 0);
    EXPECT_EQ(log("again"), whole) << "from checkpoint " << i;
  }
  Arguments other = with({"--resume", checkpoints.back()});
  *std::find(other.begin(), other.end(), "3") = "4";
  testing::internal::CaptureStderr();
  EXPECT_EQ(train(other), 3);
  const std::string message = testing::internal::GetCapturedStderr();
  EXPECT_NE(message.find("epochs is 3, must be 4"), std::string::npos) << message;
}

TEST_F(Training, WritesAReportATableAndEventsForTensorBoard) {
  ASSERT_EQ(
      train({"--norm", "cross_iteration_batch_norm,batch_renorm", "--ranks", "2", "--batch-per-rank", "32", "--epochs",
             "2", "--seeds", "2", "--report", path("r.html"), "--log", path("l.csv"), "--tensorboard", path("board")}),
      0);
  std::ifstream table(path("l.csv"));
  std::vector<std::string> rows;
  for (std::string row; std::getline(table, row);) rows.push_back(row);
  ASSERT_EQ(rows.size(), 9u);  // 2 norms, 2 seeds, 2 epochs
  EXPECT_TRUE(rows[0].starts_with("norm,batch_per_rank,split,seed,epoch,loss,test_error,")) << rows[0];
  EXPECT_TRUE(rows[1].starts_with("\"cross_iteration_batch_norm\",32,\"iid\",0,1,")) << rows[1];
  for (const char* norm : {"cross_iteration_batch_norm", "batch_renorm"})
    for (const char* seed : {"0", "1"}) {
      std::ifstream board(
          path("board/" + std::string(norm) + "/images 32, iid, seed " + seed + "/events.out.tfevents.allnorm"),
          std::ios::binary);
      const std::string bytes{std::istreambuf_iterator<char>(board), {}};
      std::size_t records = 0, at = 0;
      for (; at + 16 <= bytes.size(); ++records) {  // length (8), its checksum (4), data, its checksum (4)
        std::uint64_t length = 0;
        std::memcpy(&length, bytes.data() + at, sizeof length);
        at += 16 + length;
      }
      EXPECT_EQ(at, bytes.size());
      EXPECT_GT(records, 3u);  // the version, and for both epochs the training's numbers and those of layers
      for (const char* tag : {"training/loss", "training/test_error", "layer 1/mean_gap_max"})
        EXPECT_NE(bytes.find(tag), std::string::npos) << tag;
    }
  EXPECT_NE(out.find("cross_iteration_batch_norm"), std::string::npos);
  std::ifstream file(path("r.html"));
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  EXPECT_EQ(page.find("<!doctype html>"), 0u);
  EXPECT_NE(page.find("</html>"), std::string::npos);
  EXPECT_NE(page.find("layer 5"), std::string::npos);  // of the past statistics
  // Self-contained: nothing is loaded from elsewhere.
  EXPECT_EQ(page.find(" src="), std::string::npos);
  EXPECT_EQ(page.find("<link"), std::string::npos);
  // Plots, or a word about why there are none.
  EXPECT_NE(page.find("<svg") != std::string::npos, page.find("tables only") != std::string::npos);
}

TEST_F(Training, AHostileCheckpointIsOneLineAndExitThree) {
  const Arguments common{"--norm", "group_norm", "--batch-per-rank", "640", "--epochs", "1"};
  const auto with = [&](std::initializer_list<std::string> more) {
    Arguments arguments = common;
    arguments.insert(arguments.end(), more);
    return arguments;
  };
  ASSERT_EQ(train(with({"--checkpoint", path("c")})), 0);
  EXPECT_EQ(train(with({"--resume", path("c")})), 0);
  const TensorFile good = read_safetensors(path("c"));
  const auto refused = [&](const std::string& field, const std::string& text) {
    TensorFile file = good;
    file.metadata[field] = text;
    write_safetensors(path("bad"), file);
    testing::internal::CaptureStderr();
    EXPECT_EQ(train(with({"--resume", path("bad")})), 3) << text.substr(0, 80);
    const std::string line = testing::internal::GetCapturedStderr();
    EXPECT_EQ(line.find("allnorm: " + path("bad") + ": "), 0u) << line;
    EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
    EXPECT_NE(line.find(field), std::string::npos) << line;
  };
  Json events = Json::parse(good.metadata.at("events"));
  refused("events", Json::array({events[0], Json::object()}).dump());
  events[0]["settings"]["lr"] = "HERE";
  std::string deep = events.dump();
  deep.replace(deep.find("\"HERE\""), 6, std::string(100'000, '[') + std::string(100'000, ']'));
  refused("events", deep);
  for (const char* position : {"[7,0]", "[-1,0]", "[0.5,1.9]", "[0,9999999999]", "\"x\"", "{}"})
    refused("position", position);
}

/// The exit code and stderr of two ranks of mpirun with a command line each.
std::pair<int, std::string> two_ranks(const std::string& common, const std::string& first, const std::string& second,
                                      const std::string& err) {
  for (const char* name :
       {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"})
    setenv(name, "1", 1);
  const std::string rank = "-n 1 " + program + " train --data " + digits + " " + common + " ";
  const int status = std::system(("mpirun " + rank + first + " : " + rank + second + " > /dev/null 2> " + err).c_str());
  std::ifstream file(err);
  return {WEXITSTATUS(status), {std::istreambuf_iterator<char>(file), {}}};
}

TEST_F(Training, RanksThatStartFromDifferentThingsAreExitFour) {
  if (std::system("mpirun --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun here";
  const std::string norm = "--norm group_norm ", common = "--batch-per-rank 320 --epochs 1 --first-timeout 60";
  ASSERT_EQ(train({"--norm", "group_norm", "--batch-per-rank", "320", "--epochs", "1", "--ranks", "2", "--checkpoint",
                   path("end")}),
            0);
  TensorFile file = read_safetensors(path("end"));
  file.metadata["position"] = "[0,0]";  // the same run before its first epoch
  file.metadata["events"] = Json::array({Json::parse(file.metadata["events"])[0]}).dump();
  write_safetensors(path("start"), file);
  const auto both = [&](const std::string& first, const std::string& second) {
    return two_ranks(common, first, second, path("err"));
  };
  const auto [fine, no_words] = both(norm + "--resume " + path("end"), norm + "--resume " + path("end"));
  if (fine == exit_unavailable) GTEST_SKIP() << "this build has no MPI";
  EXPECT_EQ(fine, 0) << no_words;
  const auto [other, words] = both(norm + "--resume " + path("end"), norm + "--resume " + path("start"));
  EXPECT_EQ(other, exit_mismatch) << words;
  EXPECT_NE(words.find("rank 1 is at a resume from the checkpoint #"), std::string::npos) << words;
  const auto [none, more_words] = both(norm + "--resume " + path("start"), norm);
  EXPECT_EQ(none, exit_mismatch) << more_words;
  EXPECT_NE(more_words.find("rank 1 is at a start without a checkpoint"), std::string::npos) << more_words;
  const auto [setting, last_words] = both(norm, "--norm layer_norm");  // long ones are compared too
  EXPECT_EQ(setting, exit_mismatch) << last_words;
}

TEST_F(Training, AModelThatDivergesKeepsItsLastGoodCheckpoint) {
  const Arguments common{"--norm", "group_norm", "--batch-per-rank", "160", "--epochs", "1", "--checkpoint", path("c")};
  ASSERT_EQ(train(common), 0);
  std::ifstream before(path("c"));
  const std::string good{std::istreambuf_iterator<char>(before), {}};
  Arguments diverging = common;
  diverging.insert(diverging.end(), {"--lr", "999999"});
  testing::internal::CaptureStderr();
  EXPECT_EQ(train(diverging), 0);
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_NE(line.find("allnorm: warning: " + path("c") +
                      ": is not written after this epoch (group_norm, seed 0, epoch 1 of 1)"),
            std::string::npos)
      << line;
  std::ifstream after(path("c"));
  EXPECT_EQ(good, (std::string{std::istreambuf_iterator<char>(after), {}}));
}

/// A command line that runs beside the test.
class Running {
 public:
  Running(const std::string& words, const std::string& said) : said_(said), pid_(::fork()) {
    if (pid_ != 0) return;
    const std::string line = "exec " + words + " >" + said + " 2>&1";
    ::execl("/bin/sh", "sh", "-c", line.c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  /// Sends the signal once the file has `lines` lines; false where it never does.
  bool signal_after(const std::string& path, std::ptrdiff_t lines, int signal) const {
    for (int tries = 0; tries < 6000; ++tries) {
      std::ifstream file(path);
      if (std::count(std::istreambuf_iterator<char>(file), {}, '\n') >= lines) return ::kill(pid_, signal) == 0;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  /// Sends the signal once the process is a program of that name; false where it never is.
  bool signal_as(const std::string& name, int signal) const {
    for (int tries = 0; tries < 60000; ++tries) {
      std::ifstream file("/proc/" + std::to_string(pid_) + "/comm");
      std::string own;
      if (std::getline(file, own) && own == name) return ::kill(pid_, signal) == 0;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  int code() const {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  std::string said() const {
    std::ifstream file(said_);
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  std::string said_;
  pid_t pid_;
};

TEST_F(Training, StopsWhereItIsAndGoesOnToTheSameBits) {
  const std::string common =
      " --norm cross_iteration_batch_norm:burn_in=20:window=3,group_norm --batch-per-rank 16 --epochs 6 --data " +
      digits;
  ASSERT_EQ(
      std::system((program + " train --ranks 2" + common + " --log " + path("whole") + " >/dev/null 2>&1").c_str()), 0);
  const bool mpi = std::system("mpirun --version >/dev/null 2>&1") == 0;
  for (const std::string& start : {program + " train --ranks 2", "mpirun -n 2 " + program + " train"}) {
    SCOPED_TRACE(start);
    if (start.starts_with("mpirun") && !mpi) continue;
    const std::string words =
        start + common + " --checkpoint " + path("c") + " --resume-if-present " + path("c") + " --log " + path("part");
    fs::remove(path("c"));
    fs::remove(path("part"));
    int stops = 0;
    for (const std::ptrdiff_t lines : {3, 12, 1000}) {  // the config, and six lines an epoch
      const Running run(words, path("said"));
      if (lines < 1000) {
        ASSERT_TRUE(run.signal_after(path("part"), lines, SIGUSR1));
      }
      const int code = run.code();
      if (code == exit_unavailable) break;  // this build has no MPI
      ASSERT_EQ(code, 0) << run.said();
      if (run.said().find("stopped after update ") == std::string::npos) continue;
      EXPECT_EQ(log("part").back()["event"], "stopped");
      ++stops;
    }
    EXPECT_GE(stops, 1);
    EXPECT_EQ(log("part"), log("whole"));
  }
}

TEST_F(Training, EndsAtSigtermWithALastCheckpoint) {
  const std::string words = program + " train --ranks 2 --norm group_norm --batch-per-rank 16 --epochs 1000 --data " +
                            digits + " --log " + path("l");
  const Running with(words + " --checkpoint " + path("c"), path("said"));
  ASSERT_TRUE(with.signal_after(path("l"), 2, SIGTERM));
  EXPECT_EQ(with.code(), exit_terminated);
  EXPECT_NE(with.said().find("--resume " + path("c") + " goes on"), std::string::npos) << with.said();
  EXPECT_EQ(log("l").back()["event"], "stopped");
  fs::remove(path("l"));
  const Running without(words, path("said"));
  ASSERT_TRUE(without.signal_as("allnorm-train", SIGUSR1));  // while it loads; nothing to save to: it goes on
  ASSERT_TRUE(without.signal_after(path("said"), 1, 0));
  ASSERT_TRUE(without.signal_after(path("l"), 10, SIGTERM));
  EXPECT_EQ(without.code(), exit_terminated);
  EXPECT_NE(without.said().find("SIGUSR1: there is no --checkpoint to save to; the training goes on"),
            std::string::npos)
      << without.said();
}

TEST_F(Training, ProcessesAndThreadsGiveTheSameBits) {
  if (std::system("mpirun --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "there is no mpirun here";
  const std::string common =
      std::string(" train --norm sync_batch_norm,cross_iteration_batch_norm --batch-per-rank 8 --epochs 2 --data ") +
      digits + " >/dev/null --log ";
  ASSERT_EQ(std::system((program + common + path("threads") + " --ranks 4").c_str()), 0);
  // Open MPI wants to be told about more ranks than cores, and about root.
  for (const char* name :
       {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"})
    setenv(name, "1", 1);
  const int status = std::system(("mpirun -n 4 " + program + common + path("processes")).c_str());
  if (WEXITSTATUS(status) == exit_unavailable) GTEST_SKIP() << "this build has no MPI";
  ASSERT_EQ(status, 0);
  EXPECT_EQ(log("threads"), log("processes"));
  EXPECT_EQ(numbers(log("threads"), "loss").size(), 4u);
}

}  // namespace
}  // namespace allnorm::launch::train
