// What device code asks of the emulation's engine; kernels see it through CUDA's own names.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulation::detail {

enum class BlockOp { sync, count, all, any };
/// Waits until every live thread of the block has arrived. Returns the combined predicate.
int block_barrier(BlockOp op, int predicate);

enum class WarpOp { sync, shuffle, ballot, add, min, max, bit_and, bit_or, bit_xor };
/// Waits until every live lane of `mask` has arrived with the same mask and operation. Returns: shuffle, the value of
/// lane `source` (all bits set where that lane does not take part); ballot, the mask of lanes with a value other than
/// 0; the others, the combination of all values as 32-bit unsigned.
std::uint64_t warp_exchange(WarpOp op, unsigned mask, std::uint64_t value, int source);

void grid_barrier();
/// Lets other threads of the block, and other blocks, run.
void yield_thread();
/// Lane of the calling thread in its warp: 0 to 31.
int lane();
/// Lanes of the caller's warp that have not returned.
unsigned live_lanes();
/// Ends the kernel with a launch failure.
[[noreturn]] void fail_kernel(const char* reason);
/// Ends the kernel if an access of `bytes` at `pointer` is not aligned to `alignment`, as the GPU does.
inline void check_alignment(const void* pointer, std::size_t alignment) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0) fail_kernel("a vector access is misaligned");
}

}  // namespace cuda_emulation::detail

/// The block's dynamic shared memory: exactly dynamicSmemBytes, filled with 0xCB before each block.
void* allnorm_emulated_dynamic_shared();
/// The block's shared variable that `key` names, filled with 0xCB before each block. It counts as the kernel's static
/// shared memory from when a thread first comes to it.
void* allnorm_emulated_shared(const void* key, std::size_t bytes);
