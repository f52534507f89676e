// Ranks as processes that meet over TCP and exchange over NCCL.
#include <utility>

#include "allnorm/nccl.hpp"
#include "build_config.hpp"
#include "launch/launcher.hpp"
#include "launch/ranks_run.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {

#if ALLNORM_HAVE_NCCL

// Nobody ends the others here: a rank that fails tells them through the meeting, and each leaves by itself.
int run_meeting(const RankOptions& options, const RankBody& body, Watching& watching) {
  const Meeting meeting = meeting_from_environment();
  const auto leave = [&](const Failure& failure) {
    print_line((names_ranks(failure) ? "" : "rank " + std::to_string(meeting.rank) + ": ") + failure.message);
    return failure.code;
  };
  RankWatch* watch = nullptr;
  try {
    watch = watching.rank(meeting.rank, meeting.size);
    Queue queue = queue_of(options, local_rank(meeting.rank));
    auto world = nccl_over(meeting, queue, patience_of(options, watching));
    Rank own = watched_rank(meeting.rank, meeting.size, std::move(world), std::move(queue), false, watch);
    const auto failure = run_one(own, body);
    return failure ? leave(*failure) : exit_success;
  } catch (const std::exception& error) {
    const Failure failure = failure_of(error);
    if (watch != nullptr) watch->failed(failure);
    return leave(failure);
  }
}
void expect_meeting() { (void)meeting_from_environment(); }

#else

int run_meeting(const RankOptions&, const RankBody&, Watching&) {
  fail(Code::unsupported, "transport is nccl, must be self, threads, mpi or tcp: this build has no NCCL");
}
void expect_meeting() {}

#endif

}  // namespace allnorm::launch
