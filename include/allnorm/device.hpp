// Devices, queues of work on them, and buffers in their memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace allnorm {

struct Ops;  // kernels/ops.hpp: the table of functions that a backend fills

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  friend constexpr bool operator==(Device a, Device b) noexcept { return a.kind == b.kind && a.index == b.index; }
};
/// "cpu" or "cuda:0".
std::string to_string(Device device);

/// Work in order on one device. A CPU queue owns `threads` - 1 worker threads and runs every call to its end before
/// it returns; a call with a queue is made by one thread at a time.
class Queue {
 public:
  /// A CPU queue. Throws invalid_argument for threads < 1.
  static Queue cpu(int threads = 1);

  Queue(Queue&&) noexcept;
  Queue& operator=(Queue&&) noexcept;
  ~Queue();

  Device device() const noexcept { return device_; }
  int threads() const noexcept;
  const Ops& ops() const noexcept { return *ops_; }

  /// The backend's own part: the thread pool of a CPU queue.
  class Impl;
  Impl& impl() const noexcept { return *impl_; }

 private:
  Queue(Device device, const Ops& ops, std::unique_ptr<Impl> impl);
  Device device_;
  const Ops* ops_;
  std::unique_ptr<Impl> impl_;
};

/// `bytes` of memory of the queue's device, aligned to 64 bytes; null for 0 bytes. Throws device when there is none.
void* allocate(std::size_t bytes, Queue& queue);
void release(void* data, Device device) noexcept;

/// Owner of `size` values of a trivial T in device memory, zero-initialized. Move-only.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  Buffer(std::size_t size, Queue& queue)
      : data_(static_cast<T*>(allocate(size * sizeof(T), queue))), size_(size), device_(queue.device()) {}
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), device_(other.device_) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(device_, other.device_);
    return *this;
  }
  ~Buffer() { release(data_, device_); }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  Device device() const noexcept { return device_; }

  /// Element access and iteration: CPU buffers only.
  T& operator[](std::size_t i) noexcept { return data_[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_[i]; }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  const T* begin() const noexcept { return data_; }
  const T* end() const noexcept { return data_ + size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
  Device device_{};
};

}  // namespace allnorm
