// Ranks as processes that are connected over TCP: torchrun's, or those of any launcher where MASTER_ADDR is set.
#include <chrono>
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
  return meeting_from_environment(from->rank, from->size);
}

// The code with which another rank ends the job, and of which it tells; none where this one is to do so. The first of
// those whose failure counts most, as far as is known.
std::optional<int> told_by_another(const Failure& failure, int rank, TcpLinks& links) {
  std::optional<int> code;
  auto counts_most = std::tuple(severity(failure), rank);
  for (const TcpLinks::Told& told : links.told()) {
    const Failure theirs{exit_code(told.code), told.code, {}};
    const auto counts = std::tuple(severity(theirs), told.rank);
    if (counts >= counts_most) continue;
    counts_most = counts;
    code = theirs.code;
  }
  return code;
}

// The end of a rank that failed and has told the others. Nobody ends them: each leaves by itself, with the code of the
// failure that counts, and its rank alone tells people. Those who may have found the same give way as under MPI.
int leave(const Failure& failure, int rank, TcpLinks& links, Watching& watching) {
  const auto turn = Clock::now() + time_to_give_way(failure, rank, watching.keeps_report());
  for (;;) {
    try {
      if (const auto code = told_by_another(failure, rank, links)) return *code;
    } catch (const std::exception&) {  // no memory to hear of it
    }
    if (Clock::now() >= turn) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
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
