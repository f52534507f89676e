// What a backend gives a queue: its memory, its copies and its waiting.
#pragma once

#include <cstddef>

#include "allnorm/device.hpp"

namespace allnorm {

/// One per backend: CpuQueue (src/runtime/parallel.hpp) and CudaQueue (src/runtime/cuda/queue.hpp). The functions do
/// what the functions of the same names in allnorm/device.hpp promise; sizes are never 0 and pointers never null here.
class Queue::Impl {
 public:
  Impl() = default;
  virtual ~Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  virtual int threads() const noexcept = 0;
  virtual void* stream() const noexcept = 0;
  virtual void wait() = 0;
  virtual void leave_multiprocessors(int count) = 0;
  virtual int multiprocessors_left() const noexcept = 0;
  virtual void* allocate(std::size_t bytes, Fill fill) = 0;
  virtual void release(void* data) noexcept = 0;
  virtual void copy_to_device(void* to, const void* from, std::size_t bytes) = 0;
  virtual void copy_to_host(void* to, const void* from, std::size_t bytes) = 0;
  virtual void copy_on_device(void* to, const void* from, std::size_t bytes) = 0;
  virtual void expect_memory(const void* data, const char* name) const = 0;
};

/// Throws device if `data` is memory of a GPU that the host cannot use. Costs nothing in a process without CUDA queues,
/// and never makes a CUDA context. (src/runtime/cuda/memory.cpp or src/cuda/none.cpp)
void expect_host_memory(const void* data, const char* name);

}  // namespace allnorm
