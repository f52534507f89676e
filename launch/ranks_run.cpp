#include "launch/ranks_run.hpp"

#include <algorithm>
#include <new>
#include <thread>
#include <utility>

#include "launch/machine.hpp"
#include "launch/ranks_nccl.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {

Failure failure_of(const std::exception& error) {
  if (const auto* own = dynamic_cast<const Error*>(&error))
    return {exit_code(own->code()), own->code(), own->message()};
  if (dynamic_cast<const std::bad_alloc*>(&error)) return {exit_failure, Code::device, "there is not enough memory"};
  return {exit_failure, Code::device, error.what()};
}

int severity(const Failure& failure) {
  if (failure.kind == Code::aborted) return 3;
  if (failure.code == exit_timeout) return 2;
  return failure.code == exit_mismatch ? 1 : 0;
}

bool names_ranks(const Failure& failure) { return failure.message.starts_with("rank"); }

std::optional<Failure> run_one(Rank& rank, const RankBody& body) {
  try {
    body(rank);
    if (rank.watch != nullptr) rank.watch->finished();
    return std::nullopt;
  } catch (const std::exception& error) {
    Failure failure = failure_of(error);
    if (rank.watch != nullptr) rank.watch->failed(failure);
    rank.world->abort(Error(failure.kind, failure.message));
    return failure;
  }
}

Queue queue_of(const RankOptions& options, int number) {
  if (options.device == "cuda") return Queue::cuda(number % std::max(cuda_devices(), 1));
  // More threads than CPUs would wait for each other; the bits are the same with any number.
  return Queue::cpu(std::clamp(static_cast<int>(usable_cpus().size()), 1, options.threads));
}

Rank watched_rank(int rank, int size, std::shared_ptr<Communicator> world, Queue queue, bool emulated,
                  RankWatch* watch) {
  if (watch != nullptr) world = watch->over(std::move(world));
  return {rank, size, std::move(world), std::move(queue), emulated, watch};
}

Patience patience_of(const RankOptions& options, Watching& watching) {
  Patience patience;
  patience.timeout = options.timeout;
  patience.first_timeout = options.first_timeout;
  patience.warn = [](const LateReport& late) {
    if (late.speaks) print_line_at_once("warning: " + late.line);
  };
  patience.report = [&watching](const LateReport& late) { watching.late(late); };
  return patience;
}

std::shared_ptr<Communicator> world_over(const RankOptions& options, std::shared_ptr<Communicator> bootstrap,
                                         Queue& queue, Watching& watching) {
  return options.transport == "nccl" ? nccl_ranks(bootstrap, queue, patience_of(options, watching)) : bootstrap;
}

namespace {

std::chrono::milliseconds after_those_before(int rank, std::chrono::milliseconds base) {
  return rank > 0 ? base + std::chrono::milliseconds(100 * std::min(rank, 10)) : std::chrono::milliseconds(0);
}

}  // namespace

void give_way(int rank, std::chrono::milliseconds base) {
  if (rank > 0) std::this_thread::sleep_for(after_those_before(rank, base));
}

std::chrono::milliseconds time_to_give_way(const Failure& failure, int rank, bool keeps_report) {
  const bool aborted = failure.kind == Code::aborted;
  const int base = keeps_report ? 2300 : aborted ? 1500 : severity(failure) > 0 ? 600 : 150;
  return after_those_before(aborted || keeps_report ? rank + 1 : rank, std::chrono::milliseconds(base));
}

void tell_own(const Failure& failure, int rank, int size) {
  const bool own = size > 1 && severity(failure) == 0 && !names_ranks(failure);
  print_line((own ? "rank " + std::to_string(rank) + ": " : "") + failure.message);
}

void meet_at_the_end(Communicator& world, Queue& queue) {
  world.exchange({Header("the end", Direction::agreement, 0), {}, 0, {}}, queue);
}

}  // namespace allnorm::launch
