// What `allnorm train` was asked to do: its options, and the list of runs that they mean.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "launch/command.hpp"
#include "launch/progress.hpp"
#include "launch/train/images.hpp"
#include "launch/train/norm_choice.hpp"
#include "launch/train_options.hpp"

namespace allnorm::launch::train {

/// What one row of a table is about, besides its normalization.
struct Scene {
  std::int64_t batch = 1;  ///< images per rank and call
  Split split = Split::iid;
};

struct Settings : TrainOptions {
  std::vector<NormChoice> norms;
  std::vector<Scene> scenes{Scene{}};          ///< several with --preset sweep
  ProgressKind progress = ProgressKind::none;  ///< of rank 0
};

/// Throws invalid_argument for unknown options and values out of range.
Settings parse(const Arguments& arguments);
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
/// The experiment's rule: 0.3 per 32 images of an update.
double peak_rate(const Settings& settings, std::int64_t images_per_update) noexcept;

}  // namespace allnorm::launch::train
