#include "launch/scale/plan.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <set>
#include <string_view>

#include <boost/program_options/value_semantic.hpp>
#include <boost/program_options/variables_map.hpp>

#include "launch/bench/models.hpp"
#include "launch/bench/plan.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/json_lines.hpp"
#include "launch/files/json_number.hpp"
#include "launch/help.hpp"
#include "launch/installed.hpp"
#include "launch/launcher.hpp"
#include "launch/machine.hpp"
#include "launch/parts.hpp"
#include "launch/progress.hpp"
#include "launch/ranks.hpp"
#include "launch/scale/clusters.hpp"

namespace allnorm::launch::scale {

namespace po = boost::program_options;

namespace {

constexpr std::int64_t most_ranks = 1024, most_simulated = 65536, most_batch = 1'000'000;

// The words behind the options, as they were typed.
struct Words {
  std::string ranks{}, batches{}, groups{}, transport{};
  bool weak = false, strong = false;
};

po::options_description describe(Plan& plan, Words& words) {
  po::options_description options("Options");
  auto add = options.add_options();
  add("ranks-list", po::value(&words.ranks)->value_name("1,2,4"),
      "numbers of ranks; efficiency is that against the first (1, 2, 4... up to the CPUs; simulated: 8,64)");
  add("weak", po::bool_switch(&words.weak), "every rank has the samples of --shape or --batch-per-rank (the default)");
  add("strong", po::bool_switch(&words.strong),
      "all ranks together have them: of --shape, or of --batch-per-rank times the most ranks");
  add("transport", po::value(&words.transport)->value_name("NAME"),
      "threads, mpi (processes of mpirun) or tcp (of torchrun); threads and, where this build and machine have it, mpi "
      "unless given");
  add("layer", po::value(&plan.layers)->value_name("NAME[:attr=value...]"),
      "once for each layer (sync_batch_norm; simulated: those of --compute)");
  add("shape", po::value(&plan.shapes)->value_name("N,C,H,W"), "the input, once for each (8,64,56,56)");
  add("model", po::value(&plan.model)->value_name("NAME"), "in place of --shape: the layers of a model, as of bench");
  add("batch-per-rank", po::value(&words.batches)->value_name("1,2,4"),
      "with --model: samples of each rank (1; simulated: 1,2,4)");
  add("dtype", po::value(&plan.dtype)->value_name("TYPE"), "f64, f32, f16 or bf16 (f32)");
  add("layout", po::value(&plan.layout)->value_name("ORDER"), "channels_first or channels_last (channels_first)");
  add("iterations,n", po::value(&plan.iterations)->value_name("I"), "-n: calls of a run that are timed (20)");
  add("warm-up,w", po::value(&plan.warm_up)->value_name("I"), "-w: calls before them (5)");
  add("repeats", po::value(&plan.repeats)->value_name("R"), "runs of each point, whose spread is the interval (5)");
  add("threads", po::value(&plan.threads)->value_name("T"), "CPU threads per rank (1)");
  add("effective-batch", po::value(&plan.effective_batch)->value_name("E"),
      "say in the end what takes the least time with statistics over at least so many samples");
  add("cluster", po::value(&plan.clusters)->value_name("NAME"),
      "simulated: fat_tree, gpu_nodes, cloud or a file of parameters, once for each; with --model");
  add("groups", po::value(&words.groups)->value_name("8,32,world"),
      "simulated: ranks of a sync group (8,32,128,world)");
  add("compute", po::value(&plan.computing)->value_name("BENCH.jsonl"),
      "simulated: what computing takes, from bench --model --json, once for each file (measured here)");
  add("json", po::value(&plan.json)->value_name("F.jsonl"), "write every result as soon as it is there, one a line");
  add("resume", po::value(&plan.resume)->value_name("F.jsonl"),
      "go on with a sweep that was interrupted: what F has is not run again; other options are F's");
  add("progress", po::value(&plan.progress)->value_name("WHAT"), "auto, bar, lines or none (auto)");
  return options;
}

template <class T>
void in_range(T value, T least, T most, std::string_view option) {
  expect(value >= least && value <= most, Code::invalid_argument, [&] {
    return std::string(option) + " is " + std::to_string(value) + ", must be " + std::to_string(least) + " to " +
           std::to_string(most);
  });
}

// Whole numbers with commas, each once, in the order given.
std::vector<std::int64_t> numbers(std::string_view text, std::string_view option, std::int64_t most) {
  std::vector<std::int64_t> all;
  const auto refuse = [&](const std::string& must) {
    fail(Code::invalid_argument, std::string(option) + " is '" + std::string(text) + "', must be " + must);
  };
  for (std::string_view rest = text;;) {
    const std::string_view word = rest.substr(0, rest.find(','));
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc{} || end != word.data() + word.size() || value < 1 || value > most)
      refuse("whole numbers of 1 to " + std::to_string(most) + " with commas, as in 1,2,4");
    if (std::find(all.begin(), all.end(), value) != all.end()) refuse("different numbers");
    all.push_back(value);
    if (word.size() == rest.size()) return all;
    rest.remove_prefix(word.size() + 1);
  }
}

// Open MPI refuses root unless it is told otherwise.
bool mpirun_may_start() {
  return !mpi_library().empty() && !on_path("mpirun").empty() &&
         (::geteuid() != 0 || std::getenv("OMPI_ALLOW_RUN_AS_ROOT") != nullptr);
}

std::vector<std::string> transports_of(const std::string& word) {
  if (word.empty())
    return mpirun_may_start() ? std::vector<std::string>{"threads", "mpi"} : std::vector<std::string>{"threads"};
  expect(word == "threads" || word == "mpi" || word == "tcp", Code::invalid_argument,
         [&] { return "--transport is '" + word + "', must be threads, mpi or tcp"; });
  expect(
      word != "tcp" || !on_path("torchrun").empty(), Code::unsupported,
      "--transport is tcp, must be threads or mpi: there is no torchrun on PATH to start its processes; it comes with "
      "PyTorch");
  expect(word != "mpi" || !mpi_library().empty(), Code::unsupported,
         "--transport is mpi, must be threads: this build has no MPI; install libopenmpi-dev and configure again");
  expect(word != "mpi" || !on_path("mpirun").empty(), Code::unsupported,
         "--transport is mpi, must be threads: there is no mpirun on PATH; install openmpi-bin");
  return {word};
}

std::vector<std::int64_t> usual_ranks() {
  std::vector<std::int64_t> ranks{1};
  while (2 * ranks.back() <= static_cast<std::int64_t>(usable_cpus().size())) ranks.push_back(2 * ranks.back());
  return ranks;
}

// The shape of a rank, of one that all ranks share.
std::string part_of(const std::string& shape, std::int64_t ranks) {
  std::int64_t batch = 0;
  const auto end = std::from_chars(shape.data(), shape.data() + shape.size(), batch).ptr;
  expect(batch % ranks == 0, Code::invalid_argument, [&] {
    return "--shape is '" + shape +
           "' with --strong, must have a batch that all of --ranks-list divide: " + std::to_string(ranks) + " does not";
  });
  return std::to_string(batch / ranks) + std::string(end, shape.data() + shape.size());
}

// What the child processes would refuse.
void check_runs(const Plan& plan) {
  for (const Run& run : runs_of(plan)) {
    if (run.repeat == 0) bench::read_plan(bench_words(plan, run));
  }
}

void check_simulation(Plan& plan, const Words& words) {
  expect(!words.strong, Code::invalid_argument,
         "--strong is given with --cluster, must be without: ranks have their samples");
  expect(plan.shapes.empty(), Code::invalid_argument, "--shape is given with --cluster, must be --model");
  expect(!plan.model.empty(), Code::invalid_argument,
         "--model is missing, must be with --cluster: whose layers are simulated");
  plan.ranks = numbers(words.ranks.empty() ? "8,64" : words.ranks, "--ranks-list", most_simulated);
  std::string groups = words.groups.empty() ? "8,32,128,world" : words.groups;
  const bool with_world = groups == "world" || groups.ends_with(",world");
  if (with_world)
    groups.resize(groups.size() - std::min<std::size_t>(groups.size(), std::string_view(",world").size()));
  if (!groups.empty()) plan.groups = numbers(groups, "--groups", most_simulated);
  if (with_world) plan.groups.push_back(Sync::world);
}

// What the simulation reads and starts: files first.
void expect_parts(const Plan& plan) {
  for (const std::string& name : plan.clusters) read_cluster(name);
  for (const std::string& path : plan.computing) read_json_lines(path);
  expect(has_part("simgrid"), Code::unsupported,
         "--cluster needs SimGrid, which this build lacks: install libsimgrid-dev and configure again");
  simulator_program();
}

// The last one may be cut.
Json first_line(const std::string& path) {
  constexpr std::uint64_t most_bytes = 1 << 30;
  const auto bytes = read_file(path, most_bytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return Json::parse(text.substr(0, text.find('\n')), nullptr, false);
}

Plan parse(const Arguments& arguments) {
  Plan plan;
  Words words;
  parse_options(arguments, describe(plan, words));
  progress_kind(plan.progress);
  expect(!words.weak || !words.strong, Code::invalid_argument, "--weak is given with --strong, must be one of them");
  plan.strong = words.strong;
  if (plan.simulates())
    check_simulation(plan, words);
  else
    plan.ranks = words.ranks.empty() ? usual_ranks() : numbers(words.ranks, "--ranks-list", most_ranks);
  if (words.batches.empty()) words.batches = plan.simulates() ? "1,2,4" : "1";
  plan.batches = numbers(words.batches, "--batch-per-rank", most_batch);
  in_range<std::int64_t>(plan.repeats, 1, 1000, "--repeats");
  expect(plan.effective_batch >= 0, Code::invalid_argument,
         [&] { return "--effective-batch is " + std::to_string(plan.effective_batch) + ", must be at least 1"; });
  expect(plan.simulates() || (words.groups.empty() && plan.computing.empty()), Code::invalid_argument, [&] {
    return std::string(words.groups.empty() ? "--compute" : "--groups") + " is given, must be with --cluster";
  });
  expect(!plan.model.empty() || words.batches == "1", Code::invalid_argument,
         "--batch-per-rank is given, must be with --model: a shape has its samples");
  plan.transports = transports_of(words.transport);
  if (plan.layers.empty() && !plan.simulates()) plan.layers = {"sync_batch_norm"};
  if (plan.layers.empty() && plan.computing.empty())
    plan.layers = {"batch_norm", "cross_iteration_batch_norm:window=4", "cross_mini_batch_norm:minibatches=4"};
  check_runs(plan);
  if (plan.simulates()) expect_parts(plan);
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const bool apart = word == "--json" || word == "--resume" || word == "--progress";
    const bool joined = word.starts_with("--json=") || word.starts_with("--resume=") || word.starts_with("--progress=");
    if (!apart && !joined) plan.words.push_back(word);
    if (apart) ++i;
  }
  return plan;
}

}  // namespace

po::options_description describe_scale() {
  Plan plan;
  Words words;
  return describe(plan, words);  // for its text; nothing is parsed into them
}

Json settings_of(const Plan& plan) {
  Json settings{{"scaling", plan.strong ? "strong" : "weak"}, {"ranks_list", plan.ranks}, {"layers", plan.layers}};
  if (plan.model.empty()) {
    settings["shapes"] = plan.shapes;
  } else {
    settings["model"] = plan.model;
    settings["batch_per_rank"] = plan.batches;
  }
  settings["transports"] = plan.transports;
  settings["dtype"] = plan.dtype;
  settings["layout"] = plan.layout;
  settings["iterations"] = plan.iterations;
  settings["warm_up"] = plan.warm_up;
  settings["repeats"] = plan.repeats;
  settings["threads"] = plan.threads;
  if (!plan.simulates()) return settings;
  settings["clusters"] = plan.clusters;
  settings["groups"] = plan.groups;  // -1: world
  settings["compute"] = plan.computing;
  return settings;
}

Plan read_plan(const Arguments& arguments) {
  expect(!launcher(), Code::invalid_argument, [] {
    return "the launcher is " + text_of(*launcher()) +
           ", must be none: scale starts its ranks itself, on so many at a time";
  });
  Plan plan = parse(arguments);
  if (plan.resume.empty()) return plan;
  expect(plan.json.empty() || plan.json == plan.resume, Code::invalid_argument,
         "--json is given with --resume, must be one of them: results go to the file that is resumed");
  const Json config = first_line(plan.resume);
  const Json words = config.is_object() ? config.value("words", Json()) : Json();
  if (!words.is_array() || config.value("command", Json()) != "scale" ||
      !std::all_of(words.begin(), words.end(), [](const Json& word) { return word.is_string(); }))
    bad_file(plan.resume, "is no log of scale, must be one to be resumed");
  Plan made = parse(words.get<Arguments>());
  try {  // what was chosen by the machine as it was
    made.ranks.clear();
    for (const Json& ranks : config.at("ranks_list")) made.ranks.push_back(whole(ranks));
    made.transports = config.at("transports").get<std::vector<std::string>>();
  } catch (const Json::exception& error) {
    bad_file(plan.resume, "lacks what scale writes: " + printable(error.what()));
  }
  if (!plan.words.empty()) {  // given again: the same, or another sweep
    const Json is = settings_of(plan), was = settings_of(made);
    for (const auto& [name, value] : was.items())
      expect(is.value(name, Json()) == value, Code::invalid_argument, [&, &key = name, &must = value] {
        return "the sweep of " + plan.resume + " has " + key + " " + must.dump() + ", must not be resumed with " +
               is.value(key, Json()).dump();
      });
    if (plan.effective_batch > 0) made.effective_batch = plan.effective_batch;
  }
  made.json = plan.json;
  made.resume = plan.resume;
  made.progress = plan.progress;
  return made;
}

std::vector<Run> runs_of(const Plan& plan) {
  std::vector<Run> runs;
  for (std::int64_t repeat = 0; repeat < plan.repeats; ++repeat)
    for (const std::int64_t batch : plan.batches)
      for (const std::string& transport : plan.transports)
        for (const std::int64_t ranks : plan.ranks) runs.push_back({repeat, batch, transport, ranks});
  return runs;
}

std::int64_t samples_of(const Plan& plan, const Run& run) {
  if (!plan.strong) return run.batch;
  const std::int64_t all = run.batch * *std::max_element(plan.ranks.begin(), plan.ranks.end());
  expect(all % run.ranks == 0, Code::invalid_argument, [&] {
    return "--ranks-list has " + std::to_string(run.ranks) + " with --strong, must divide the " + std::to_string(all) +
           " samples of all ranks";
  });
  return all / run.ranks;
}

std::int64_t lines_of(const Plan& plan) {
  const bench::Plan one = bench::read_plan(bench_words(plan, runs_of(plan).front()));
  std::set<std::string> layers;
  for (const bench::Case& of : one.cases) layers.insert(of.text);
  return static_cast<std::int64_t>(one.cases.size() + (plan.model.empty() ? 0 : layers.size()));
}

Arguments bench_words(const Plan& plan, const Run& run) {
  Arguments words;
  const auto add = [&](const std::string& option, const std::string& value) {
    words.push_back(option);
    words.push_back(value);
  };
  for (const std::string& layer : plan.layers) add("--layer", layer);
  for (const std::string& shape : plan.shapes) add("--shape", plan.strong ? part_of(shape, run.ranks) : shape);
  if (!plan.model.empty()) {
    add("--model", plan.model);
    add("--batch-per-rank", std::to_string(samples_of(plan, run)));
  }
  if (plan.model.empty() && plan.shapes.empty() && plan.strong) add("--shape", part_of("8,64,56,56", run.ranks));
  add("--dtype", plan.dtype);
  add("--layout", plan.layout);
  add("--iterations", std::to_string(plan.iterations));
  add("--warm-up", std::to_string(plan.warm_up));
  add("--threads", std::to_string(plan.threads));
  if (run.repeat > 0) add("--check", "0");  // once is enough
  return words;
}

double effective_batch(const Layer& layer, std::int64_t ranks, std::int64_t batch) {
  const auto& options = layer.options;
  const std::int64_t group = options.sync.ranks == Sync::none    ? 1
                             : options.sync.ranks == Sync::world ? ranks
                                                                 : std::min(options.sync.ranks, ranks);
  const auto parts = static_cast<double>(options.window) * static_cast<double>(options.minibatches + 1) / 2;
  return static_cast<double>(group * batch) * parts;
}

}  // namespace allnorm::launch::scale
