// What the ways to run ranks have in common: failures, which of them counts, and who tells it.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "launch/ranks.hpp"
#include "launch/watch/watching.hpp"

namespace allnorm::launch {

using RankBody = std::function<void(Rank&)>;

/// How a rank failed.
struct Failure {
  int code = exit_failure;
  Code kind = Code::transport;
  std::string message;
};
Failure failure_of(const std::exception& error);
/// Of several failures the one of the lowest counts: a rank's own (0), then a mismatch, a missing rank, another's (3).
int severity(const Failure& failure);
/// True where the message says which rank by itself: "rank 1: bn, call 3, ...", "ranks 0 and 1 are ...".
bool names_ranks(const Failure& failure);

/// Calls body(rank); tells the record and the peers if it throws.
std::optional<Failure> run_one(Rank& rank, const RankBody& body);
/// The ranks of a machine take its GPUs in turn: rank r the one of number r mod GPUs.
Queue queue_of(const RankOptions& options, int number);
Patience patience_of(const RankOptions& options, Watching& watching);
/// A rank of this process, whose exchanges `watch` is told of where it is one.
Rank watched_rank(int rank, int size, std::shared_ptr<Communicator> world, Queue queue, bool emulated,
                  RankWatch* watch);
/// What the ranks exchange over: `bootstrap`, or NCCL between its ranks.
std::shared_ptr<Communicator> world_over(const RankOptions& options, std::shared_ptr<Communicator> bootstrap,
                                         Queue& queue, Watching& watching);
/// How long rank r leaves the word to the ranks before it when several may have found the same error: `base`, and a
/// little more from rank to rank.
void give_way(int rank, std::chrono::milliseconds base);
/// The same of a rank that failed: longer where its failure counts less, and where it keeps a report that another rank
/// is to tell. Rank 0 too gives way with what counts least.
std::chrono::milliseconds time_to_give_way(const Failure& failure, int rank, bool keeps_report);
/// Prints what this rank failed by, with its number where the message does not name a rank.
void tell_own(const Failure& failure, int rank, int size);
/// The exchange that all ranks make last: so that nobody waits for one that does not end without saying which.
void meet_at_the_end(Communicator& world, Queue& queue);

/// run_ranks() over threads of this process (or one rank alone), over processes that MPI knows, over processes that
/// meet over TCP and then use NCCL, and over such that stay with TCP. run_threads does not return where a thread does
/// not: it leaves the process.
int run_threads(const RankOptions& options, const RankBody& body, Watching& watching);
int run_mpi(const RankOptions& options, const RankBody& body, Watching& watching);
int run_meeting(const RankOptions& options, const RankBody& body, Watching& watching);
int run_tcp(const RankOptions& options, const RankBody& body, Watching& watching);
/// Throw unless the environment says where and how ranks meet over TCP. `asked_for`: by --transport.
void expect_meeting();
void expect_tcp_meeting(bool asked_for);

}  // namespace allnorm::launch
