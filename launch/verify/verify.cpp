// `allnorm verify`: every layer on every device and transport that is here, against the float64 reference.
#include <algorithm>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include <boost/program_options/value_semantic.hpp>

#include "build_config.hpp"
#include "launch/command.hpp"
#include "launch/files/atomic_file.hpp"
#include "launch/help.hpp"
#include "launch/launcher.hpp"
#include "launch/progress.hpp"
#include "launch/verify/report.hpp"
#include "launch/verify/sweep.hpp"

namespace allnorm::launch::verify {

namespace {

namespace po = boost::program_options;

constexpr int usual_ranks = 3;  // as threads: two with uneven parts, and one without any

struct Words {
  std::string layers{}, json{};
};
po::options_description describe(Words& words) {
  po::options_description options("Options");
  options.add_options()("layer", po::value(&words.layers)->value_name("LIST"),
                        "layers, separated by commas (all of the catalogue)")(
      "json", po::value(&words.json)->value_name("FILE"), "write the results to FILE as one JSON object too");
  return options;
}

std::vector<const Row*> rows_of(const std::string& list) {
  std::vector<const Row*> rows;
  for (std::size_t from = 0; from < list.size();) {
    const auto to = std::min(list.find(',', from), list.size());
    const Row* row = Layer(list.substr(from, to - from)).row;
    expect(std::find(rows.begin(), rows.end(), row) == rows.end(), Code::invalid_argument,
           [&] { return "layer " + std::string(row->name) + " is given twice, must be given once"; });
    rows.push_back(row);
    from = to + 1;
  }
  for (const Row& row : catalogue())
    if (list.empty()) rows.push_back(&row);
  return rows;
}

struct Plan {
  std::vector<RankOptions> sweeps{};
  std::vector<NotRun> not_run{};
};

// What there is of a transport on a device; empty where a sweep can be made.
std::string lacks(const std::string& transport, const std::string& device) {
  if (transport == "mpi")
    return ALLNORM_HAVE_MPI ? "there is no launcher: mpirun -n 3 allnorm verify" : "this build has no MPI";
  if (transport == "tcp") return "there is no launcher: torchrun --no-python --nproc-per-node 3 allnorm verify";
  if (transport != "nccl") return {};
  if (!ALLNORM_HAVE_NCCL) return "this build has no NCCL";
  if (device != "cuda") return "its ranks have a GPU each";
  const int gpus = cuda_devices();
  return gpus >= 2 ? "" : "it takes 2 GPUs, there is " + std::to_string(gpus);
}

// Under a launcher its ranks make one sweep, which is the device's and transport's that the options say.
Plan plan_of(const RankOptions& given, bool device_given) {
  Plan plan;
  std::vector<std::string> devices{given.device};
  if (!device_given && cuda_devices() == 0)
    plan.not_run.push_back({"cuda", cuda_summary()});
  else if (!device_given && under_launcher(given))
    plan.not_run.push_back({"cuda", "it takes a run of its own under a launcher: --device cuda"});
  else if (!device_given)
    devices.emplace_back("cuda");
  if (under_launcher(given)) {
    plan.sweeps.push_back(given);
    if (!given.transport.empty()) return plan;
    plan.not_run.push_back({"self, threads", "they are of a run without a launcher"});
    if (launcher()->speaks_mpi)
      plan.not_run.push_back({"tcp", "it takes a run of its own: torchrun, or --transport tcp with MASTER_ADDR"});
    else
      plan.not_run.push_back(
          {"mpi", ALLNORM_HAVE_MPI ? "it takes a run of its own, under mpirun or srun" : "this build has no MPI"});
    plan.not_run.push_back({"nccl", ALLNORM_HAVE_NCCL ? "it takes a run of its own: --device cuda --transport nccl"
                                                      : "this build has no NCCL"});
    return plan;
  }
  for (const char* transport : {"self", "threads", "mpi", "nccl", "tcp"}) {
    if (!given.transport.empty() && given.transport != transport) continue;
    const std::string why = given.transport.empty() ? lacks(transport, devices.back()) : "";
    if (!why.empty()) plan.not_run.push_back({transport, why});
    for (const std::string& device : devices) {
      if (!why.empty() || (transport == std::string("nccl") && device == "cpu" && devices.size() > 1)) continue;
      RankOptions& sweep = plan.sweeps.emplace_back(given);
      sweep.device = device;
      sweep.transport = transport;
      if (sweep.transport == "threads" && given.ranks == 0) sweep.ranks = usual_ranks;
      if (sweep.transport == "nccl" && given.ranks == 0) sweep.ranks = std::min(usual_ranks, cuda_devices());
      if (sweep.transport == "self" && given.transport.empty()) sweep.ranks = 0;
    }
  }
  return plan;
}

void help(std::ostream& out) {
  Words words;
  RankOptions ranks;
  out << "allnorm verify [options]\n\n";
  print_text(
      out,
      "Checks this build on this machine: every layer of the catalogue x device x transport x dtype x layout, "
      "forward and backward, with all gradients, statistics and state, against the float64 reference. Errors are "
      "in units of what rounding may do. Without a launcher: a lone rank, and --ranks (3) threads with uneven "
      "parts, one of them with none; under mpirun and torchrun the launcher's ranks. What cannot be run here is listed "
      "with "
      "the reason.");
  out << "\nOptions:\n";
  print_options(out, describe(words));
  out << "\nRanks (without --device and --transport: all that are there):\n";
  print_options(out, launch::describe(ranks));
  print_examples(
      out, {"allnorm verify", "allnorm verify --transport self --json verify.json", "mpirun -n 3 allnorm verify"});
  out << "\nExit code 0: all hold; 1: some do not.\n";
  print_exit_codes(out);
}

po::options_description options() {
  static Words words;  // for their text
  static RankOptions ranks;
  return describe(words).add(launch::describe(ranks));
}

int run(const Arguments& arguments) {
  Words words;
  RankOptions given;
  po::options_description options;
  options.add(describe(words)).add(launch::describe(given));
  const auto values = parse_options(arguments, options);
  expect(given.nonfinite.empty(), Code::invalid_argument, "--nonfinite is given, must not be: all values are finite");
  const std::vector<const Row*> rows = rows_of(words.layers);
  launch::check(given);
  const Plan plan = plan_of(given, values.count("device") > 0);

  const auto from = launcher();
  const bool first = !from || from->rank == 0 || !under_launcher(given);
  Report report(rows, plan.not_run);
  std::optional<AtomicFile> json;  // what cannot be written is found before the work
  if (first && !words.json.empty()) json.emplace(words.json);
  const auto total = runs_of(rows) * static_cast<std::int64_t>(plan.sweeps.size());
  constexpr double seconds_apart = 10;
  Progress progress(first ? progress_kind("auto") : ProgressKind::none, total, 0, "runs", seconds_apart);
  for (const RankOptions& sweep_options : plan.sweeps) {
    const int code = run_ranks(sweep_options, [&](Rank& rank) {
      const bool tells = rank.rank == 0;
      const auto outcomes = sweep(rows, rank, [&](const Outcome& so_far) {
        if (!tells) return;
        progress.describe(std::string(so_far.row->name) + ", " + sweep_options.device + ", " +
                          std::string(rank.world->transport()));
        progress.tick();
        progress.say(so_far.failed == 0 ? "holds so far" : std::to_string(so_far.failed) + " runs fail so far", false);
      });
      if (tells || !rank.emulated) report.add(outcomes);
    });
    if (code != exit_success) return code;
  }
  progress.clear();
  if (first) report.print(std::cout);
  if (json) {
    json->write(report.json());
    json->commit();
  }
  return report.holds() ? exit_success : exit_failure;
}

}  // namespace

}  // namespace allnorm::launch::verify

namespace allnorm::launch {

const Command verify_command{"verify", "check every layer of this build on this machine against the float64 reference",
                             verify::run, verify::help, verify::options};

}  // namespace allnorm::launch
