// What `allnorm train` was asked to do: its options, and the list of runs that they mean.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "launch/command.hpp"
#include "launch/ranks.hpp"
#include "launch/train/images.hpp"

namespace allnorm::launch::train {

/// One entry of --norm: a row of the catalogue and the attributes that were given.
struct NormChoice {
  std::string label;  ///< as it was written
  std::string name;
  std::vector<std::pair<std::string, std::string>> attributes;

  bool sets(std::string_view attribute) const;
};

/// What one row of a table is about, besides its normalization.
struct Scene {
  std::int64_t batch = 1;  ///< images per rank and call
  Split split = Split::iid;
};

struct Settings {
  RankOptions ranks;
  std::string data = "data/digits";
  std::vector<NormChoice> norms;
  std::vector<Scene> scenes{Scene{}};  ///< several with --preset sweep
  std::int64_t accumulate = 0;         ///< calls per update; 0: the norm's minibatches
  std::int64_t epochs = 20, seeds = 1;
  std::optional<double> lr;  ///< the peak; not given: learning_rate()
  std::string preset;        ///< "demo", "sweep" or empty
  std::string log, report, checkpoint, resume;
};

/// Throws invalid_argument for unknown options and values out of range.
Settings parse(const Arguments& arguments);
void print_help(std::ostream& out);
std::string_view to_string(Split split) noexcept;

/// One training: a normalization, a scene, a seed.
struct Job {
  std::size_t norm = 0;  ///< index into Settings::norms
  std::int64_t batch = 1;
  Split split = Split::iid;
  std::uint64_t seed = 0;
};
/// All runs in the order in which they are made: scenes, in them norms, in them seeds.
std::vector<Job> jobs_of(const Settings& settings);

/// Calls per update of a norm.
std::int64_t calls_per_update(const Settings& settings, const NormChoice& choice);
/// The layer of a choice with the experiment's attributes where none were given; schedules and burn-in are shares of
/// `updates`, those of the whole training.
Layer layer_of(const NormChoice& choice, std::int64_t batch, std::int64_t calls, std::int64_t updates);
/// The experiment's rule: 0.3 per 32 images of an update.
double peak_rate(const Settings& settings, std::int64_t images_per_update) noexcept;

}  // namespace allnorm::launch::train
