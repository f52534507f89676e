// What `allnorm train` was asked to do.
#include "launch/train/settings.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>

#include <boost/program_options/variables_map.hpp>

#include "adapters/torch/streams.hpp"
#include "launch/help.hpp"
#include "launch/installed.hpp"

namespace allnorm::launch::train {

namespace po = boost::program_options;

namespace {

constexpr std::array<Scene, 7> sweep_scenes{Scene{1, Split::iid},   Scene{2, Split::iid},  Scene{4, Split::iid},
                                            Scene{8, Split::iid},   Scene{16, Split::iid}, Scene{2, Split::label},
                                            Scene{2, Split::domain}};
constexpr int demo_ranks = 4;

/// False only where that is sure: what cannot be looked at is left to the one that reads it.
bool is_there(const std::string& path) {
  std::error_code error;
  return std::filesystem::status(path, error).type() != std::filesystem::file_type::not_found;
}

}  // namespace

Settings parse(const Arguments& arguments) {
  Settings settings;
  const po::variables_map given = parse_options(arguments, describe(settings));
  if (settings.data.empty()) settings.data = digits_folder();
  const auto split = std::find(split_names.begin(), split_names.end(), settings.split_word);
  settings.progress = progress_kind(settings.progress_word);
  if (!settings.resume_if_present.empty()) {
    expect(settings.resume.empty(), Code::invalid_argument,
           "--resume is given with --resume-if-present, must be one of them");
    if (is_there(settings.resume_if_present)) settings.resume = settings.resume_if_present;
  }
  settings.scenes = {Scene{settings.batch, static_cast<Split>(split - split_names.begin())}};
  if (settings.preset == "sweep") {
    expect(given["batch-per-rank"].defaulted(), Code::invalid_argument,
           "--batch-per-rank is given with --preset sweep, must be left to the preset");
    expect(given["split"].defaulted(), Code::invalid_argument,
           "--split is given with --preset sweep, must be left to the preset");
    settings.scenes.assign(sweep_scenes.begin(), sweep_scenes.end());
  }
  if (!settings.preset.empty() && settings.ranks.ranks == 0 && !under_launcher(settings.ranks))
    settings.ranks.ranks = demo_ranks;
  settings.norms = parse_norms(settings.norm_list);
  for (const NormChoice& choice : settings.norms) layers_of(choice, 1, calls_per_update(settings, choice), 1);
  check(settings.ranks);
  const bool on_cpu = settings.ranks.device == "cpu";
  expect(on_cpu || !ranks_are_threads(settings.ranks), Code::unsupported,
         "--device is cuda, must be cpu for ranks as threads: libtorch runs the backward pass of one GPU on one thread "
         "(or: mpirun -n K allnorm train --device cuda ...)");
  expect(on_cpu || torch_adapter::has_gpus(), Code::unsupported,
         "--device is cuda, must be cpu: the libtorch of this build has no CUDA; install one that has it (pip's torch) "
         "and configure again");
  return settings;
}

}  // namespace allnorm::launch::train
