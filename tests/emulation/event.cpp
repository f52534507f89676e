// Events: marks in a stream's order, and edges between the streams of a capture.
#include <set>

#include "cuda_runtime_api.h"
#include "stream.hpp"

namespace cuda_emulation::detail {
namespace {

std::set<const CUevent_st*>& events() {
  static auto* const instance = new std::set<const CUevent_st*>;  // under api_mutex
  return *instance;
}

cudaError_t create(const char* name, cudaEvent_t* handle, unsigned int flags) {
  return call(name, [&] {
    if (handle == nullptr || flags > (cudaEventBlockingSync | cudaEventDisableTiming)) return cudaErrorInvalidValue;
    auto* const event = new CUevent_st;
    event->flags = flags;
    event->device = current_device();
    const std::lock_guard lock(api_mutex());
    events().insert(event);
    *handle = event;
    return cudaSuccess;
  });
}

/// The event's mark, for a call that asks how far it is. With api_mutex held.
cudaError_t mark_of(cudaEvent_t event, std::shared_ptr<Mark>& mark) {
  if (events().count(event) == 0) return cudaErrorInvalidResourceHandle;
  mark = event->mark;
  if (mark != nullptr && mark->capture != nullptr) {
    mark->capture->invalid = true;
    return cudaErrorCapturedEvent;
  }
  return cudaSuccess;
}

/// The stream waits for a mark of a capture: it joins that capture, or learns in it what came before.
cudaError_t wait_in_capture(CUstream_st& stream, const Mark& mark) {
  Capture& capture = *mark.capture;
  if (capture.ended) return cudaErrorCapturedEvent;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  if (stream.capture != nullptr && stream.capture != mark.capture) {
    capture.invalid = stream.capture->invalid = true;
    return cudaErrorStreamCaptureMerge;
  }
  stream.capture = mark.capture;
  Clock& known = capture.branches[&stream];
  for (const auto& [other, count] : mark.clock) known[other] = std::max(known[other], count);
  return cudaSuccess;
}

}  // namespace
}  // namespace cuda_emulation::detail

using namespace cuda_emulation::detail;

cudaError_t cudaEventCreate(cudaEvent_t* event) { return create("cudaEventCreate", event, cudaEventDefault); }
cudaError_t cudaEventCreate(cudaEvent_t* event, unsigned int flags) { return create("cudaEventCreate", event, flags); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return create("cudaEventCreateWithFlags", event, flags);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call("cudaEventDestroy", [&] {
    const std::lock_guard lock(api_mutex());
    if (events().erase(event) == 0) return cudaErrorInvalidResourceHandle;
    delete event;  // what waits for its mark shares that
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return call("cudaEventRecord", [&] {
    const std::lock_guard lock(api_mutex());
    const auto stream = find_stream(handle);
    if (stream == nullptr || events().count(event) == 0 || event->device != stream->device)
      return cudaErrorInvalidResourceHandle;
    auto mark = std::make_shared<Mark>();
    if (stream->capture != nullptr) {
      if (stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
      mark->capture = stream->capture;
      mark->clock = stream->capture->branches[stream.get()];
      event->mark = mark;
      return cudaSuccess;
    }
    event->mark = mark;
    return submit(*stream, {Operation::Kind::bookkeeping, [mark] { mark->set(); }, nullptr});
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int) {
  return call("cudaStreamWaitEvent", [&] {
    const std::lock_guard lock(api_mutex());
    const auto stream = find_stream(handle);
    if (stream == nullptr || events().count(event) == 0) return cudaErrorInvalidResourceHandle;
    const auto mark = event->mark;
    if (mark == nullptr) return cudaSuccess;
    if (mark->capture != nullptr) return wait_in_capture(*stream, *mark);
    if (stream->capture != nullptr) {
      stream->capture->invalid = true;
      return cudaErrorStreamCaptureIsolation;
    }
    return submit(*stream, {Operation::Kind::bookkeeping, [mark] { mark->wait(); }, nullptr});
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call("cudaEventQuery", [&] {
    const std::lock_guard lock(api_mutex());
    std::shared_ptr<Mark> mark;
    if (const cudaError_t error = mark_of(event, mark); error != cudaSuccess) return error;
    if (const cudaError_t error = check_unsafe_call(); error != cudaSuccess) return error;
    return mark == nullptr || mark->ready() ? cudaSuccess : cudaErrorNotReady;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call("cudaEventSynchronize", [&] {
    std::shared_ptr<Mark> mark;
    {
      const std::lock_guard lock(api_mutex());
      if (const cudaError_t error = mark_of(event, mark); error != cudaSuccess) return error;
      if (const cudaError_t error = check_unsafe_call(); error != cudaSuccess) return error;
    }
    ++counters().host_waits;
    if (mark != nullptr) mark->wait();
    return device_failed(current_device()) ? cudaErrorLaunchFailure : cudaSuccess;
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return call("cudaEventElapsedTime", [&] {
    const std::lock_guard lock(api_mutex());
    std::shared_ptr<Mark> first, last;
    if (const cudaError_t error = mark_of(start, first); error != cudaSuccess) return error;
    if (const cudaError_t error = mark_of(end, last); error != cudaSuccess) return error;
    if (first == nullptr || last == nullptr || ((start->flags | end->flags) & cudaEventDisableTiming) != 0)
      return cudaErrorInvalidResourceHandle;
    if (!first->ready() || !last->ready()) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(last->time - first->time).count();
    return cudaSuccess;
  });
}
