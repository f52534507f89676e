// Ranks as processes that meet over TCP and stay connected: without MPI, on one host or several.
#pragma once

#include <memory>

#include "allnorm/communicator.hpp"
#include "allnorm/meeting.hpp"

namespace allnorm {

/// The communicator of all ranks of `meeting`, a connection between each two of them. Collective: waits for all ranks,
/// at most patience.first_timeout; rank 0 names who is missing. Whoever connects must know the job's token, if there is
/// one. All calls come from one thread at a time. With CUDA queues the host waits in every exchange, and records go
/// through page-locked host memory.
///
/// A rank that ends without a goodbye, because it was killed, is named by those who wait for it. abort() tells all
/// other ranks. Who destroys the last communicator over these connections says goodbye, and stays for up to a second
/// until the peers' systems have what it sent. Nothing is encrypted.
///
/// Throws invalid_argument, timeout, transport.
std::shared_ptr<Communicator> tcp(const Meeting& meeting, const Patience& patience = {});

}  // namespace allnorm
