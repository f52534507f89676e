// `allnorm train`: runs the trainings one after another and says what came out.
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "launch/files/atomic_file.hpp"
#include "launch/files/data_sets.hpp"
#include "launch/files/input_file.hpp"
#include "launch/help.hpp"
#include "launch/train/checkpoint.hpp"
#include "launch/train/events.hpp"
#include "launch/train/progress.hpp"
#include "launch/train/report.hpp"
#include "launch/train/settings.hpp"
#include "launch/train/trainer.hpp"

namespace allnorm::launch {

using namespace train;

namespace {

/// The images, loaded once in a process however many ranks it has. A failure is every rank's own.
class SharedData {
 public:
  const DataSet& get(const std::string& folder) {
    const std::lock_guard lock(mutex_);
    if (!data_) data_ = std::make_unique<DataSet>(load_data_set(folder));
    return *data_;
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<DataSet> data_;
};

/// The log of rank 0. Events are on disk as soon as they are there.
class Log {
 public:
  Log(const std::string& path, bool wanted) : path_(path) {
    if (!wanted || path.empty()) return;
    file_.open(path, std::ios::trunc);
    if (!file_) bad_file(path, "cannot be written, must be in a directory that can");
  }
  void write(const Json& event) {
    if (!file_.is_open()) return;
    file_ << event.dump() << '\n' << std::flush;
    if (!file_) bad_file(path_, "cannot be written to any more");
  }

 private:
  std::string path_;
  std::ofstream file_;
};

/// Every rank must be here with the same text.
void agree_on(const std::string& text, Rank& rank) {
  if (rank.size > 1) rank.world->exchange({Header(text, Direction::agreement, 0), {}, 0, {}}, rank.queue);
}

/// Ranks that were told different things are found before they compute anything.
void agree_on_settings(const Json& config, Rank& rank) {
  for (const auto& [field, value] : config["settings"].items()) {
    const std::string name = "setting " + field + " = ", text = value.dump();
    // What does not fit into a header is compared by its hash.
    agree_on(name + (name.size() + text.size() < Header::name_size ? text : hex(hash_of(text.data(), text.size()))),
             rank);
  }
}

/// One rank's way through all runs.
class Training {
 public:
  Training(const Settings& settings, const DataSet& data, Rank& rank)
      : settings_(settings),
        data_(data),
        rank_(rank),
        jobs_(jobs_of(settings)),
        config_(config_event(settings, data, rank)) {}

  void run() {
    use_one_thread();
    agree_on_settings(config_, rank_);
    std::optional<Checkpoint> resumed;
    if (!settings_.resume.empty()) resumed.emplace(settings_.resume, settings_, config_);
    agree_on(resumed ? "a resume from the checkpoint #" + hex(resumed->digest()) : "a start without a checkpoint",
             rank_);
    const Position start = resumed ? resumed->position() : Position{};
    const Events past = resumed ? resumed->events() : Events{config_};
    Log log(settings_.log, rank_.rank == 0);
    const auto add = [&](Json event) {
      log.write(event);
      events_.push_back(std::move(event));
    };
    for (const Json& event : past) add(event);
    Progress progress(rank_.rank == 0, total_updates(jobs_.size(), 0), total_updates(start.job, start.epoch));

    for (std::size_t j = start.job; j < jobs_.size(); ++j) {
      const Job& job = jobs_[j];
      Trainer trainer(settings_, job, data_, rank_);
      if (resumed && j == start.job) resumed->restore(trainer, rank_);
      for (std::int64_t epoch = j == start.job ? start.epoch : 0; epoch < settings_.epochs; ++epoch) {
        progress.describe(settings_.norms[job.norm].label + ", seed " + std::to_string(job.seed) + ", epoch " +
                          std::to_string(epoch + 1));
        const Epoch outcome = trainer.run(epoch, [&] { progress.tick(); });
        for (Json& event : epoch_events(settings_, job, epoch, outcome)) add(std::move(event));
        const bool last = epoch + 1 == settings_.epochs;
        if (last && job.seed + 1 == static_cast<std::uint64_t>(settings_.seeds))
          add(result_event(settings_, job, events_));
        if (!settings_.checkpoint.empty()) save(last ? Position{j + 1, 0} : Position{j, epoch + 1}, trainer, progress);
      }
    }
    progress.clear();
    if (rank_.rank == 0) finish();
  }

 private:
  /// Updates of the first `jobs` jobs and of `epochs` epochs of the next.
  std::int64_t total_updates(std::size_t jobs, std::int64_t epochs) const {
    std::int64_t total = 0;
    for (std::size_t j = 0; j < jobs_.size() && j <= jobs; ++j) {
      Images images(data_, jobs_[j].split, rank_.size, 0);
      images.begin_epoch(0, jobs_[j].batch, calls_per_update(settings_, settings_.norms[jobs_[j].norm]));
      total += images.updates() * (j < jobs ? settings_.epochs : epochs);
    }
    return total;
  }

  void save(const Position& next, Trainer& trainer, Progress& progress) {
    const std::string wrong = write_checkpoint(settings_.checkpoint, events_, next, trainer, rank_);
    if (wrong.empty()) return;
    progress.clear();
    print_line(settings_.checkpoint + ": is not written after this epoch (" + progress.what() +
               "), an older one stays: " + wrong + ", must be finite");
  }

  void finish() const {
    std::cout << table_of(events_);
    for (const std::string& remark : remarks_of(events_)) std::cout << remark << '\n';
    std::cout << std::flush;
    if (settings_.report.empty()) return;
    AtomicFile file(settings_.report);
    file.write(report_page(events_));
    file.commit();
  }

  const Settings& settings_;
  const DataSet& data_;
  Rank& rank_;
  std::vector<Job> jobs_;
  Json config_;
  Events events_;
};

int run_train(const Arguments& arguments) {
  if (asks_for_help(arguments)) {
    print_help(std::cout);
    return exit_success;
  }
  const Settings settings = parse(arguments);
  SharedData data;
  return run_ranks(settings.ranks, [&](Rank& rank) { Training(settings, data.get(settings.data), rank).run(); });
}

}  // namespace

const Command train_command{"train", "train a small CNN with one or several normalizations and compare them", run_train,
                            print_help};

}  // namespace allnorm::launch
