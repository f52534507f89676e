// `allnorm train`: runs the trainings one after another and says what came out.
#include "launch/train/train.hpp"

#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "launch/files/atomic_file.hpp"
#include "launch/files/data_sets.hpp"
#include "launch/help.hpp"
#include "launch/progress.hpp"
#include "launch/report/page.hpp"
#include "launch/terminal.hpp"
#include "launch/train/checkpoint.hpp"
#include "launch/train/event_log.hpp"
#include "launch/train/events.hpp"
#include "launch/train/settings.hpp"
#include "launch/train/trainer.hpp"

namespace allnorm::launch::train {

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

/// Rank 0 finds out before the training whether it will be able to write what it is to write.
void expect_writable(const Settings& settings) {
  for (const std::string& path : {settings.report, settings.checkpoint})
    if (!path.empty()) AtomicFile probe(path);
  if (settings.tensorboard.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(settings.tensorboard, error);
  AtomicFile probe(settings.tensorboard + "/events");
}

/// Texts of a file as they may be shown: they go to the terminal, into the report and into scripts for plots.
Json readable(Json json) {
  if (json.is_string()) return for_terminal(json.get<std::string>());
  if (json.is_structured())
    for (Json& element : json) element = readable(std::move(element));
  return json;
}

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
  Training(const Settings& settings, const DataSet& data, Rank& rank, Signals& signals)
      : settings_(settings),
        data_(data),
        rank_(rank),
        jobs_(jobs_of(settings)),
        wishing_(signals),
        config_(config_event(settings, data, rank)) {}

  void run() {
    use_one_thread();
    if (rank_.rank == 0) expect_writable(settings_);
    agree_on_settings(config_, rank_);
    std::optional<Checkpoint> resumed;
    if (!settings_.resume.empty()) resumed.emplace(settings_.resume, settings_, config_);
    agree_on(resumed ? "a resume from the checkpoint #" + hex(resumed->digest()) : "a start without a checkpoint",
             rank_);
    const Position start = resumed ? resumed->position() : Position{};
    const Events past = resumed ? readable(resumed->events()).get<Events>() : Events{config_};
    std::optional<EventLog> log;
    if (rank_.rank == 0) log.emplace(settings_);
    try {
      train(start, past, resumed, log);
    } catch (const std::exception& error) {
      if (log) log->write(error_event(error, rank_));
      throw;
    }
  }

 private:
  void train(const Position& start, const Events& past, const std::optional<Checkpoint>& resumed,
             std::optional<EventLog>& log) {
    const auto add = [&](Json event) {
      if (log) log->write(event);
      events_.push_back(std::move(event));
    };
    for (const Json& event : past) add(event);
    Progress progress(rank_.rank == 0 ? settings_.progress : ProgressKind::none, total_updates(jobs_.size(), 0),
                      total_updates(start.job, start.epoch) + start.update, "updates");

    for (std::size_t j = start.job; j < jobs_.size(); ++j) {
      const Job& job = jobs_[j];
      Trainer trainer(settings_, job, data_, rank_, &wishing_);
      if (resumed && j == start.job) resumed->restore(trainer, rank_);
      for (std::int64_t epoch = j == start.job ? start.epoch : 0; epoch < settings_.epochs; ++epoch) {
        progress.describe(settings_.norms[job.norm].label + ", seed " + std::to_string(job.seed) + ", epoch " +
                          std::to_string(epoch + 1) + " of " + std::to_string(settings_.epochs));
        const auto outcome = trainer.run(epoch, [&](const Wishes& wishes) {
          progress.tick();
          return stops(wishes, progress);
        });
        if (!outcome) {
          const Position here{j, epoch, trainer.partial().updates};
          if (!settings_.checkpoint.empty()) save(here, trainer, progress);
          if (log) log->write(stopped_event(settings_, job, here));
          return say_stopped(here, progress);
        }
        for (Json& event : epoch_events(settings_, job, epoch, *outcome)) add(std::move(event));
        if (rank_.watch != nullptr) rank_.watch->set_layers(metrics_of(outcome->layers));
        const bool last = epoch + 1 == settings_.epochs;
        progress.say("loss " + fixed(outcome->loss, 3) + ", test error " + fixed(outcome->test_error, 1) + " %", last);
        if (last && job.seed + 1 == static_cast<std::uint64_t>(settings_.seeds))
          add(result_event(settings_, job, events_));
        if (!settings_.checkpoint.empty()) save(last ? Position{j + 1, 0} : Position{j, epoch + 1}, trainer, progress);
      }
    }
    progress.clear();
    if (rank_.rank == 0) finish();
  }

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

  /// SIGTERM ends the training, SIGUSR1 where it can go on later.
  bool stops(const Wishes& wishes, Progress& progress) const {
    if (wishes.save && !wishes.end && settings_.checkpoint.empty() && rank_.rank == 0) {
      progress.clear();
      warn("SIGUSR1: there is no --checkpoint to save to; the training goes on");
    }
    return wishes.end || (wishes.save && !settings_.checkpoint.empty());
  }

  void say_stopped(const Position& here, Progress& progress) const {
    progress.clear();
    if (rank_.rank != 0) return;
    print_line("stopped after update " + std::to_string(here.update) + " of " + progress.what() +
               (settings_.checkpoint.empty() ? "; there is no --checkpoint to go on from"
                                             : "; --resume " + settings_.checkpoint + " goes on"));
  }

  /// Where the checkpoint cannot be written, or must not be, the one before stays and the training goes on.
  void save(const Position& next, Trainer& trainer, Progress& progress) {
    std::string why;
    try {
      const std::string wrong = write_checkpoint(settings_.checkpoint, events_, next, trainer, rank_);
      if (!wrong.empty())
        why = settings_.checkpoint + ": is not written after this epoch (" + progress.what() +
              "), an older one stays: " + wrong + ", must be finite";
    } catch (const Error& error) {
      if (error.code() != Code::invalid_input) throw;
      why = error.message() + "; the training goes on, and tries again after the next epoch";
    }
    if (why.empty()) {
      if (rank_.watch != nullptr) rank_.watch->saved_checkpoint();
      return;
    }
    progress.clear();
    warn(why);
  }

  void finish() const {
    std::cout << table_of(events_);
    for (const std::string& remark : remarks_of(events_)) print_text(std::cout, remark);
    std::cout << std::flush;
    if (settings_.report.empty()) return;
    AtomicFile file(settings_.report);
    file.write(pages::page_of(events_));
    file.commit();
  }

  const Settings& settings_;
  const DataSet& data_;
  Rank& rank_;
  std::vector<Job> jobs_;
  Wishing wishing_;
  Json config_;
  Events events_;
};

}  // namespace

int run_train(const Arguments& arguments) {
  if (asks_for_help(arguments)) {
    help_train(std::cout);
    return exit_success;
  }
  const Settings settings = parse(arguments);
  SharedData data;
  Signals signals(settings.ranks.timeout);
  const int code =
      run_ranks(settings.ranks, [&](Rank& rank) { Training(settings, data.get(settings.data), rank, signals).run(); });
  return code == exit_success && signals.ended() ? exit_terminated : code;
}

}  // namespace allnorm::launch::train
