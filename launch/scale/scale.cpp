// `allnorm scale`: bench over numbers of ranks.
#include <iostream>

#include "launch/bench/models.hpp"
#include "launch/bench/results.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/json_lines.hpp"
#include "launch/help.hpp"
#include "launch/ranks.hpp"
#include "launch/scale/clusters.hpp"
#include "launch/scale/measured.hpp"
#include "launch/scale/results.hpp"
#include "launch/scale/simulated.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {

namespace {

using namespace scale;

void help_scale(std::ostream& out) {
  out << "allnorm scale [options]\n\n";
  print_text(
      out,
      "Times layers on several numbers of ranks of this machine, with the processes of allnorm bench: speed-up, "
      "efficiency with an interval at 95 %, and the exchange beside latency + bytes / bandwidth. With --cluster the "
      "exchange is simulated on machines that are not here, beside computing times that were measured.");
  out << "\nOptions:\n";
  print_options(out, describe_scale());
  print_examples(out, {"allnorm scale --ranks-list 1,2 --shape 8,64,56,56 --json s.jsonl",
                       "allnorm scale --strong --model resnet50 --batch-per-rank 2", "allnorm scale --resume s.jsonl"});
  out << "\n";
  print_exit_codes(out);
}

// A row says what it is of; where it was measured is said once, in the config.
void expect_same_machine(const Json& was, const Json& is, const std::string& path) {
  for (const char* name : {"commit", "cpu", "cores", "vectors"})
    if (was.value(name, Json()) != is.value(name, Json()))
      warn(path + " is of another machine or build: " + name + " was " + was.value(name, Json()).dump() + ", is " +
           is.value(name, Json()).dump());
}

void run(const Plan& plan) {
  Json config = bench::machine_event("scale");
  config["words"] = plan.words;
  config.update(settings_of(plan));
  SweepFile file(plan, config);
  if (!plan.resume.empty()) expect_same_machine(file.config(), config, plan.resume);
  std::cout << header_text(file.config()) << std::flush;
  if (!plan.simulates()) measure(plan, file);
  std::vector<Json> made = plan.simulates() ? simulate(plan, file) : scaling_of(plan, file.events());
  if (plan.simulates()) std::cout << simulated_text(file.events(), made);
  for (Json& answer : answer_of(plan, plan.simulates() ? file.events() : made)) made.push_back(std::move(answer));
  file.add(made);
  std::cout << scaling_text(plan, made);
}

// Rows of a file that is resumed are looked at where they are used.
int run_scale(const Arguments& words) {
  const Plan plan = read_plan(words);
  try {
    run(plan);
  } catch (const Json::exception& error) {
    if (plan.resume.empty()) throw;
    bad_file(plan.resume, "lacks what scale writes: " + printable(error.what()));
  }
  return exit_success;
}

}  // namespace

const Command scale_command{"scale", "time layers over numbers of ranks, measured or simulated", run_scale, help_scale,
                            describe_scale};

}  // namespace allnorm::launch
