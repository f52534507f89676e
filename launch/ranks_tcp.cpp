// Ranks as processes that are connected over TCP: torchrun's, or those of any launcher where MASTER_ADDR is set.
#include <chrono>
#include <functional>
#include <new>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>

#include "launch/launcher.hpp"
#include "launch/ranks_run.hpp"
#include "launch/terminal.hpp"
#include "src/transport/tcp.hpp"

namespace allnorm::launch {

namespace {

using Clock = std::chrono::steady_clock;

Meeting own_meeting() {
  const auto from = launcher();
  if (!from) return {};
  expect(from->size > 0, Code::unsupported, [&] {
    return "the launcher is " + text_of(*from) +
           ", which does not say how many ranks there are: --transport tcp needs "
           "RANK and WORLD_SIZE";
  });
  constexpr int most = 1 << 20;
  expect(from->size <= most && from->rank < from->size, Code::invalid_argument, [&] {
    return "the rank that " + std::string(from->name) + " gives is " + std::to_string(from->rank) + " of " +
           std::to_string(from->size) + ", must be less than the number of ranks, and that at most " +
           std::to_string(most);
  });
  return meeting_from_environment(from->rank, from->size);
}

// Whose failure counts most of those that other ranks have told; none where this rank's own does. Who failed because of
// another one counts only where nothing else has come in time.
std::optional<TcpLinks::Told> told_by_another(const Failure& failure, int rank, TcpLinks& links, bool in_time) {
  std::optional<TcpLinks::Told> first;
  auto counts_most = std::tuple(severity(failure), rank);
  for (const TcpLinks::Told& told : links.told()) {
    const auto counts = std::tuple(severity({exit_code(told.code), told.code, {}}), told.rank);
    if (counts >= counts_most || (in_time && told.code == Code::aborted)) continue;
    counts_most = counts;
    first = told;
  }
  return first;
}

bool comes_within(std::chrono::milliseconds most, const std::function<bool(bool in_time)>& holds) {
  const auto end = Clock::now() + most;
  for (bool in_time = true; in_time; std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
    in_time = Clock::now() < end;
    try {
      if (holds(in_time)) return true;
    } catch (const std::bad_alloc&) {  // no memory to hear of it
    }
  }
  return false;
}

// The end of a rank that failed and has told the others. Nobody ends them: each leaves by itself, with the code of the
// failure that counts. Its rank alone tells people, and leaves first: launchers end the others then, and say that it
// was the first. Those who may have found the same give way as under MPI.
int leave(const Failure& failure, int rank, TcpLinks& links, Watching& watching) {
  constexpr std::chrono::milliseconds to_speak{5000}, to_end{200};
  std::optional<TcpLinks::Told> first;
  const auto is_told = [&](bool in_time) {
    first = told_by_another(failure, rank, links, in_time);
    return first.has_value();
  };
  const auto has_spoken = [&](bool) {
    is_told(first->code != Code::aborted);  // by one whose failure counts more, meanwhile
    return links.has_left(first->rank);
  };
  if (comes_within(time_to_give_way(failure, rank, watching.keeps_report()), is_told) &&
      comes_within(to_speak, has_spoken)) {
    std::this_thread::sleep_for(to_end);
    return exit_code(first->code);
  }
  watching.tell_report();
  tell_own(failure, rank, links.size());
  return failure.code;
}

}  // namespace

int run_tcp(const RankOptions& options, const RankBody& body, Watching& watching) {
  const Meeting meeting = own_meeting();
  const auto [rank, size] = std::pair(meeting.rank, meeting.size);
  RankWatch* watch = nullptr;
  std::shared_ptr<TcpLinks> links;
  try {
    watch = watching.rank(rank, size);
    Queue queue = queue_of(options, local_rank(rank));
    const Patience patience = patience_of(options, watching);
    links = tcp_links(meeting, patience);
    const auto world = communicate(links, patience);
    Rank own = watched_rank(rank, size, world, std::move(queue), false, watch);
    const auto failure = run_one(own, [&](Rank& here) {
      body(here);
      meet_at_the_end(*world, here.queue);
    });
    return failure ? leave(*failure, rank, *links, watching) : exit_success;
  } catch (const std::exception& error) {
    const Failure failure = failure_of(error);
    if (watch != nullptr && failure.kind == Code::timeout) watch->late({.line = failure.message, .rank = rank});
    if (watch != nullptr) watch->failed(failure);
    if (links) {
      links->abort(Error(failure.kind, failure.message));
      return leave(failure, rank, *links, watching);
    }
    if (failure.kind == Code::aborted) return failure.code;  // who told this rank tells people
    give_way(rank, std::chrono::milliseconds(severity(failure) > 0 ? 600 : 150));
    tell_own(failure, rank, size);
    return failure.code;
  }
}

void expect_tcp_meeting(bool asked_for) {
  try {
    (void)own_meeting();
  } catch (const Error& error) {
    if (asked_for) throw;
    fail(error.code(), "the launcher is " + text_of(*launcher()) + ": " + error.message() +
                           " (a process that is meant to be alone: --transport self or threads)");
  }
}

}  // namespace allnorm::launch
