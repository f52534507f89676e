// The GPUs of this machine.
#include <cuda_runtime_api.h>

#include <string>

#include "allnorm/device.hpp"
#include "src/runtime/cuda/errors.hpp"
#include "src/runtime/cuda/version.hpp"

namespace allnorm {

namespace {

std::string describe(int index) {
  cudaDeviceProp properties{};
  if (const cudaError_t status = cudaGetDeviceProperties(&properties, index); status != cudaSuccess) {
    cuda::ignore(status);
    return std::string("unusable: ") + cudaGetErrorString(status);
  }
  constexpr std::size_t gib = std::size_t{1} << 30;
  return std::string(properties.name) + ", compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ", " + std::to_string(properties.multiProcessorCount) +
         " multiprocessors, " + std::to_string(properties.totalGlobalMem / gib) + " GiB";
}

}  // namespace

int cuda_devices() noexcept {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cuda::ignore(status);
  return status == cudaSuccess ? count : 0;
}

std::string cuda_summary() {
  int driver = 0, count = 0;
  cuda::ignore(cudaDriverGetVersion(&driver));
  const cudaError_t status = cudaGetDeviceCount(&count);
  cuda::ignore(status);
  if (status != cudaSuccess || count == 0) {
    const std::string reason = cudaGetErrorString(status == cudaSuccess ? cudaErrorNoDevice : status);
    return driver == 0 ? "no CUDA driver: " + reason : "no GPU: " + reason + "; driver " + cuda::version_text(driver);
  }
  std::string text;
  for (int index = 0; index < count; ++index)
    text += (count > 1 ? to_string({DeviceKind::cuda, index}) + " " : "") + describe(index) + "; ";
  return text + "driver " + cuda::version_text(driver);
}

}  // namespace allnorm
