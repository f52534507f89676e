// `allnorm bench`: times layers and their exchange.
#include <algorithm>
#include <cstdint>
#include <iomanip>
#include <iostream>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "launch/bench/models.hpp"
#include "launch/bench/results.hpp"
#include "launch/files/atomic_file.hpp"
#include "launch/files/json_lines.hpp"
#include "launch/help.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {

namespace {

using namespace bench;

// What rank 0 prints and writes.
class Output {
 public:
  Output(const Plan& plan, Rank& rank) : plan_(plan), rank_(rank) {
    if (!plan.json.empty()) json_.emplace(plan.json);
    if (!plan.csv.empty()) csv_.emplace(plan.csv);
  }

  void begin(const std::vector<Seat>& seats) {
    events_.push_back(config_event(plan_, seats, rank_));
    std::cout << header_text(events_.front()) << titles_text(plan_, rank_.size) << std::flush;
  }
  void add(const Measurement& of) { add(measurement_event(plan_, of, rank_)); }
  void add_sum(const std::string& layer, const std::string& mode) { add(sum_event(plan_, layer, mode, events_)); }

  /// True where nothing is wrong, and nothing slower than in the base.
  bool end(const std::vector<Json>& base) {
    double wrong = 0;
    struct Rates {
      double forward = 0, backward = 0, count = 0;
    };
    std::map<std::string, Rates> modes;
    for (const Json& event : events_) {
      if (!is_event(event, "measurement") || event.contains("failure")) continue;
      Rates& of = modes[event.value("mode", std::string())];
      of.forward += event["forward_gb_s"].get<double>();
      of.backward += event["backward_gb_s"].get<double>();
      ++of.count;
      wrong += event.value("wrong", 0.0);
    }
    std::ostringstream average;  // with the digits of the table
    average << std::fixed << std::setprecision(1);
    for (const auto& [mode, of] : modes)
      average << (mode.empty() ? "" : mode + " ") << "forward " << of.forward / of.count << " GB/s, backward "
              << of.backward / of.count << " GB/s; ";
    std::cout << "# average: " << average.str() << "wrong: " << static_cast<std::int64_t>(wrong) << "\n";
    std::string lines;
    for (const Json& event : events_) lines += event.dump() + "\n";
    if (json_) json_->write(lines);
    if (json_) json_->commit();
    if (csv_) csv_->write(csv_text(events_));
    if (csv_) csv_->commit();
    if (wrong > 0)
      print_line("values are wrong: " + std::to_string(static_cast<std::int64_t>(wrong)) + ", must be none");
    return wrong == 0 && (base.empty() || is_as_fast(base));
  }

 private:
  void add(Json event) {
    std::cout << line_text(plan_, event) << std::flush;
    events_.push_back(std::move(event));
  }
  bool is_as_fast(const std::vector<Json>& base) const {
    const Comparison found = compare(base, events_, plan_.tolerance, plan_.compare);
    for (const std::string& warning : found.warnings) warn(warning);
    expect(found.common > 0, Code::invalid_argument,
           [&] { return "--compare is " + plan_.compare + ", must have a line in common with this run"; });
    std::cout << "# compared with " << plan_.compare << ": " << found.common
              << (found.common == 1 ? " line, " : " lines, ") << found.slower.size() << " slower by more than "
              << 100 * plan_.tolerance << " %\n";
    for (const std::string& line : found.slower) print_line(line);
    return found.slower.empty();
  }

  const Plan& plan_;
  Rank& rank_;
  std::optional<AtomicFile> json_{}, csv_{};
  std::vector<Json> events_{};
};

// True on all ranks where it is on rank 0.
bool agreed(bool holds, Rank& rank) {
  const Message all = rank.world->exchange(
      {Header("bench", Direction::agreement, 3), {}, holds ? 0u : std::uint64_t{flag_stop}, {}}, rank.queue);
  return (all.flags & flag_stop) == 0;
}

// True where nothing is wrong, or slower than in the base; the same on all ranks.
bool bench_on(const Plan& plan, const std::vector<Json>& base, Rank& rank) {
  std::optional<Output> output;
  if (rank.rank == 0) output.emplace(plan, rank);
  const auto seats = seats_of(rank);
  if (output) output->begin(seats);
  for (std::size_t i = 0; i < plan.cases.size(); ++i) {
    const Case& of = plan.cases[i];
    const std::vector<Measurement> made = measure(plan, of, rank);
    if (!output) continue;
    const bool last = i + 1 == plan.cases.size() || plan.cases[i + 1].text != of.text;
    for (const Measurement& each : made) output->add(each);
    for (const Measurement& each : made)
      if (last && !plan.model.empty()) output->add_sum(of.text, each.mode);
  }
  return agreed(!output || output->end(base), rank);
}

void help_bench(std::ostream& out) {
  RankOptions ranks;
  std::string known;
  for (const std::string& name : known_models()) known += (known.empty() ? "" : ", ") + name;
  out << "allnorm bench [options]\n\nTimes layers, forward and backward, and the exchange in them, on one or many\n"
         "ranks, and checks what they compute.\n\nOptions:\n";
  print_options(out, describe_bench());
  out << "\nModels: " << known << "\n\nRanks:\n";
  print_options(out, describe(ranks));
  out << "\nOn a GPU (--device cuda) each shape has two lines, and other columns mean:\n";
  print_lines(
      out,
      {{"mode", "eager: single calls; graph: calls replayed from a CUDA graph of at least 10, or why they cannot be"},
       {"forward, backward", "time between events on the stream, the host's part in it where that takes longer"},
       {"p99", "in mode graph of a replay's time over its calls"},
       {"fwd, bwd %triad", "of a copy of the input on the GPU, replayed from a graph, which is 2 transfers"},
       {"exchange",
        "records as long as the layer's, in the GPU's memory; the host's part in it where a transport has one"},
       {"exposed, to local", "of calls of the same mode"},
       {"error, wrong", "in mode graph of a first call that was replayed"}});
  out << "\nExamples:\n"
         "  allnorm bench --layer all --shape 8,64,56,56 --json base.jsonl\n"
         "  allnorm bench --layer all --shape 8,64,56,56 --compare base.jsonl\n"
         "  mpirun -n 2 allnorm bench --layer sync_batch_norm --model resnet50\n"
         "  allnorm bench --device cuda --layer all --dtype bf16 --json gpu.jsonl\n\n";
  print_exit_codes(out);
}

int run_bench(const Arguments& words) {
  const Plan plan = read_plan(words);
  const std::vector<Json> base = plan.compare.empty() ? std::vector<Json>{} : read_json_lines(plan.compare);
  bool good = true;  // every rank of this process says the same
  std::mutex mutex;
  const int code = run_ranks(plan.ranks, [&](Rank& rank) {
    const bool own = bench_on(plan, base, rank);
    const std::lock_guard lock(mutex);
    good = own;
  });
  return code == exit_success && !good ? int{exit_failure} : code;
}

}  // namespace

const Command bench_command{"bench", "time layers and their exchange: a table, JSON lines, CSV", run_bench, help_bench,
                            [] {
                              RankOptions ranks;
                              return describe_bench().add(describe(ranks));
                            }};

}  // namespace allnorm::launch
