// What tests ask of the NCCL that stands for the real one.
#pragma once

#include <string>

#include "nccl.h"

namespace fake_nccl {

/// NCCL takes ranks on hosts of different NCCL_HOSTID for ranks of different GPUs. The calling thread's.
void set_host_id(const std::string& id);
/// Every living communicator of this rank reports the error from now on.
void fail_async(int rank, ncclResult_t error);
/// Communicators that were neither destroyed nor aborted.
int living();
/// Collectives that streams have finished, by the count of ranks' parts.
int collectives();
/// Calls that the real NCCL does not allow, such as with a communicator that is gone; each is a bug of the caller.
int misuses();
/// Forgets counts. All communicators must be gone.
void reset();

}  // namespace fake_nccl
