// What the fused kernels offer to the other CUDA files: a call of a lone rank whose statistics cross blocks, as batch
// norm's do, in one cooperative launch.
#pragma once

#include <cstdint>

#include "kernels/ops.hpp"

namespace allnorm::cuda {

/// Which calls are fused: those where it should pay, none, or all that can be. For tests and benchmarks; of the whole
/// process, and not to be changed between the halves of a call.
enum class FusedPath : std::uint8_t { automatic, never, always };
void set_fused_path(FusedPath path) noexcept;

/// True where one launch does a forward call: then forward_local has nothing to do and forward_finish is fused_forward.
bool fused_fits(const ForwardArgs& args, Queue& queue);
/// Every block keeps on chip what it can of the values that it sums, so that they need not be read again for y.
void fused_forward(const ForwardArgs& args, Queue& queue);

/// The same for backward with x and dy: backward_local has nothing to do, and backward_finish is fused_backward.
bool fused_fits(const BackwardArgs& args, Queue& queue);
void fused_backward(const BackwardArgs& args, Queue& queue);

/// Blocks of a fused launch at most: one has a multiprocessor to itself, and those that the queue leaves to others
/// (Queue::leave_multiprocessors) have none.
std::int64_t fused_blocks(Queue& queue);
/// Whether to fuse a call that can be, which reads `bytes` bytes of `elements` elements before the grid first waits.
bool fusing_pays(std::int64_t elements, std::int64_t bytes, Queue& queue);

}  // namespace allnorm::cuda
