// The scheduler of a block: runs a random ready thread until it waits; barriers make threads ready again.
#include "block.hpp"

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

#include "device_launch_parameters.h"

constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local uint3 blockDim{};
constinit thread_local uint3 gridDim{};

namespace cuda_emulation::detail {
namespace {

constinit thread_local Block* running = nullptr;

Block& block() {
  if (running == nullptr) {
    std::fprintf(stderr, "emulated CUDA: device function called outside of a kernel\n");
    std::abort();
  }
  return *running;
}

const char* name_of(WarpOp op) {
  switch (op) {
    case WarpOp::sync:
      return "__syncwarp";
    case WarpOp::shuffle:
      return "shuffle";
    case WarpOp::ballot:
      return "vote";
    default:
      return "warp reduction";
  }
}

void enter_fiber() { block().fiber_main(); }

/// Shared memory as a block finds it.
void* poisoned(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes) != 0) {
    std::fprintf(stderr, "emulated CUDA: no memory for the shared memory of a block\n");
    std::abort();
  }
  std::memset(memory, 0xCB, bytes);
  return memory;
}

}  // namespace

int block_barrier(BlockOp op, int predicate) { return block().at_block_barrier(op, predicate); }
std::uint64_t warp_exchange(WarpOp op, unsigned mask, std::uint64_t value, int source) {
  return block().at_warp(op, mask, value, source);
}
void grid_barrier() { block().at_grid_barrier(); }
void yield_thread() { block().yield(); }
int lane() { return block().lane(); }
unsigned live_lanes() { return block().live_lanes(); }
void fail_kernel(const char* reason) { block().fail(reason); }

// ---- the grid's barrier
// ----------------------------------------------------------------------------------------------
bool GridBarrier::arrive_and_wait() {
  std::unique_lock lock(mutex_);
  ++arrived_;
  check();
  if (!failed_ && arrived_ == blocks_) {
    arrived_ = 0;
    ++generation_;
    changed_.notify_all();
    return true;
  }
  const std::uint64_t mine = generation_;
  changed_.wait(lock, [&] { return generation_ != mine || failed_; });
  return generation_ != mine;
}
void GridBarrier::leave() {
  const std::lock_guard lock(mutex_);
  ++left_;
  check();
}
void GridBarrier::check() {
  if (left_ == 0 || arrived_ == 0) return;
  if (!failed_) reason_ = "grid synchronization that some blocks never reach";
  failed_ = true;
  changed_.notify_all();
}
std::string GridBarrier::reason() {
  const std::lock_guard lock(mutex_);
  return reason_;
}
void GridBarrier::fail(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (!failed_) reason_ = reason;
  failed_ = true;
  changed_.notify_all();
}
bool GridBarrier::failed() {
  const std::lock_guard lock(mutex_);
  return failed_;
}

// ---- the scheduler
// ---------------------------------------------------------------------------------------------------
std::string Block::run(const Grid& grid, uint3 index, std::uint64_t seed, GridBarrier* barrier) {
  const std::size_t count = std::size_t{grid.block.x} * grid.block.y * grid.block.z;
  grid_ = &grid;
  barrier_ = barrier;
  shuffler_ = Shuffler(seed);
  failure_.clear();
  failed_ = false;
  live_threads_ = count;
  at_barrier_ = predicates_ = 0;
  threads_.assign(count, Thread{});
  live_.assign((count + 31) / 32, 0xffffffffu);
  if (count % 32 != 0) live_.back() = (1u << (count % 32)) - 1;
  ready_.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    ready_[i] = static_cast<std::uint32_t>(i);
    const auto flat = static_cast<unsigned>(i);
    threads_[i].index = {flat % grid.block.x, flat / grid.block.x % grid.block.y, flat / grid.block.x / grid.block.y};
  }
  shared_ = poisoned(grid.dynamic_shared);
  static_bytes_ = 0;

  running = this;
  blockIdx = index;
  blockDim = grid.block;
  gridDim = grid.extent;
  while (live_threads_ > 0 && !failed_) {
    if (ready_.empty() && !all_wait()) break;
    const std::size_t pick = shuffler_.below(ready_.size());
    const std::uint32_t thread = ready_[pick];
    ready_[pick] = ready_.back();
    ready_.pop_back();
    resume(thread);
  }
  running = nullptr;

  std::free(shared_);
  shared_ = nullptr;
  for (const auto& [key, memory] : variables_) std::free(memory);
  variables_.clear();
  for (Thread& thread : threads_) {  // after a failure: whoever still waited
    if (thread.fiber == nullptr) continue;
    thread.fiber->restart();
    idle_fibers_.push_back(thread.fiber);
  }
  if (!failed_) {
    if (barrier_ != nullptr) barrier_->leave();
    return {};
  }
  failure_ = "block (" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
             "): " + failure_;
  if (barrier_ != nullptr) barrier_->fail(failure_);
  return failure_;
}

void Block::resume(std::size_t thread) {
  Thread& t = threads_[thread];
  if (t.fiber == nullptr) {
    if (idle_fibers_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(&enter_fiber));
      idle_fibers_.push_back(fibers_.back().get());
    }
    t.fiber = idle_fibers_.back();
    idle_fibers_.pop_back();
  }
  current_ = thread;
  threadIdx = t.index;
  scheduler_.switch_to(*t.fiber);
}

void Block::fiber_main() {
  Fiber* const self = threads_[current_].fiber;
  Fiber::entered(*self);
  for (;;) {  // a fiber outlives the thread that it runs, and then runs another
    try {
      (*grid_->body)();
      thread_returned();
    } catch (const std::exception& error) {
      failure_ = std::string("the kernel threw: ") + error.what();
      failed_ = true;
    } catch (...) {
      failure_ = "the kernel threw";
      failed_ = true;
    }
    threads_[current_].fiber = nullptr;
    idle_fibers_.push_back(self);
    self->switch_to(scheduler_);
  }
}

void Block::wait(State state) {
  Thread& t = threads_[current_];
  t.state = state;
  t.fiber->switch_to(scheduler_);
}

void Block::fail(const char* reason, const char* subject) {
  failure_ = reason;
  failure_ += subject;
  failed_ = true;
  threads_[current_].fiber->switch_to(scheduler_);
  std::abort();  // the scheduler restarts the fiber of a failed thread, it never resumes it
}

void Block::yield() {
  if (failed_ || (barrier_ != nullptr && barrier_->failed())) fail("another block of the grid failed");
  ready_.push_back(static_cast<std::uint32_t>(current_));
  if (ready_.size() == 1) std::this_thread::yield();
  wait(State::ready);
}

void Block::thread_returned() {
  threads_[current_].state = State::returned;
  --live_threads_;
  const std::size_t warp = current_ / 32;
  live_[warp] &= ~(1u << (current_ % 32));
  if (live_threads_ > 0 && at_barrier_ == live_threads_) release_block_barrier();
  for (unsigned lanes = live_[warp]; lanes != 0; lanes &= lanes - 1) {  // those that waited for this lane only
    const Thread& other = threads_[warp * 32 + static_cast<std::size_t>(std::countr_zero(lanes))];
    if (other.state == State::warp) complete_warp(warp * 32, other);
  }
}

void* Block::static_shared(const void* key, std::size_t bytes) {
  for (const auto& [known, memory] : variables_)
    if (known == key) return memory;
  static_bytes_ += (bytes + 15) / 16 * 16;
  if (static_bytes_ > grid_->static_room)
    fail("static shared memory is more than the launch leaves beside its dynamic: see cudaFuncSetAttribute");
  variables_.emplace_back(key, poisoned(bytes));
  return variables_.back().second;
}

// ---- barriers
// --------------------------------------------------------------------------------------------------------
int Block::at_block_barrier(BlockOp op, int predicate) {
  if (at_barrier_ == 0) {
    block_op_ = op;
    predicates_ = 0;
  } else if (op != block_op_) {
    fail("threads of one block meet at different kinds of __syncthreads");
  }
  ++at_barrier_;
  if (predicate != 0) ++predicates_;
  if (at_barrier_ < live_threads_) {
    wait(State::block);
  } else {  // the last to arrive goes through the scheduler too: who runs first afterwards is open
    threads_[current_].state = State::block;
    release_block_barrier();
    threads_[current_].fiber->switch_to(scheduler_);
  }
  return static_cast<int>(threads_[current_].result);
}

void Block::release_block_barrier() {
  const std::size_t arrived = at_barrier_;
  int result = 0;
  if (block_op_ == BlockOp::count) result = static_cast<int>(predicates_);
  if (block_op_ == BlockOp::all) result = predicates_ == arrived ? 1 : 0;
  if (block_op_ == BlockOp::any) result = predicates_ != 0 ? 1 : 0;
  at_barrier_ = 0;
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    if (threads_[i].state != State::block) continue;
    threads_[i].state = State::ready;
    threads_[i].result = static_cast<std::uint64_t>(result);
    ready_.push_back(static_cast<std::uint32_t>(i));
  }
}

std::uint64_t Block::at_warp(WarpOp op, unsigned mask, std::uint64_t value, int source) {
  Thread& t = threads_[current_];
  if ((mask >> (current_ % 32) & 1u) == 0) fail("the mask lacks the calling lane in a ", name_of(op));
  t.op = op;
  t.mask = mask;
  t.value = value;
  t.source = source;
  t.state = State::warp;
  complete_warp(current_ / 32 * 32, t);
  t.fiber->switch_to(scheduler_);
  return threads_[current_].result;
}

/// If all live lanes of the mask wait with the same mask and operation, gives them their results and wakes them.
bool Block::complete_warp(std::size_t first, const Thread& arrived) {
  const unsigned lanes = arrived.mask & live_[first / 32];
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const Thread& other = threads_[first + static_cast<std::size_t>(std::countr_zero(rest))];
    if (other.state != State::warp || other.mask != arrived.mask || other.op != arrived.op) return false;
  }
  combine_warp(first, lanes);
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const std::size_t thread = first + static_cast<std::size_t>(std::countr_zero(rest));
    threads_[thread].state = State::ready;
    ready_.push_back(static_cast<std::uint32_t>(thread));
  }
  return true;
}

void Block::combine_warp(std::size_t first, unsigned lanes) {
  const auto lane_of = [&](unsigned rest) -> Thread& {
    return threads_[first + static_cast<std::size_t>(std::countr_zero(rest))];
  };
  const WarpOp op = lane_of(lanes).op;
  if (op == WarpOp::shuffle) {
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
      Thread& t = lane_of(rest);
      const bool present = (lanes >> t.source & 1u) != 0;
      t.result = present ? threads_[first + static_cast<std::size_t>(t.source)].value : ~std::uint64_t{0};
    }
    return;
  }
  std::uint64_t sum = 0;
  bool begun = false;
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    const std::uint64_t value = lane_of(rest).value;
    if (op == WarpOp::ballot) {
      sum |= value != 0 ? std::uint64_t{rest & -rest} : 0;
    } else if (!begun) {
      sum = value;
    } else if (op == WarpOp::add) {
      sum = (sum + value) & 0xffffffffu;
    } else if (op == WarpOp::min) {
      sum = value < sum ? value : sum;
    } else if (op == WarpOp::max) {
      sum = sum < value ? value : sum;
    } else if (op == WarpOp::bit_and) {
      sum &= value;
    } else if (op == WarpOp::bit_or) {
      sum |= value;
    } else if (op == WarpOp::bit_xor) {
      sum ^= value;
    }
    begun = true;
  }
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) lane_of(rest).result = sum;
}

void Block::at_grid_barrier() {
  if (barrier_ == nullptr) fail("grid synchronization in a launch that is not cooperative");
  if (live_threads_ != threads_.size()) fail("grid synchronization after threads of the block have returned");
  wait(State::grid);
}

/// No thread is ready: waits for the grid if that is what all wait for. Otherwise the block is stuck.
bool Block::all_wait() {
  bool at_grid = barrier_ != nullptr;
  for (const Thread& t : threads_) at_grid = at_grid && t.state == State::grid;
  if (!at_grid) {
    failure_ = deadlock();
    failed_ = true;
    return false;
  }
  if (!barrier_->arrive_and_wait()) {
    failure_ = "grid synchronization that some blocks never reach";
    failed_ = true;
    return false;
  }
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    threads_[i].state = State::ready;
    ready_.push_back(static_cast<std::uint32_t>(i));
  }
  return true;
}

std::string Block::deadlock() const {
  std::size_t block = 0, warp = 0, grid = 0, returned = 0;
  const Thread* example = nullptr;
  for (const Thread& t : threads_) {
    if (t.state == State::block) ++block;
    if (t.state == State::grid) ++grid;
    if (t.state == State::returned) ++returned;
    if (t.state != State::warp) continue;
    ++warp;
    example = &t;
  }
  char text[320];
  std::snprintf(text, sizeof(text),
                "barriers that can never complete: of %zu threads %zu wait at __syncthreads, %zu in warp operations, "
                "%zu at the grid's barrier, %zu have returned",
                threads_.size(), block, warp, grid, returned);
  std::string message = text;
  if (example != nullptr) {
    std::snprintf(text, sizeof(text), "; thread (%u, %u, %u) waits in a %s with mask 0x%08x", example->index.x,
                  example->index.y, example->index.z, name_of(example->op), example->mask);
    message += text;
  }
  return message;
}

// ---- the pool
// --------------------------------------------------------------------------------------------------------
namespace {
struct Pool {
  std::mutex mutex;
  std::vector<std::unique_ptr<Block>> blocks;
};
Pool& pool() {
  static Pool* const instance = new Pool;  // never destroyed: stream threads outlive static objects
  return *instance;
}
}  // namespace

BlockLease::BlockLease() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  if (p.blocks.empty()) p.blocks.push_back(std::make_unique<Block>());
  block_ = std::move(p.blocks.back());
  p.blocks.pop_back();
}
BlockLease::~BlockLease() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.blocks.push_back(std::move(block_));
}

}  // namespace cuda_emulation::detail

void* allnorm_emulated_dynamic_shared() { return cuda_emulation::detail::block().dynamic_shared(); }
void* allnorm_emulated_shared(const void* key, std::size_t bytes) {
  return cuda_emulation::detail::block().static_shared(key, bytes);
}
