// Streams: an OS thread each, which runs what was queued in order.
#include "stream.hpp"

#include <set>

#include "cuda_runtime_api.h"

namespace cuda_emulation::detail {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<const CUstream_st*, std::shared_ptr<CUstream_st>> streams;
  std::shared_ptr<CUstream_st> defaults[max_devices];
  std::vector<std::shared_ptr<Capture>> captures;
  unsigned long long next_id = 1;
};
Registry& registry() {
  static Registry* const instance = new Registry;  // never destroyed: stream threads outlive static objects
  return *instance;
}

void work(const std::shared_ptr<CUstream_st>& stream) {
  current_device() = stream->device;
  std::unique_lock lock(stream->mutex);
  for (;;) {
    stream->work.wait(lock, [&] { return !stream->queue.empty() || stream->destroyed; });
    if (stream->queue.empty()) return;
    {
      const Operation operation = std::move(stream->queue.front());
      stream->queue.pop_front();
      lock.unlock();
      if (operation.kind == Operation::Kind::bookkeeping || !device_failed(stream->device)) {
        in_host_function() = operation.kind == Operation::Kind::host_function;
        operation.run();
        in_host_function() = false;
      }
    }
    lock.lock();
    ++stream->completed;
    stream->idle.notify_all();
  }
}

std::shared_ptr<CUstream_st> make_stream(int device, unsigned int flags, int priority) {
  auto stream = std::make_shared<CUstream_st>();
  stream->device = device;
  stream->flags = flags;
  stream->priority = priority;
  stream->id = registry().next_id++;
  std::thread(work, stream).detach();
  return stream;
}

cudaError_t create(const char* name, cudaStream_t* handle, unsigned int flags, int priority) {
  return call(name, [&] {
    if (handle == nullptr || (flags & ~cudaStreamNonBlocking) != 0) return cudaErrorInvalidValue;
    const std::lock_guard lock(api_mutex());
    const auto stream = make_stream(current_device(), flags, priority);
    registry().streams[stream.get()] = stream;
    *handle = stream.get();
    return cudaSuccess;
  });
}

template <class F>
cudaError_t with_stream(const char* name, cudaStream_t handle, F&& body) {
  return call(name, [&]() -> cudaError_t {
    const std::lock_guard lock(api_mutex());
    const auto stream = find_stream(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : body(*stream);
  });
}

std::vector<std::shared_ptr<CUstream_st>> streams_of(int device) {
  const std::lock_guard lock(api_mutex());
  std::vector<std::shared_ptr<CUstream_st>> result;
  if (registry().defaults[device] != nullptr) result.push_back(registry().defaults[device]);
  for (const auto& [handle, stream] : registry().streams)
    if (stream->device == device) result.push_back(stream);
  return result;
}

}  // namespace

std::mutex& api_mutex() { return registry().mutex; }
std::vector<std::shared_ptr<Capture>>& open_captures() { return registry().captures; }

std::shared_ptr<CUstream_st> find_stream(cudaStream_t handle) {
  Registry& r = registry();
  if (handle == nullptr || handle == cudaStreamLegacy) {
    auto& stream = r.defaults[current_device()];
    if (stream == nullptr) stream = make_stream(current_device(), cudaStreamDefault, 0);
    return stream;
  }
  const auto found = r.streams.find(handle);
  return found == r.streams.end() ? nullptr : found->second;
}

cudaError_t submit(CUstream_st& stream, Operation operation) {
  if (stream.capture != nullptr) {
    Capture& capture = *stream.capture;
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    capture.operations.push_back(std::move(operation));
    ++capture.branches[&stream][&stream];
    return cudaSuccess;
  }
  if (registry().defaults[stream.device].get() == &stream) {
    for (const auto& [handle, other] : registry().streams) {
      if (other->capture == nullptr || other->device != stream.device || other->flags == cudaStreamNonBlocking)
        continue;
      other->capture->invalid = true;
      return cudaErrorStreamCaptureImplicit;
    }
  }
  if (operation.kind == Operation::Kind::kernel) log_launch(operation.kernel);
  if (operation.kind == Operation::Kind::copy) ++counters().copies;
  const std::lock_guard lock(stream.mutex);
  stream.queue.push_back(std::move(operation));
  ++stream.queued;
  stream.work.notify_one();
  return cudaSuccess;
}

cudaError_t submit_to(cudaStream_t handle, Operation operation) {
  const std::lock_guard lock(api_mutex());
  const auto stream = find_stream(handle);
  return stream == nullptr ? cudaErrorInvalidResourceHandle : submit(*stream, std::move(operation));
}

void wait_for(CUstream_st& stream) {
  std::unique_lock lock(stream.mutex);
  const std::uint64_t target = stream.queued;
  stream.idle.wait(lock, [&] { return stream.completed >= target; });
}
void wait_for_device(int device) {
  for (const auto& stream : streams_of(device)) wait_for(*stream);
}
void wait_for_all_streams() {
  for (int device = 0; device < device_count(); ++device) wait_for_device(device);
}

void Mark::set() {
  const std::lock_guard lock(mutex);
  time = std::chrono::steady_clock::now();
  done = true;
  changed.notify_all();
}
void Mark::wait() {
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return done; });
}
bool Mark::ready() {
  const std::lock_guard lock(mutex);
  return done;
}

}  // namespace cuda_emulation::detail

using namespace cuda_emulation::detail;

// ---- streams
// ---------------------------------------------------------------------------------------------------------
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return create("cudaStreamCreate", stream, cudaStreamDefault, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return create("cudaStreamCreateWithFlags", stream, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int priority) {
  return create("cudaStreamCreateWithPriority", stream, flags, priority);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return call("cudaStreamDestroy", [&] {
    const std::lock_guard lock(api_mutex());
    const auto found = registry().streams.find(handle);
    if (found == registry().streams.end()) return cudaErrorInvalidResourceHandle;
    CUstream_st& stream = *found->second;
    if (stream.capture != nullptr) stream.capture->invalid = true;
    {
      const std::lock_guard stream_lock(stream.mutex);  // its thread finishes what is queued, then ends
      stream.destroyed = true;
      stream.work.notify_one();
    }
    registry().streams.erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return call("cudaStreamSynchronize", [&] {
    std::shared_ptr<CUstream_st> stream;
    {
      const std::lock_guard lock(api_mutex());
      stream = find_stream(handle);
      if (stream == nullptr) return cudaErrorInvalidResourceHandle;
      if (stream->capture != nullptr) {
        stream->capture->invalid = true;
        return cudaErrorStreamCaptureUnsupported;
      }
    }
    ++counters().host_waits;
    wait_for(*stream);
    return device_failed(stream->device) ? cudaErrorLaunchFailure : cudaSuccess;
  });
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return with_stream("cudaStreamQuery", handle, [](CUstream_st& stream) {
    if (stream.capture != nullptr) {
      stream.capture->invalid = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    const std::lock_guard lock(stream.mutex);
    return stream.completed < stream.queued ? cudaErrorNotReady : cudaSuccess;
  });
}
cudaError_t cudaDeviceSynchronize() {
  return call("cudaDeviceSynchronize", [] {
    {
      const std::lock_guard lock(api_mutex());
      if (const cudaError_t error = check_unsafe_call(); error != cudaSuccess) return error;
    }
    ++counters().host_waits;
    wait_for_device(current_device());
    return device_failed(current_device()) ? cudaErrorLaunchFailure : cudaSuccess;
  });
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned int* flags) {
  return with_stream("cudaStreamGetFlags", handle, [&](CUstream_st& stream) {
    *flags = stream.flags;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  return with_stream("cudaStreamGetPriority", handle, [&](CUstream_st& stream) {
    *priority = stream.priority;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  return with_stream("cudaStreamGetDevice", handle, [&](CUstream_st& stream) {
    *device = stream.device;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
  return with_stream("cudaStreamGetId", handle, [&](CUstream_st& stream) {
    *id = stream.id;
    return cudaSuccess;
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  return call("cudaLaunchHostFunc", [&] {
    if (function == nullptr) return cudaErrorInvalidValue;
    return submit_to(handle, {Operation::Kind::host_function, [function, data] { function(data); }, nullptr});
  });
}
