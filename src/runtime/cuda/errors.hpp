// Errors of the CUDA runtime as allnorm::Error, and the guards that every call of it stands under.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "allnorm/error.hpp"

namespace allnorm::cuda {

/// Throws Error device, "TRIED on cuda:0 failed: the runtime's text", unless `status` is success. The thread's last
/// error is cleared, so that the next call does not report it again (a sticky one comes back by itself).
inline void check(cudaError_t status, const char* tried, Where where = Where::here()) {
  if (status == cudaSuccess) return;
  int device = 0;
  (void)cudaGetDevice(&device);
  (void)cudaGetLastError();
  fail(Code::device,
       std::string(tried) + " on cuda:" + std::to_string(device) + " failed: " + cudaGetErrorString(status) + " (" +
           cudaGetErrorName(status) + ")",
       where);
}

/// For destructors: an error is cleared and forgotten.
inline void ignore(cudaError_t status) noexcept {
  if (status != cudaSuccess) (void)cudaGetLastError();
}

/// Makes `index` the calling thread's device, and the former one again at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index) {
    check(cudaGetDevice(&before_), "asking for the current device");
    changed_ = before_ != index;
    if (changed_) check(cudaSetDevice(index), "choosing a device");
  }
  ~DeviceGuard() {
    if (changed_) ignore(cudaSetDevice(before_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// Lets the calling thread make calls that are forbidden to it while a stream is being captured: cudaMalloc and its
/// like do not become part of the graph, they only must not fail.
class RelaxedCapture {
 public:
  RelaxedCapture() noexcept { ignore(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~RelaxedCapture() { ignore(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace allnorm::cuda
