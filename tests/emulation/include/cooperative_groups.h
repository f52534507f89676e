// Cooperative groups, as far as the project uses them: the grid and the block.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

class grid_group {
 public:
  void sync() const { cuda_emulation::detail::grid_barrier(); }
  bool is_valid() const { return true; }
};
inline grid_group this_grid() { return {}; }

class thread_block {
 public:
  void sync() const { __syncthreads(); }
};
inline thread_block this_thread_block() { return {}; }

}  // namespace cooperative_groups
