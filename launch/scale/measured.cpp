#include "launch/scale/measured.hpp"

#include <algorithm>
#include <set>
#include <string_view>
#include <tuple>

#include "launch/files/input_file.hpp"
#include "launch/files/json_lines.hpp"
#include "launch/files/json_number.hpp"
#include "launch/installed.hpp"
#include "launch/machine.hpp"
#include "launch/progress.hpp"
#include "launch/ranks.hpp"
#include "launch/scale/folder.hpp"

namespace allnorm::launch::scale {

namespace {

Code code_of(int exit) {
  for (const Code code :
       {Code::invalid_argument, Code::invalid_input, Code::mismatch, Code::timeout, Code::unsupported})
    if (exit_code(code) == exit) return code;
  return Code::device;
}

// What the program said, or else its launcher: the first line of the one or the other that says something.
std::string complaint(const std::string& text) {
  constexpr std::string_view ours = "allnorm: ";
  const std::size_t own = text.rfind("\n" + std::string(ours)) + 1;
  const bool found = text.substr(own).starts_with(ours);
  std::size_t at = found ? own + ours.size() : 0;
  while (at < text.size()) {
    const std::string line = text.substr(at, text.find('\n', at) - at);
    if (line.find_first_not_of("- \t\r=") != line.npos && !line.starts_with('#')) return line;
    at += line.size() + 1;
  }
  return "it said nothing";
}

// A row of bench with what it is in the sweep.
Json row_of(const Plan& plan, const Run& run, Json event, std::int64_t line) {
  event["transport"] = run.transport;  // of a lone rank, too
  event["scaling"] = plan.strong ? "strong" : "weak";
  if (!plan.model.empty()) event["batch_per_rank"] = run.batch;
  event["repeat"] = run.repeat;
  event["line"] = line;
  event["oversubscribed"] = run.ranks * plan.threads > static_cast<std::int64_t>(usable_cpus().size());
  const std::int64_t batch = plan.model.empty() ? std::stoll(event["shape"].get<std::string>().substr(1))  // "(N,...)"
                                                : samples_of(plan, run);
  event["effective_batch"] = effective_batch(parse_layer(event["layer"].get<std::string>()), run.ranks, batch);
  event["simulated"] = false;
  return event;
}

// What tells rows apart: the run, and the line of bench.
using Key = std::tuple<std::int64_t, std::int64_t, std::string, std::int64_t, std::int64_t>;
Key key_of(const Run& run, std::int64_t line) { return {run.repeat, run.batch, run.transport, run.ranks, line}; }
Key key_of(const Json& row) {
  return {whole(row.at("repeat")), row.contains("batch_per_rank") ? whole(row.at("batch_per_rank")) : 1,
          row.at("transport").get<std::string>(), whole(row.at("ranks")), whole(row.at("line"))};
}

}  // namespace

std::vector<Json> run_bench(Arguments words, const std::string& transport, std::int64_t ranks, Exchanges exchanges) {
  const Folder folder;
  const std::string json = folder.file("bench.jsonl");
  Arguments all;
  if (transport == "mpi") {
    all = {"mpirun", "-n", std::to_string(ranks)};
    // Other launchers do not ask for it.
    if (mpi_library().find("Open MPI") != std::string::npos && ranks > static_cast<std::int64_t>(usable_cpus().size()))
      all.push_back("--oversubscribe");
  }
  if (transport == "tcp")  // at a port that is free, on the loopback address
    all = {"torchrun",    "--standalone",     "--local-addr",        "127.0.0.1",
           "--no-python", "--nproc-per-node", std::to_string(ranks), "--"};
  all.insert(all.end(), {this_program(), "bench", "--json", json});
  all.insert(all.end(), words.begin(), words.end());
  if (transport == "tcp")
    all.insert(all.end(), {"--transport", "tcp"});
  else if (transport != "mpi")
    all.insert(all.end(), {"--transport", ranks > 1 ? "threads" : "self", "--ranks", std::to_string(ranks)});
  if (exchanges == Exchanges::by_messages) all.insert(all.begin(), {"env", "ALLNORM_SHARED_MEMORY=0"});
  constexpr double no_limit = 1e7;  // bench itself has deadlines for its ranks
  const Ended ended = run_program(all, no_limit);
  expect(ended.code == 0, code_of(ended.code), [&] {
    return "bench of " + std::to_string(ranks) + " ranks over " + transport + " has ended with code " +
           std::to_string(ended.code) + ": " + complaint(ended.text);
  });
  return read_json_lines(json);
}

void measure(const Plan& plan, SweepFile& file) {
  std::set<Key> there;
  for (const Json& row : file.events())
    if (is_result(row) && row.contains("repeat")) there.insert(key_of(row));
  const std::int64_t lines = lines_of(plan);
  std::vector<Run> missing = runs_of(plan);
  const auto all = static_cast<std::int64_t>(missing.size());
  std::erase_if(missing, [&](const Run& run) {
    for (std::int64_t line = 0; line < lines; ++line)
      if (there.count(key_of(run, line)) == 0) return false;
    return true;
  });
  Progress progress(progress_kind(plan.progress), all, all - static_cast<std::int64_t>(missing.size()), "runs", 10);
  for (const Run& run : missing) {
    progress.describe(run.transport + ", " + std::to_string(run.ranks) + (run.ranks == 1 ? " rank" : " ranks") +
                      ", repeat " + std::to_string(run.repeat + 1));
    std::vector<Json> rows;
    std::int64_t line = 0;
    for (Json& event : run_bench(bench_words(plan, run), run.transport, run.ranks)) {
      if (!is_result(event)) continue;
      if (there.count(key_of(run, line)) == 0) rows.push_back(row_of(plan, run, std::move(event), line));
      ++line;
    }
    file.add(rows);
    progress.tick();
    progress.say("done", false);
  }
}

}  // namespace allnorm::launch::scale
