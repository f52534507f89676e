// `allnorm apply LAYER`: one layer forward, and backward where a gradient is given, on .npy files, on one or many
// ranks.
#include "launch/apply.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iostream>
#include <optional>

#include "allnorm/operation.hpp"
#include "launch/apply_outputs.hpp"
#include "launch/apply_tensors.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/leftovers.hpp"
#include "launch/help.hpp"
#include "launch/nonfinite.hpp"
#include "launch/watch/rank_watch.hpp"

namespace allnorm::launch {

namespace {

// A loaded state first, then the tensors that the user gives by name.
void set_state(const ApplyPlan& plan, Rank& rank, const StepTensors& tensors, Operation& operation) {
  if (!plan.load_state.empty()) {
    const std::string path = expand(plan.load_state, rank.rank, 0);
    const State state = read_state(path, rank.size, plan.drop_window);
    try {
      operation.load(state, rank.queue, {plan.drop_window});
    } catch (const Error& error) {
      bad_file(path, error.message(), error.where());
    }
  }
  operation.set_state(tensors.state(), rank.queue);
}

void check_state(const ApplyPlan& plan, const Rank& rank, const State& state) {
  const bool per_rank =
      std::any_of(state.entries.begin(), state.entries.end(), [](const auto& e) { return e.per_rank; });
  expect(plan.save_state.empty() || rank.size == 1 || !per_rank || mentions(plan.save_state, "{rank}"),
         Code::invalid_argument, [&] {
           return "--save-state is " + plan.save_state +
                  ", must contain {rank}: the window of every rank holds its own derivatives";
         });
}

// What an earlier run that was killed left where this one reads its state and writes.
void recover_folders(const ApplyPlan& plan, const Rank& rank) {
  constexpr double patience = 10;  // seconds, where another run is just giving its files their names
  recover_once(plan.out, patience);
  for (const std::string& file : {plan.load_state, plan.save_state})
    if (!file.empty()) recover_once(std::filesystem::path(expand(file, rank.rank, 0)).parent_path().string(), patience);
}

// Finds before the work what could not be written after it.
void expect_writable(const ApplyPlan& plan, const Rank& rank) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path out = fs::absolute(plan.out, error);
  if (error) bad_file(plan.out, "cannot be made: the current folder: " + system_reason(error.value()));
  fs::path there = out;  // or the nearest folder above that exists
  while (!fs::exists(there, error) && there.has_relative_path()) there = there.parent_path();
  if (!fs::is_directory(there, error)) bad_file(plan.out, "cannot be made: something else has that name");
  if (::access(there.c_str(), W_OK | X_OK) != 0) bad_file(plan.out, "cannot be written: " + system_reason(errno));
  if (plan.save_state.empty()) return;
  const std::string state = expand(plan.save_state, rank.rank, 0);
  const fs::path folder = fs::weakly_canonical(fs::absolute(state, error).parent_path(), error);
  const auto made = fs::weakly_canonical(out, error).lexically_relative(folder).string();
  const bool with_out = !made.empty() && !made.starts_with("..");  // made with --out, if it is missing
  if (fs::is_directory(state, error)) bad_file(state, "is a directory, must be a file or not exist");
  if (::access(folder.c_str(), W_OK | X_OK) != 0 && !(errno == ENOENT && with_out))
    bad_file(state, "cannot be written: " + system_reason(errno));
}

// The ranks that hold parts of the same sets as this one. Of a layer whose groups of channels are cut over ranks these
// are parts of one group each; all ranks have the same attributes all the same.
std::shared_ptr<Communicator> group_of(const ApplyPlan& plan, const StepTensors& tensors, Rank& rank) {
  auto group = sync_group(rank.world, plan.layer.options.sync, rank.queue);
  if (!tensors.group() || group->size() == 1) return group;
  Header header(plan.layer.row->name, Direction::agreement, 0);
  write_layer(plan.layer, header);
  group->exchange(Message{header, {}, 0, {}}, rank.queue);
  return group->split(*tensors.group(), rank.queue);
}

void apply_on(const ApplyPlan& plan, Rank& rank) {
  check_plan(plan, rank.size);
  expect_writable(plan, rank);
  recover_folders(plan, rank);
  StepTensors tensors(plan, rank.rank, rank.size);
  tensors.read(0);
  const auto operation = make_operation(tensors.layer(), tensors.channels(), group_of(plan, tensors, rank), rank.queue);
  set_state(plan, rank, tensors, *operation);

  std::vector<NamedArray> results;
  NonFiniteTeller teller;
  bool finite = plan.layer.row->attribute("nonfinite") == nullptr;  // of a layer that does not look itself
  for (std::int64_t step = 0; step < plan.steps; ++step) {
    if (step > 0) tensors.read(step);
    if (finite) finite = is_finite(plan.ranks, plan.layer, tensors.inputs()["input"], step, rank);
    const WatchStep watched(rank.watch);
    for (NamedArray& made : run_step(plan, tensors, *operation, rank, step)) results.push_back(std::move(made));
    teller.tell(0, operation->nonfinite(), plan.layer, operation->group());
  }
  SavedState saved;
  if (!plan.save_state.empty()) {
    saved.state = operation->save(rank.queue);
    check_state(plan, rank, saved.state);
    try {  // what is written can be read: the layer is not used any more
      operation->load(saved.state, rank.queue);
    } catch (const Error& error) {
      saved.wrong = error.message();
    }
  }
  write_results(plan, rank, results, saved);
}

// Of the catalogue, with the statistics of this rank alone or of all ranks.
const Row& first_row(bool synced) {
  const auto rows = catalogue();
  return *std::find_if(rows.begin(), rows.end(),
                       [synced](const Row& row) { return (Layer(row).options.sync.ranks == Sync::world) == synced; });
}

void help_apply(std::ostream& out) {
  RankOptions ranks;
  out << "allnorm apply LAYER [options]\nallnorm apply LAYER --help\n\n";
  print_text(out, "One layer forward, and backward where --grad-output is given, on .npy files.");
  out << "\nLayers:\n";
  print_layers(out);
  out << "\nOptions:\n";
  print_options(out, describe_apply());
  out << "\nRanks:\n";
  print_options(out, describe(ranks));
  out << "\nFiles:\n";
  print_lines(out,
              {{"{rank}, {step}",
                "in a FILE: replaced by the rank and the step, both from 0; without them all read the same file. "
                "Running statistics are read at step 0 only."},
               {"results",
                "NAME.npy; with several ranks NAME.r<rank>.npy; with several steps NAME[.r<rank>].s<step>.npy. All "
                "of them appear together, or none where a rank fails."},
               {"types",
                "input, grad_output, residual, conv_input, and gamma and beta of positions or values, are converted to "
                "--dtype, output and their gradients are "
                "written as it (bf16 as f32); parameters are used in f32 (f64 with f64); statistics and gradients of "
                "parameters are written as f64."}});
  const auto example = [](std::string_view launcher, bool synced, std::string_view words) {
    return std::string(launcher) + "allnorm apply " + std::string(first_row(synced).name) + std::string(words);
  };
  print_examples(out, {example("", false, " --input x.npy --grad-output dy.npy --set eps=1e-3 --out results"),
                       example("", true, " --input x.npy --split batch --ranks 4 --out results"),
                       example("mpirun -n 4 ", true, " --input x.{rank}.npy --out results")});
  out << "\n";
  print_exit_codes(out);
}

int run_apply(const Arguments& words) {
  if (asks_for_help(words)) {
    print_layer_help(std::cout, *Layer(words.front()).row);
    return exit_success;
  }
  const ApplyPlan plan = read_apply_plan(words);
  return run_ranks(plan.ranks, [&plan](Rank& rank) { apply_on(plan, rank); });
}

}  // namespace

const Command apply_command{"apply",
                            "run one layer forward and backward on .npy files, on one or many ranks",
                            run_apply,
                            help_apply,
                            [] {
                              static RankOptions ranks;  // for its text
                              return describe_apply().add(describe(ranks));
                            },
                            [] {
                              std::vector<std::string> layers;
                              for (const Row& row : catalogue()) layers.emplace_back(row.name);
                              return layers;
                            }};

}  // namespace allnorm::launch
