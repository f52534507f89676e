// The CUDA queue: a stream, and what belongs to it. What kernels and transports need of it are the functions below.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <vector>

#include "allnorm/device.hpp"
#include "src/runtime/cuda/errors.hpp"
#include "src/runtime/cuda/memory.hpp"
#include "src/runtime/cuda/staging.hpp"
#include "src/runtime/queue.hpp"

namespace allnorm::cuda {

class CudaQueue final : public Queue::Impl {
 public:
  /// With a stream of its own, which does not wait for the legacy default stream.
  explicit CudaQueue(int index);
  /// Over the caller's stream.
  CudaQueue(int index, cudaStream_t stream);
  ~CudaQueue() override;

  int threads() const noexcept override { return 1; }
  void* stream() const noexcept override { return stream_; }
  void wait() override;
  void* allocate(std::size_t bytes, Fill fill) override;
  void release(void* data) noexcept override;
  void copy_to_device(void* to, const void* from, std::size_t bytes) override;
  void copy_to_host(void* to, const void* from, std::size_t bytes) override;
  void copy_on_device(void* to, const void* from, std::size_t bytes) override;
  void expect_memory(const void* data, const char* name) const override;

  int index() const noexcept { return index_; }
  cudaStream_t handle() const noexcept { return stream_; }
  const cudaDeviceProp& properties() const noexcept { return *properties_; }
  /// True from cudaStreamBeginCapture to cudaStreamEndCapture.
  bool capturing() const;
  unsigned* tickets(std::size_t count);
  void leave_multiprocessors(int count) override;
  int multiprocessors_left() const noexcept override { return left_; }

 private:
  CudaQueue(int index, cudaStream_t stream, bool own);
  void prepare();
  void* allocate_now(std::size_t bytes);
  void* allocate_in_order(std::size_t bytes);
  void zero_now(void* data, std::size_t bytes);

  int index_;
  cudaStream_t stream_;
  bool own_stream_;
  int left_ = 0;  // multiprocessors, to others
  const cudaDeviceProp* properties_;
  cudaMemPool_t pool_ = nullptr;  // null: the device has none
  unsigned* tickets_ = nullptr;   // (tickets_size_), all zero between kernels
  std::size_t tickets_size_ = 0;
  std::mutex kept_mutex_;    // buffers may end on any thread
  std::vector<void*> kept_;  // what a captured graph may use: freed with the queue
  Staging staging_;
  std::vector<PinnedBlock> sources_;  // what captured copies read
};

/// The functions below are for CUDA queues only.
cudaStream_t stream_of(Queue& queue) noexcept;
const cudaDeviceProp& properties_of(Queue& queue) noexcept;
bool is_capturing(Queue& queue);
/// `count` counters for "the last block to finish goes on": zero when a kernel begins, and left zero by it. They are
/// the queue's own, in device memory, and stay where they are for graphs that were captured with them. Kernels that
/// use them must run one after the other: a graph with tickets is not replayed beside other work of its queue.
unsigned* tickets(Queue& queue, std::size_t count);

}  // namespace allnorm::cuda
