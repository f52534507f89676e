// Memory of the emulated devices: allocations of exactly their size from the heap, so that AddressSanitizer sees
// overruns; filled with 0xCD when fresh and with 0xDD when freed.
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>

#include "cuda_emulation.hpp"
#include "cuda_runtime_api.h"
#include "stream.hpp"

namespace cuda_emulation::detail {
namespace {

struct Allocation {
  std::size_t bytes = 0;
  cudaMemoryType type = cudaMemoryTypeDevice;
  int device = 0;
  bool registered = false;  // the caller's own memory
  bool released = false;    // cudaFreeAsync was called, its turn has not come
};

struct Memory {
  std::mutex mutex;
  std::map<std::uintptr_t, Allocation> allocations;
  std::size_t used[max_devices] = {};
  std::deque<std::pair<void*, std::size_t>> quarantine;  // freed, but kept for late readers to see 0xDD
  std::size_t quarantined = 0;                           // bytes
};
Memory& memory() {
  static Memory* const instance = new Memory;  // never destroyed: stream threads outlive static objects
  return *instance;
}
constexpr std::size_t alignment = 256;
constexpr std::size_t max_quarantined = std::size_t{32} << 20;

std::uintptr_t address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

cudaError_t allocate(void** pointer, std::size_t bytes, cudaMemoryType type) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  Memory& m = memory();
  const int device = current_device();
  const std::lock_guard lock(m.mutex);
  if (type == cudaMemoryTypeDevice && (bytes > memory_limit() || m.used[device] > memory_limit() - bytes))
    return cudaErrorMemoryAllocation;
  void* fresh = nullptr;
  if (posix_memalign(&fresh, alignment, bytes) != 0) return cudaErrorMemoryAllocation;
  std::memset(fresh, 0xCD, bytes);
  if (type == cudaMemoryTypeDevice) m.used[device] += bytes;
  Allocation allocation;
  allocation.bytes = bytes;
  allocation.type = type;
  allocation.device = device;
  m.allocations[address(fresh)] = allocation;
  *pointer = fresh;
  return cudaSuccess;
}

/// Frees what `pointer` begins. With the mutex held.
void release(Memory& m, std::map<std::uintptr_t, Allocation>::iterator found) {
  void* const pointer = reinterpret_cast<void*>(found->first);
  const Allocation& allocation = found->second;
  const std::size_t bytes = allocation.bytes;
  if (allocation.type == cudaMemoryTypeDevice) m.used[allocation.device] -= bytes;
  std::memset(pointer, 0xDD, bytes);
  m.allocations.erase(found);
#if defined(__SANITIZE_ADDRESS__)
  std::free(pointer);  // AddressSanitizer has a quarantine of its own, and reports the access
#else
  m.quarantine.emplace_back(pointer, bytes);
  m.quarantined += bytes;
  while (m.quarantined > max_quarantined) {
    std::free(m.quarantine.front().first);
    m.quarantined -= m.quarantine.front().second;
    m.quarantine.pop_front();
  }
#endif
}

cudaError_t unsafe_call() {
  const std::lock_guard lock(api_mutex());
  return check_unsafe_call();
}

cudaError_t free_now(void* pointer, cudaMemoryType type, bool registered) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const auto found = m.allocations.find(address(pointer));
  if (found == m.allocations.end() || found->second.type != type || found->second.registered != registered ||
      found->second.released)
    return registered ? cudaErrorHostMemoryNotRegistered : cudaErrorInvalidValue;
  if (registered)
    m.allocations.erase(found);
  else
    release(m, found);
  return cudaSuccess;
}

/// Whether `kind` fits where the two sides are; all is one address space, so Default fits always.
bool direction_fits(cudaMemcpyKind kind, cudaMemoryType target, cudaMemoryType source) {
  const auto may_be_host = [](cudaMemoryType type) { return type != cudaMemoryTypeDevice; };
  const auto may_be_device = [](cudaMemoryType type) { return type != cudaMemoryTypeUnregistered; };
  switch (kind) {
    case cudaMemcpyHostToHost:
      return may_be_host(target) && may_be_host(source);
    case cudaMemcpyHostToDevice:
      return may_be_device(target) && may_be_host(source);
    case cudaMemcpyDeviceToHost:
      return may_be_host(target) && may_be_device(source);
    case cudaMemcpyDeviceToDevice:
      return may_be_device(target) && may_be_device(source);
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

/// Queues a copy. `pageable` tells whether a GPU would make the host wait: it reads into memory that is not pinned.
cudaError_t queue_copy(void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream,
                       bool& pageable) {
  pageable = false;
  if (bytes == 0) return cudaSuccess;
  cudaMemoryType to, from;
  int device = 0;
  if (const cudaError_t error = classify(target, bytes, to, device); error != cudaSuccess) return error;
  if (const cudaError_t error = classify(source, bytes, from, device); error != cudaSuccess) return error;
  if (!direction_fits(kind, to, from)) return cudaErrorInvalidMemcpyDirection;
  pageable = to == cudaMemoryTypeUnregistered && from == cudaMemoryTypeDevice;
  return submit_to(stream, {Operation::Kind::copy, [=] { std::memmove(target, source, bytes); }, nullptr});
}

}  // namespace

cudaError_t classify(const void* pointer, std::size_t bytes, cudaMemoryType& type, int& device) {
  type = cudaMemoryTypeUnregistered;
  device = -2;  // as cudaPointerGetAttributes has it
  if (pointer == nullptr) return cudaErrorInvalidValue;
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  auto after = m.allocations.upper_bound(address(pointer));
  if (after == m.allocations.begin()) return cudaSuccess;
  const auto& [begin, allocation] = *std::prev(after);
  const std::size_t offset = address(pointer) - begin;
  if (offset >= allocation.bytes) return cudaSuccess;
  if (allocation.released || bytes > allocation.bytes - offset) return cudaErrorInvalidValue;
  type = allocation.type;
  device = allocation.device;
  return cudaSuccess;
}

}  // namespace cuda_emulation::detail

using namespace cuda_emulation::detail;

std::size_t cuda_emulation::memory_in_use(int device) {
  const std::lock_guard lock(memory().mutex);
  return memory().used[device];
}

// ---- device memory
// ---------------------------------------------------------------------------------------------------
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return call("cudaMalloc", [&] {
    const cudaError_t error = unsafe_call();
    return error != cudaSuccess ? error : allocate(pointer, bytes, cudaMemoryTypeDevice);
  });
}
cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned int flags) {
  return call("cudaMallocManaged", [&] {
    if (flags != cudaMemAttachGlobal) return cudaErrorInvalidValue;
    const cudaError_t error = unsafe_call();
    return error != cudaSuccess ? error : allocate(pointer, bytes, cudaMemoryTypeManaged);
  });
}
cudaError_t cudaFree(void* pointer) {
  return call("cudaFree", [&] {
    if (pointer == nullptr) return cudaSuccess;
    if (const cudaError_t error = unsafe_call(); error != cudaSuccess) return error;
    cudaMemoryType type;
    int device = 0;
    if (classify(pointer, 1, type, device) != cudaSuccess ||
        (type != cudaMemoryTypeDevice && type != cudaMemoryTypeManaged))
      return cudaErrorInvalidValue;
    ++counters().host_waits;
    wait_for_device(device);
    return free_now(pointer, type, false);
  });
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t handle) {
  return call("cudaMallocAsync", [&] {
    {
      const std::lock_guard lock(api_mutex());
      const auto stream = find_stream(handle);
      if (stream == nullptr) return cudaErrorInvalidResourceHandle;
      if (stream->capture != nullptr) {  // CUDA makes it a node of the graph; the emulation does not
        stream->capture->invalid = true;
        return cudaErrorStreamCaptureUnsupported;
      }
    }
    return allocate(pointer, bytes, cudaMemoryTypeDevice);
  });
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t handle) {
  return call("cudaFreeAsync", [&] {
    if (pointer == nullptr) return cudaSuccess;
    const std::lock_guard lock(api_mutex());
    const auto stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) {
      stream->capture->invalid = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    Memory& m = memory();
    {
      const std::lock_guard memory_lock(m.mutex);
      const auto found = m.allocations.find(address(pointer));
      if (found == m.allocations.end() || found->second.type != cudaMemoryTypeDevice || found->second.released)
        return cudaErrorInvalidValue;
      found->second.released = true;
    }
    return submit(*stream, {Operation::Kind::bookkeeping,
                            [&m, pointer] {
                              const std::lock_guard memory_lock(m.mutex);
                              release(m, m.allocations.find(address(pointer)));
                            },
                            nullptr});
  });
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return call("cudaMemGetInfo", [&] {
    const std::lock_guard lock(memory().mutex);
    const std::size_t used = memory().used[current_device()];
    *total_bytes = memory_limit();
    *free_bytes = memory_limit() > used ? memory_limit() - used : 0;
    return cudaSuccess;
  });
}

// ---- pinned memory
// ---------------------------------------------------------------------------------------------------
cudaError_t cudaMallocHost(void** pointer, size_t bytes, unsigned int) {
  return call("cudaMallocHost", [&] {
    const cudaError_t error = unsafe_call();
    return error != cudaSuccess ? error : allocate(pointer, bytes, cudaMemoryTypeHost);
  });
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned int) {
  return call("cudaHostAlloc", [&] {
    const cudaError_t error = unsafe_call();
    return error != cudaSuccess ? error : allocate(pointer, bytes, cudaMemoryTypeHost);
  });
}
cudaError_t cudaFreeHost(void* pointer) {
  return call("cudaFreeHost", [&] {
    if (pointer == nullptr) return cudaSuccess;
    const cudaError_t error = unsafe_call();
    return error != cudaSuccess ? error : free_now(pointer, cudaMemoryTypeHost, false);
  });
}
cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned int) {
  return call("cudaHostRegister", [&] {
    if (pointer == nullptr || bytes == 0) return cudaErrorInvalidValue;
    if (const cudaError_t error = unsafe_call(); error != cudaSuccess) return error;
    cudaMemoryType type;
    int device = 0;
    if (classify(pointer, 1, type, device) != cudaSuccess || type != cudaMemoryTypeUnregistered)
      return cudaErrorHostMemoryAlreadyRegistered;
    const std::lock_guard lock(memory().mutex);
    Allocation allocation;
    allocation.bytes = bytes;
    allocation.type = cudaMemoryTypeHost;
    allocation.device = current_device();
    allocation.registered = true;
    memory().allocations[address(pointer)] = allocation;
    return cudaSuccess;
  });
}
cudaError_t cudaHostUnregister(void* pointer) {
  return call("cudaHostUnregister", [&] {
    const cudaError_t error = unsafe_call();
    return error != cudaSuccess ? error : free_now(pointer, cudaMemoryTypeHost, true);
  });
}
cudaError_t cudaHostGetDevicePointer(void** device_pointer, void* host_pointer, unsigned int flags) {
  return call("cudaHostGetDevicePointer", [&] {
    cudaMemoryType type;
    int device = 0;
    if (device_pointer == nullptr || flags != 0 || classify(host_pointer, 1, type, device) != cudaSuccess ||
        type != cudaMemoryTypeHost)
      return cudaErrorInvalidValue;
    *device_pointer = host_pointer;
    return cudaSuccess;
  });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return call("cudaPointerGetAttributes", [&] {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, const_cast<void*>(pointer)};
    if (pointer == nullptr || classify(pointer, 1, attributes->type, attributes->device) != cudaSuccess)
      return cudaSuccess;
    if (attributes->type != cudaMemoryTypeUnregistered) attributes->devicePointer = const_cast<void*>(pointer);
    if (attributes->type == cudaMemoryTypeDevice) attributes->hostPointer = nullptr;
    return cudaSuccess;
  });
}

// ---- copies
// ----------------------------------------------------------------------------------------------------------
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpyAsync", [&] {
    bool pageable = false;
    const cudaError_t error = queue_copy(target, source, bytes, kind, stream, pageable);
    // A GPU would wait here. Counted, but not done: CUDA promises no more than "may be synchronous".
    if (error == cudaSuccess && pageable) ++counters().host_waits;
    return error;
  });
}
cudaError_t cudaMemcpyPeerAsync(void* target, int target_device, const void* source, int source_device, size_t bytes,
                                cudaStream_t stream) {
  return call("cudaMemcpyPeerAsync", [&] {
    cudaMemoryType type;
    int device = 0;
    bool pageable = false;
    if (bytes == 0) return cudaSuccess;
    if (classify(target, bytes, type, device) != cudaSuccess || device != target_device) return cudaErrorInvalidValue;
    if (classify(source, bytes, type, device) != cudaSuccess || device != source_device) return cudaErrorInvalidValue;
    return queue_copy(target, source, bytes, cudaMemcpyDeviceToDevice, stream, pageable);
  });
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
  return call("cudaMemcpy", [&] {
    if (const cudaError_t error = unsafe_call(); error != cudaSuccess) return error;
    bool pageable = false;
    if (const cudaError_t error = queue_copy(target, source, bytes, kind, nullptr, pageable); error != cudaSuccess)
      return error;
    ++counters().host_waits;
    std::shared_ptr<CUstream_st> stream;
    {
      const std::lock_guard lock(api_mutex());
      stream = find_stream(nullptr);
    }
    wait_for(*stream);
    return device_failed(current_device()) ? cudaErrorLaunchFailure : cudaSuccess;
  });
}

namespace {
cudaError_t queue_set(void* target, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  cudaMemoryType type;
  int device = 0;
  if (classify(target, bytes, type, device) != cudaSuccess || type == cudaMemoryTypeUnregistered)
    return cudaErrorInvalidValue;
  return submit_to(stream, {Operation::Kind::device, [=] { std::memset(target, value, bytes); }, nullptr});
}
}  // namespace
cudaError_t cudaMemset(void* target, int value, size_t bytes) {
  return call("cudaMemset", [&] {
    const cudaError_t error = unsafe_call();
    return error != cudaSuccess ? error : queue_set(target, value, bytes, nullptr);
  });
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  return call("cudaMemsetAsync", [&] { return queue_set(target, value, bytes, stream); });
}
