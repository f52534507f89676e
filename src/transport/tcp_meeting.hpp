// How ranks that have met over TCP come to be connected, each two of them.
#pragma once

#include <vector>

#include "src/transport/rendezvous.hpp"
#include "src/transport/seats.hpp"
#include "src/transport/tcp_connection.hpp"

namespace allnorm {

struct TcpRanks {
  std::vector<TcpConnection> connections{};  // [rank], this one's is over
  std::vector<Seat> seats{};                 // [rank]
};

/// Collective: waits for all ranks, at most first_timeout, and then for the connections with each, at most timeout.
/// Where a rank fails meanwhile, and tells so, some connections are over from the begin. Throws timeout, transport,
/// aborted; those who are connected by then are told.
TcpRanks meet_over_tcp(const Meeting& meeting, const Patience& patience);

}  // namespace allnorm
