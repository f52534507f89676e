// `allnorm info`: what this build and this machine can do, and what they cannot and why.
#include <unistd.h>

#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "allnorm/device.hpp"
#include "kernels/ops.hpp"
#include "launch/command.hpp"
#include "launch/help.hpp"
#include "launch/machine.hpp"
#include "launch/parts.hpp"
#include "launch/ranks.hpp"

#if ALLNORM_HAVE_NCCL
#include "src/transport/nccl_version.hpp"
#endif

namespace allnorm::launch {

namespace {

namespace po = boost::program_options;

struct Available {
  std::string name, detail;
  bool in;
};

std::vector<Available> devices() {
  const Queue queue = Queue::cpu();
  const std::vector<int> cpus = usable_cpus();
  return {{"cpu",
           std::string(queue.ops().name) + "; this process may run on " + std::to_string(cpus.size()) + " of " +
               std::to_string(::sysconf(_SC_NPROCESSORS_ONLN)) + " CPUs (" + ranges(cpus) + ")",
           true},
          {"cuda", cuda_summary(), cuda_devices() > 0}};
}

Available nccl() {
#if ALLNORM_HAVE_NCCL
  const std::string version = "NCCL " + nccl_version();
  if (cuda_devices() == 0) return {"nccl", version + ", but " + cuda_summary(), false};
  return {"nccl", "ranks with a GPU each (--device cuda --transport nccl), " + version, true};
#else
  return {"nccl", "this build has no NCCL", false};
#endif
}

std::vector<Available> transports() {
  return {{"self", "one rank", true},
          {"threads", "ranks as threads of one process (--ranks K)", true},
          {"mpi",
           has_part("mpi") ? "ranks as processes (mpirun -n K allnorm ...), " + mpi_library() : "this build has no MPI",
           has_part("mpi")},
          nccl(),
          {"tcp", "ranks as processes without MPI (torchrun --no-python --nproc-per-node K allnorm ...)", true}};
}

void print_json() {
  nlohmann::ordered_json json;
  json["version"] = build::version;
  json["commit"] = build::commit;
  json["compiler"] = build::compiler;
  json["build_type"] = build::type;
  const auto list = [&json](const char* key, const std::vector<Available>& all) {
    for (const Available& one : all)
      json[key].push_back({{"name", one.name}, {"available", one.in}, {"detail", one.detail}});
  };
  list("devices", devices());
  json["cpus"] = usable_cpus();
  list("transports", transports());
  for (const build::Part& part : build::parts)
    json["parts"].push_back({{"name", part.name}, {"available", part.in}, {"detail", explain(part)}});
  for (const Row& row : catalogue()) json["layers"].push_back(row.name);
  std::cout << json.dump(2) << "\n";
}

void print_info() {
  std::cout << "allnorm " << build::version << " (commit " << build::commit << ")\n"
            << "  compiler  " << build::compiler << "\n  build     " << build::type << "\n";
  const auto list = [](const char* title, const std::vector<Available>& all) {
    std::cout << "\n" << title << ":\n";
    std::vector<HelpLine> lines;
    for (const Available& one : all) lines.push_back({one.name + (one.in ? "" : "  (not available)"), one.detail});
    print_lines(std::cout, lines);
  };
  list("Devices", devices());
  list("Transports", transports());
  std::vector<Available> parts;
  for (const build::Part& part : build::parts) parts.push_back({std::string(part.name), explain(part), part.in});
  list("Optional parts", parts);
  std::cout << "\nLayers:\n";
  print_layers(std::cout);
}

po::options_description describe_info() {
  po::options_description description;
  description.add_options()("json", "print one JSON object instead of text");
  return description;
}

void help_info(std::ostream& out) {
  out << "allnorm info [--json]\n\n";
  print_text(out, "Version, build, devices, transports and optional parts: what is there, what is not, and why.");
  out << "\nOptions:\n";
  print_options(out, describe_info());
  print_examples(out, {"allnorm info", "allnorm info --json"});
}

int run_info(const Arguments& words) {
  const auto values = parse_options(words, describe_info());
  if (values.count("json") > 0)
    print_json();
  else
    print_info();
  return exit_success;
}

}  // namespace

const Command info_command{"info", "show version, build, devices, transports, and what is missing and why", run_info,
                           help_info, describe_info};

}  // namespace allnorm::launch
