// Devices, queues of work on them, and buffers in their memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "allnorm/sizes.hpp"

namespace allnorm {

struct Ops;  // kernels/ops.hpp: the table of functions that a backend fills

/// Where memory lies and work is done.
enum class DeviceKind : std::uint8_t { cpu, cuda };

/// The CPU, or one GPU.
struct Device {
  DeviceKind kind = DeviceKind::cpu;  ///< CPU or GPU
  int index = 0;                      ///< the GPU's number, as CUDA counts; 0 for the CPU
  /// The same device.
  friend constexpr bool operator==(Device a, Device b) noexcept { return a.kind == b.kind && a.index == b.index; }
};
/// "cpu" or "cuda:0".
std::string to_string(Device device);

/// Work in order on one device. A CPU queue owns `threads` - 1 worker threads and runs every call to its end before
/// it returns. A CUDA queue is a stream: calls return when their work is enqueued. A call with a queue is made by one
/// thread at a time.
class Queue {
 public:
  /// A CPU queue. Throws invalid_argument for threads < 1.
  static Queue cpu(int threads = 1);
  /// A queue with a stream of its own on GPU `index`. Throws unsupported where this build has no CUDA, device where
  /// there is no such GPU.
  static Queue cuda(int index = 0);
  /// A queue over the caller's `stream` (a cudaStream_t on GPU `index`), which must outlive the queue and every buffer
  /// allocated with it. null is the legacy default stream, which cannot be captured.
  static Queue cuda(int index, void* stream);

  /// Moved, not copied.
  Queue(Queue&&) noexcept;
  /// Moved, not copied.
  Queue& operator=(Queue&&) noexcept;
  ~Queue();

  /// Whose memory tensors of its calls are in.
  Device device() const noexcept { return device_; }
  /// CPU threads that a call may use; 1 for a CUDA queue.
  int threads() const noexcept;
  /// The cudaStream_t; null for a CPU queue.
  void* stream() const noexcept;
  /// Blocks until all work of the queue is done. Throws device when some of it failed.
  void wait();
  /// `count` multiprocessors of the GPU are not used by kernels whose blocks all have to run at once (a lone rank's
  /// batch_norm of middle size), so that such a kernel need not wait for the end of another that holds as many, as
  /// those of NCCL do beside a backward pass. With all of them such kernels are not used. 0 at first; it holds for
  /// calls that follow. Throws invalid_argument for a CPU queue and for a negative count.
  void leave_multiprocessors(int count);
  /// 0 for a CPU queue.
  int multiprocessors_left() const noexcept;
  /// The backend's functions, for the library.
  const Ops& ops() const noexcept { return *ops_; }

  /// The backend's own part: the thread pool of a CPU queue (src/runtime/parallel.hpp), the stream of a CUDA one.
  class Impl;
  Impl& impl() const noexcept { return *impl_; }  ///< for the library
  /// The same, to be kept beyond the queue.
  const std::shared_ptr<Impl>& shared_impl() const noexcept { return impl_; }

 private:
  Queue(Device device, const Ops& ops, std::shared_ptr<Impl> impl);
  Device device_;
  const Ops* ops_;
  std::shared_ptr<Impl> impl_;
};

/// GPUs that this build can use on this machine; 0 where there is none, or no driver, or no CUDA in the build.
int cuda_devices() noexcept;
/// What there is of CUDA, for people: the GPUs, or why there are none.
std::string cuda_summary();

/// What fresh memory holds: zeros, or anything (what kernels will write in full).
enum class Fill : std::uint8_t { zero, none };
/// `bytes` of memory of the queue's device, aligned to 64 bytes; null for 0 bytes. On a CUDA queue memory is allocated
/// and released in the stream's order; what is allocated while the stream is being captured belongs to the captured
/// graph and is kept until the queue's end. Throws device when there is none left.
void* allocate(std::size_t bytes, Queue& queue, Fill fill = Fill::zero);
/// Gives back what allocate() gave; `owner`: Queue::shared_impl() of that queue.
void release(void* data, const std::shared_ptr<Queue::Impl>& owner) noexcept;

/// Copies in the queue's order between memory of its device and of the host, whatever the pointers say; on a CUDA queue
/// a copy to host memory is there only after wait(). `from` on the host may be reused on return.
void copy_to_device(void* to, const void* from, std::size_t bytes, Queue& queue);
/// \copydoc copy_to_device()
void copy_to_host(void* to, const void* from, std::size_t bytes, Queue& queue);
/// \copydoc copy_to_device()
void copy_on_device(void* to, const void* from, std::size_t bytes, Queue& queue);

/// Throws device unless `data` is memory that the queue's device can use: a host pointer on a CUDA queue, and a CUDA
/// pointer on a CPU queue, are named by `name`. Null passes.
void expect_memory(const void* data, const Queue& queue, const char* name);

/// Owner of `size` values of a trivial T in the memory of a queue's device. Move-only.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  /// Of the queue's device, and released in its order. Throws device where no memory is left.
  Buffer(std::size_t size, Queue& queue, Fill fill = Fill::zero)
      : data_(static_cast<T*>(allocate(bytes_of(size, sizeof(T)), queue, fill))),
        size_(size),
        device_(queue.device()),
        owner_(queue.shared_impl()) {}
  /// Takes the values of `other`, which is empty then.
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        device_(other.device_),
        owner_(std::move(other.owner_)) {}
  /// Exchanges the two.
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(device_, other.device_);
    std::swap(owner_, other.owner_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) release(data_, owner_);
  }

  T* data() noexcept { return data_; }                 ///< in the device's memory; null when empty
  const T* data() const noexcept { return data_; }     ///< likewise
  std::size_t size() const noexcept { return size_; }  ///< values
  bool empty() const noexcept { return size_ == 0; }   ///< no value
  Device device() const noexcept { return device_; }   ///< whose memory it is

  /// Element access and iteration: CPU buffers only.
  T& operator[](std::size_t i) noexcept { return data_[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_[i]; }  ///< likewise
  T* begin() noexcept { return data_; }                                   ///< likewise
  T* end() noexcept { return data_ + size_; }                             ///< likewise
  const T* begin() const noexcept { return data_; }                       ///< likewise
  const T* end() const noexcept { return data_ + size_; }                 ///< likewise

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
  Device device_{};
  std::shared_ptr<Queue::Impl> owner_{};
};

/// Values in device memory, on the host. Waits for the queue.
template <class T>
std::vector<T> to_host(std::span<const T> device, Queue& queue) {
  std::vector<T> values(device.size());
  copy_to_host(values.data(), device.data(), device.size_bytes(), queue);
  queue.wait();
  return values;
}
/// The same of a whole buffer.
template <class T>
std::vector<T> to_host(const Buffer<T>& buffer, Queue& queue) {
  return to_host(std::span<const T>(buffer.data(), buffer.size()), queue);
}
/// A buffer with these values.
template <class T>
Buffer<T> to_device(const std::vector<T>& values, Queue& queue) {
  Buffer<T> buffer(values.size(), queue);
  copy_to_device(buffer.data(), values.data(), values.size() * sizeof(T), queue);
  return buffer;
}

}  // namespace allnorm
