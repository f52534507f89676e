// Ranks as MPI processes. The only public header that includes MPI's; link allnorm::mpi.
#pragma once

#include <mpi.h>

#include <memory>

#include "allnorm/communicator.hpp"

namespace allnorm {

/// A communicator over a duplicate of `comm` (collective over it). MPI must be initialized, at any thread level; all
/// calls come from one thread at a time. allnorm never initializes or finalizes MPI; destroy the communicator before
/// MPI_Finalize. With a CUDA queue records go through host memory and the host waits: MPI need not know CUDA.
std::shared_ptr<Communicator> mpi(MPI_Comm comm, const Patience& patience = {});

}  // namespace allnorm
