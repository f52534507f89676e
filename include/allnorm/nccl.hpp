// Ranks with a GPU each, over NCCL.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>

#include "allnorm/communicator.hpp"
#include "allnorm/meeting.hpp"

namespace allnorm {

/// What ranks need in order to find each other: an ncclUniqueId. One rank makes it, all have the same.
struct NcclId {
  std::array<std::byte, 128> bytes{};  ///< NCCL's own
  /// A new one. Throws transport.
  static NcclId make();
  /// The same bytes.
  friend bool operator==(const NcclId&, const NcclId&) = default;
};

// The makers below are collective over the group, and wait for all of its ranks, at most Patience::first_timeout. Each
// rank has a CUDA queue on a GPU of its own; two ranks on one GPU are refused by NCCL (ranks as threads of one process
// may share one: allnorm::threads). Their Communicator
//  - exchanges records (gather) in the order of the queue's work, the host does not wait, and all of it may be captured
//    in a graph. Up to Patience::gather_limit ranks records are gathered; beyond, NCCL adds them, moments in two
//    rounds: the same bits on all ranks, but not those of another transport;
//  - finds out in a thread of the process when an exchange is not done in time or NCCL reports an error, and aborts the
//    group, so that no stream hangs; check() and every later call throw. A mismatch does not end the group;
//  - on decline(), ends the group too: peers are told at once where ranks met over TCP, through bootstrap->abort()
//    where there is a bootstrap, and otherwise run into their deadline.
// Patience::now is called from that thread too. Exchanges of several groups on one GPU must be enqueued in one order on
// all ranks, as NCCL demands; groups split from each other keep to it if the program calls them in one order.
// Records of one exchange must be of one length on all ranks. NCCL promises nothing for others: mostly they end at the
// deadline. start_exchange() waits on the host and names them.

/// Over the caller's ncclComm_t, which must outlive the communicator. After an Error timeout, aborted or transport it
/// has been given to ncclCommAbort and must not be used or destroyed.
std::shared_ptr<Communicator> nccl(void* comm, Queue& queue, const Patience& patience = {});
/// Over a communicator of its own. Throws invalid_argument, timeout, transport.
std::shared_ptr<Communicator> nccl(const NcclId& id, int rank, int size, Queue& queue, const Patience& patience = {});
/// The ranks of `bootstrap` (mpi, threads), which carries the id.
std::shared_ptr<Communicator> nccl_over(const std::shared_ptr<Communicator>& bootstrap, Queue& queue,
                                        const Patience& patience = {});
/// Ranks that meet over TCP. They stay connected: a rank that fails or is killed is known to all within moments.
std::shared_ptr<Communicator> nccl_over(const Meeting& meeting, Queue& queue, const Patience& patience = {});
/// Ranks that meet in a file that all see. `run` is one line that no other run has: a file of another run is not taken.
/// Rank 0 removes the file when all are there.
std::shared_ptr<Communicator> nccl_over(const std::string& path, const std::string& run, int rank, int size,
                                        Queue& queue, const Patience& patience = {});

}  // namespace allnorm
