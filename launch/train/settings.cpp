// What `allnorm train` was asked to do.
#include "launch/train/settings.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <ostream>
#include <string_view>

#include <boost/program_options/options_description.hpp>
#include <boost/program_options/value_semantic.hpp>
#include <boost/program_options/variables_map.hpp>

#include "adapters/torch/streams.hpp"
#include "launch/help.hpp"
#include "src/attributes.hpp"

namespace allnorm::launch::train {

namespace po = boost::program_options;

namespace {

constexpr std::string_view default_norms =
    "batch_norm,sync_batch_norm,batch_renorm,cross_iteration_batch_norm,group_norm";
constexpr std::array<std::string_view, 3> split_names{"iid", "label", "domain"};
constexpr std::array<Scene, 7> sweep_scenes{Scene{1, Split::iid},   Scene{2, Split::iid},  Scene{4, Split::iid},
                                            Scene{8, Split::iid},   Scene{16, Split::iid}, Scene{2, Split::label},
                                            Scene{2, Split::domain}};
constexpr int demo_ranks = 4;

/// The words of the command line before they are checked.
struct Words {
  std::string norm{default_norms}, split{"iid"}, progress{"auto"};
  std::int64_t batch = 1;
  double lr = 0;
  std::string resume_if_present;
};

po::options_description describe_all(Settings& settings, Words& words) {
  po::options_description own("Options of train");
  auto add = own.add_options();
  add("help,h", "print this help");
  add("data", po::value(&settings.data)->value_name("DIR")->default_value(settings.data),
      "folder of the images: digits, MNIST or Fashion-MNIST (IDX), CIFAR-10 (binary); recognised by its files");
  add("norm", po::value(&words.norm)->value_name("LIST"),
      "normalizations to compare, NAME[:attr=value...] separated by commas, with + between a layer of weights and a "
      "norm that are used together, or all; without it batch_norm, sync_batch_norm, batch_renorm, "
      "cross_iteration_batch_norm and group_norm");
  add("batch-per-rank", po::value(&words.batch)->value_name("B")->default_value(1), "images per rank and call");
  add("accumulate", po::value(&settings.accumulate)->value_name("T"),
      "calls per rank and update, gradients averaged; without it the norm's minibatches");
  add("epochs", po::value(&settings.epochs)->value_name("E")->default_value(settings.epochs), "passes over the images");
  add("lr", po::value(&words.lr)->value_name("RATE"), "peak learning rate; without it 0.3 * images per update / 32");
  add("seeds", po::value(&settings.seeds)->value_name("S")->default_value(settings.seeds), "runs with seeds 0 to S-1");
  add("split", po::value(&words.split)->value_name("KIND")->default_value("iid"),
      "how images are dealt to the ranks: iid, label (each rank sees few classes) or domain (each rank sees another "
      "contrast and brightness)");
  add("preset", po::value(&settings.preset)->value_name("NAME"),
      "demo: 4 ranks of one image; sweep: 4 ranks of 1, 2, 4, 8 and 16 images, and 2 split by label and by domain");
  add("log", po::value(&settings.log)->value_name("F.jsonl"), "write events, one JSON object a line");
  add("report", po::value(&settings.report)->value_name("F.html"), "write one page with plots and tables");
  add("checkpoint", po::value(&settings.checkpoint)->value_name("F.safetensors"),
      "write the state at every epoch's end");
  add("resume", po::value(&settings.resume)->value_name("F.safetensors"), "go on from a checkpoint of the same run");
  add("resume-if-present", po::value(&words.resume_if_present)->value_name("F.safetensors"),
      "the same, or a start where there is no such file: for jobs that a scheduler starts again");
  add("progress", po::value(&words.progress)->value_name("KIND")->default_value("auto"),
      "signs of life of rank 0: bar (on the terminal), lines (one per epoch on stderr), none, or auto: a bar where "
      "stderr is a terminal, else lines");
  return own.add(describe(settings.ranks));
}

/// False only where that is sure: what cannot be looked at is left to the one that reads it.
bool is_there(const std::string& path) {
  std::error_code error;
  return std::filesystem::status(path, error).type() != std::filesystem::file_type::not_found;
}

void at_least_one(std::int64_t value, std::string_view option) {
  constexpr std::int64_t most = 1'000'000;  // keeps products of them in range
  expect(value >= 1 && value <= most, Code::invalid_argument, [&] {
    return std::string(option) + " is " + std::to_string(value) + ", must be 1 to " + std::to_string(most);
  });
}

}  // namespace

std::string_view to_string(Split split) noexcept { return split_names[static_cast<std::size_t>(split)]; }

Settings parse(const Arguments& arguments) {
  Settings settings;
  Words words;
  const po::options_description description = describe_all(settings, words);
  const po::variables_map given = parse_options(arguments, description);
  const auto split = std::find(split_names.begin(), split_names.end(), words.split);
  expect(split != split_names.end(), Code::invalid_argument,
         [&] { return "--split is '" + words.split + "', must be iid, label or domain"; });
  expect(settings.preset.empty() || settings.preset == "demo" || settings.preset == "sweep", Code::invalid_argument,
         [&] { return "--preset is '" + settings.preset + "', must be demo or sweep"; });
  settings.progress = progress_kind(words.progress);
  at_least_one(words.batch, "--batch-per-rank");
  at_least_one(settings.epochs, "--epochs");
  at_least_one(settings.seeds, "--seeds");
  expect(settings.seeds <= 1'000'000, Code::invalid_argument,
         [&] { return "--seeds is " + std::to_string(settings.seeds) + ", must be at most 1000000"; });
  if (given.count("accumulate")) at_least_one(settings.accumulate, "--accumulate");
  if (given.count("lr")) {
    expect(words.lr > 0 && words.lr < 1e6, Code::invalid_argument,
           [&] { return "--lr is " + attributes::text_of(words.lr) + ", must be above 0 and below 1e6"; });
    settings.lr = words.lr;
  }
  if (!words.resume_if_present.empty()) {
    expect(settings.resume.empty(), Code::invalid_argument,
           "--resume is given with --resume-if-present, must be one of them");
    if (is_there(words.resume_if_present)) settings.resume = words.resume_if_present;
  }
  settings.scenes = {Scene{words.batch, static_cast<Split>(split - split_names.begin())}};
  if (settings.preset == "sweep") {
    expect(given["batch-per-rank"].defaulted(), Code::invalid_argument,
           "--batch-per-rank is given with --preset sweep, must be left to the preset");
    expect(given["split"].defaulted(), Code::invalid_argument,
           "--split is given with --preset sweep, must be left to the preset");
    settings.scenes.assign(sweep_scenes.begin(), sweep_scenes.end());
  }
  if (!settings.preset.empty() && settings.ranks.ranks == 0 && !under_launcher(settings.ranks))
    settings.ranks.ranks = demo_ranks;
  settings.norms = parse_norms(words.norm);
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

void print_help(std::ostream& out) {
  Settings settings;
  Words words;
  out << "allnorm train [options]\n\nTrains a small convolutional network on real images, data-parallel over the "
         "ranks, "
         "once per\nnormalization and seed, and compares the test errors. docs/experiment.md describes the "
         "experiment.\n\n";
  print_options(out, describe_all(settings, words));
  out << "\nNormalizations for --norm:\n";
  print_layers(out);
  out << "\nTheir attributes: allnorm apply NAME --help. Attributes that are not given have the experiment's "
         "values.\n\n";
  print_exit_codes(out);
}

std::vector<Job> jobs_of(const Settings& settings) {
  std::vector<Job> jobs;
  for (const Scene& scene : settings.scenes)
    for (std::size_t norm = 0; norm < settings.norms.size(); ++norm)
      for (std::int64_t seed = 0; seed < settings.seeds; ++seed)
        jobs.push_back({norm, scene.batch, scene.split, static_cast<std::uint64_t>(seed)});
  return jobs;
}

std::int64_t calls_per_update(const Settings& settings, const NormChoice& choice) {
  return settings.accumulate > 0 ? settings.accumulate : choice.layers.options().minibatches;
}

double peak_rate(const Settings& settings, std::int64_t images_per_update) noexcept {
  return settings.lr ? *settings.lr : 0.3 * static_cast<double>(images_per_update) / 32;
}

}  // namespace allnorm::launch::train
