// Ranks as MPI processes. The only public header that includes MPI's; link allnorm::mpi.
#pragma once

#include <mpi.h>

#include <memory>

#include "allnorm/communicator.hpp"

namespace allnorm {

/// Whether MPI may be given memory of GPUs: ask it (MPIX_Query_cuda_support of Open MPI, MPIX_GPU_query_support of
/// MPICH), or know better.
enum class GpuMemory { ask, taken, refused };

/// A communicator over a duplicate of `comm`: collective over it, and throws timeout where a rank does not come within
/// patience.first_timeout. Errors call the ranks by their number in MPI_COMM_WORLD. MPI must be initialized, at any
/// thread level; all calls come from one thread at a time. allnorm never initializes or finalizes MPI; destroy the
/// communicator before MPI_Finalize. With CUDA queues the host waits in every exchange. Records go through page-locked
/// host memory; long ones (64 KiB) from GPU to GPU where MPI takes its memory on all ranks. Some MPIs bind a process to
/// the GPU that is current in their first calls: choose it before MPI_Init.
std::shared_ptr<Communicator> mpi(MPI_Comm comm, const Patience& patience = {}, GpuMemory gpu_memory = GpuMemory::ask);

}  // namespace allnorm
