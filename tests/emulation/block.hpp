// One block of a grid: its threads as fibers of one OS thread, its barriers, and the barrier of a cooperative grid.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "emulation/engine.h"
#include "fiber.hpp"
#include "vector_types.h"

namespace cuda_emulation::detail {

/// xorshift64*: enough to put threads and blocks in an arbitrary order.
class Shuffler {
 public:
  explicit Shuffler(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u | 1u) {
    for (int i = 0; i < 4; ++i) next();
  }
  std::uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  /// 0 to bound - 1; bound up to 2^32.
  std::size_t below(std::size_t bound) { return ((next() >> 32) * bound) >> 32; }

 private:
  std::uint64_t state_;
};

struct Grid {
  dim3 extent;
  dim3 block;
  std::size_t dynamic_shared = 0;  // bytes
  std::size_t static_room = 0;     // bytes that the launch leaves to shared variables
  const void* function = nullptr;  // the kernel
  const std::function<void()>* body = nullptr;
};

/// Where the blocks of a cooperative grid meet, each on its OS thread.
class GridBarrier {
 public:
  explicit GridBarrier(std::size_t blocks) : blocks_(blocks) {}
  /// Returns false when the grid cannot meet any more.
  bool arrive_and_wait();
  /// A block has returned: if others wait, or will, they can never be joined.
  void leave();
  /// The grid fails for `reason`, unless it has failed before.
  void fail(const std::string& reason);
  bool failed();
  /// Why it failed first; empty if it did not.
  std::string reason();

 private:
  void check();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t blocks_, arrived_ = 0, left_ = 0;
  std::uint64_t generation_ = 0;
  bool failed_ = false;
  std::string reason_;
};

/// Runs blocks, one after the other, on the OS thread that calls run(). Keeps the fibers.
class Block {
 public:
  /// Runs one block to its end. Returns why it failed; empty if it did not. `barrier` is null outside of cooperative
  /// launches.
  std::string run(const Grid& grid, uint3 index, std::uint64_t seed, GridBarrier* barrier);
  /// Bytes of the shared variables that the last block came to.
  std::size_t static_bytes() const { return static_bytes_; }

  // What engine.h offers, for the thread that runs now.
  int at_block_barrier(BlockOp op, int predicate);
  std::uint64_t at_warp(WarpOp op, unsigned mask, std::uint64_t value, int source);
  void at_grid_barrier();
  void yield();
  /// Takes no strings of its own: the stack that calls it is abandoned, and what it owns would leak.
  [[noreturn]] void fail(const char* reason, const char* subject = "");
  int lane() const { return static_cast<int>(current_ % 32); }
  unsigned live_lanes() const { return live_[current_ / 32]; }
  void* dynamic_shared() const { return shared_; }
  void* static_shared(const void* key, std::size_t bytes);
  [[noreturn]] void fiber_main();

 private:
  enum class State : std::uint8_t { ready, block, warp, grid, returned };
  struct Thread {
    State state = State::ready;
    WarpOp op = WarpOp::sync;
    int source = 0;
    unsigned mask = 0;
    std::uint64_t value = 0, result = 0;
    uint3 index{};
    Fiber* fiber = nullptr;
  };

  void resume(std::size_t thread);
  void wait(State state);
  void thread_returned();
  void release_block_barrier();
  bool complete_warp(std::size_t first, const Thread& arrived);
  void combine_warp(std::size_t first, unsigned lanes);
  bool all_wait();
  std::string deadlock() const;

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_fibers_;
  Fiber scheduler_;
  std::vector<Thread> threads_;
  std::vector<unsigned> live_;        // per warp: lanes that have not returned
  std::vector<std::uint32_t> ready_;  // threads that may run
  std::size_t current_ = 0, live_threads_ = 0, at_barrier_ = 0, predicates_ = 0;
  BlockOp block_op_ = BlockOp::sync;
  const Grid* grid_ = nullptr;
  GridBarrier* barrier_ = nullptr;
  Shuffler shuffler_{1};
  void* shared_ = nullptr;
  std::vector<std::pair<const void*, void*>> variables_;  // shared ones: key, memory
  std::size_t static_bytes_ = 0;
  std::string failure_;
  bool failed_ = false;
};

/// A Block for the calling OS thread, from a pool; returned to it at the end.
class BlockLease {
 public:
  BlockLease();
  ~BlockLease();
  BlockLease(const BlockLease&) = delete;
  BlockLease& operator=(const BlockLease&) = delete;
  Block& operator*() { return *block_; }

 private:
  std::unique_ptr<Block> block_;
};

}  // namespace cuda_emulation::detail
