// Errors, planned faults, counters and limits of the emulated runtime.
#include "runtime.hpp"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <vector>

#include "cuda_emulation.hpp"
#include "cuda_runtime_api.h"
#include "stream.hpp"

namespace cuda_emulation {
namespace detail {
namespace {

/// A whole number from the environment.
std::uint64_t from_environment(const char* name, std::uint64_t fallback) {
  const char* const text = std::getenv(name);
  return text == nullptr || *text == '\0' ? fallback : std::strtoull(text, nullptr, 10);
}
std::size_t default_memory_limit() { return from_environment("ALLNORM_EMULATION_MEMORY", std::uint64_t{2} << 30); }

struct State {
  std::mutex mutex;
  std::map<std::string, std::deque<cudaError_t>, std::less<>> faults;
  std::string failures[max_devices];
  std::atomic<bool> failed[max_devices]{};
  std::vector<const void*> launched;
  std::atomic<std::uint64_t> seed{from_environment("ALLNORM_EMULATION_SEED", 1)}, launch{0};
  std::atomic<std::size_t> memory_limit{default_memory_limit()};
  Counters counters;
};
State& state() {
  static State* const instance = new State;  // never destroyed: stream threads outlive static objects
  return *instance;
}

thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

int device_count() {
  static const int count = [] {
    const auto wanted = from_environment("ALLNORM_EMULATION_DEVICES", 2);
    return wanted > max_devices ? max_devices : static_cast<int>(wanted);
  }();
  return count;
}
int& current_device() {
  thread_local int device = 0;
  return device;
}
bool& in_host_function() {
  thread_local bool inside = false;
  return inside;
}
Counters& counters() { return state().counters; }
std::size_t memory_limit() { return state().memory_limit; }
std::uint64_t next_launch_seed() {
  State& s = state();
  return s.seed * 0xd1342543de82ef95u + s.launch.fetch_add(1);
}
void log_launch(const void* kernel) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.launched.push_back(kernel);
}

void set_failure(int device, std::string reason) {
  State& s = state();
  std::fprintf(stderr, "emulated CUDA: device %d: %s\n", device, reason.c_str());
  const std::lock_guard lock(s.mutex);
  if (s.failed[device]) return;  // the first one counts
  s.failures[device] = std::move(reason);
  s.failed[device] = true;
}
bool device_failed(int device) { return state().failed[device]; }

cudaError_t enter(std::string_view name) {
  if (in_host_function()) return cudaErrorNotPermitted;
  if (device_count() == 0) return cudaErrorNoDevice;
  State& s = state();
  {
    const std::lock_guard lock(s.mutex);
    const auto planned = s.faults.find(name);
    if (planned != s.faults.end()) {
      const cudaError_t error = planned->second.front();
      planned->second.pop_front();
      if (planned->second.empty()) s.faults.erase(planned);
      return error;
    }
  }
  return device_failed(current_device()) ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t record(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace detail

// ---- for tests
// -------------------------------------------------------------------------------------------------------
void fail_next(std::string_view name, cudaError_t error) {
  auto& s = detail::state();
  const std::lock_guard lock(s.mutex);
  s.faults[std::string(name)].push_back(error);
}
std::size_t launches() {
  auto& s = detail::state();
  const std::lock_guard lock(s.mutex);
  return s.launched.size();
}
std::size_t copies() { return detail::counters().copies; }
std::size_t most_cooperative_blocks() { return detail::counters().most_cooperative_blocks; }
std::size_t host_waits() { return detail::counters().host_waits; }
std::vector<std::string> launched_kernels() {
  auto& s = detail::state();
  const std::lock_guard lock(s.mutex);
  std::vector<std::string> names;
  for (const void* kernel : s.launched) names.push_back(detail::kernel_name(kernel));
  return names;
}
void set_memory_limit(std::size_t bytes) { detail::state().memory_limit = bytes; }
void set_seed(std::uint64_t seed) {
  detail::state().seed = seed;
  detail::state().launch = 0;
}
std::string failure() {
  auto& s = detail::state();
  const std::lock_guard lock(s.mutex);
  return s.failures[detail::current_device()];
}
void reset() {
  detail::wait_for_all_streams();
  auto& s = detail::state();
  const std::lock_guard lock(s.mutex);
  s.faults.clear();
  s.launched.clear();
  for (int device = 0; device < detail::max_devices; ++device) {
    s.failed[device] = false;
    s.failures[device].clear();
  }
  s.counters.copies = 0;
  s.counters.most_cooperative_blocks = 0;
  s.counters.host_waits = 0;
  s.memory_limit = detail::default_memory_limit();
  detail::last_error = cudaSuccess;
}

}  // namespace cuda_emulation

// ---- errors
// ----------------------------------------------------------------------------------------------------------
namespace {
struct Named {
  cudaError_t error;
  const char* name;
  const char* text;
};
constexpr Named errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "driver version is too old for the runtime"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice", "no kernel image for the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorSymbolNotFound, "cudaErrorSymbolNotFound", "named symbol not found"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorPeerAccessAlreadyEnabled, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered", "memory is already registered"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered", "memory is not registered"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorCooperativeLaunchTooLarge, "cudaErrorCooperativeLaunchTooLarge", "too many blocks in cooperative launch"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not ended where it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};
}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  for (const Named& named : errors)
    if (named.error == error) return named.name;
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  for (const Named& named : errors)
    if (named.error == error) return named.text;
  return "unrecognized error code";
}
cudaError_t cudaGetLastError() {
  using namespace cuda_emulation::detail;
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return device_failed(current_device()) ? cudaErrorLaunchFailure : error;
}
cudaError_t cudaPeekAtLastError() {
  using namespace cuda_emulation::detail;
  return device_failed(current_device()) ? cudaErrorLaunchFailure : last_error;
}
