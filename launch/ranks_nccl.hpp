// Ranks with a GPU each, over NCCL.
#pragma once

#include <memory>

#include "allnorm/communicator.hpp"

namespace allnorm::launch {

/// The ranks of `bootstrap` over NCCL. Collective. Throws unsupported, on every rank, where two of them are on one GPU:
/// NCCL would say so after a while, in fewer words.
std::shared_ptr<Communicator> nccl_ranks(const std::shared_ptr<Communicator>& bootstrap, Queue& queue,
                                         const Patience& patience);

}  // namespace allnorm::launch
