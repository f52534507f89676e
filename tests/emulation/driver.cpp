// Stream memory operations of the driver, and how a program gets at them without linking it.
#include <chrono>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "cuda.h"
#include "cuda_runtime_api.h"
#include "stream.hpp"

namespace cuda_emulation::detail {
namespace {

CUresult driver_error(cudaError_t error) { return static_cast<CUresult>(error); }  // those used here have equal numbers

/// What both operations ask of the address: aligned, and inside memory that the device can reach.
template <class T>
T* location(CUdeviceptr address) {
  auto* const pointer = reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
  cudaMemoryType type;
  int device = 0;
  if (address % sizeof(T) != 0 || classify(pointer, sizeof(T), type, device) != cudaSuccess) return nullptr;
  return type == cudaMemoryTypeUnregistered ? nullptr : pointer;
}

template <class T>
CUresult write_value(const char* name, CUstream stream, CUdeviceptr address, T value, unsigned flags) {
  return driver_error(call(name, [&] {
    T* const target = location<T>(address);
    if (target == nullptr || flags > CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER) return cudaErrorInvalidValue;
    return submit_to(stream, {Operation::Kind::device,
                              [target, value] { __atomic_store_n(target, value, __ATOMIC_SEQ_CST); }, nullptr});
  }));
}

template <class T>
bool holds(T seen, T value, unsigned condition) {
  switch (condition) {
    case CU_STREAM_WAIT_VALUE_GEQ:  // cyclic, as the driver has it
      return static_cast<std::make_signed_t<T>>(seen - value) >= 0;
    case CU_STREAM_WAIT_VALUE_EQ:
      return seen == value;
    case CU_STREAM_WAIT_VALUE_AND:
      return (seen & value) != 0;
    default:
      return static_cast<T>(~(seen | value)) != 0;
  }
}

template <class T>
CUresult wait_value(const char* name, CUstream handle, CUdeviceptr address, T value, unsigned flags) {
  return driver_error(call(name, [&] {
    T* const source = location<T>(address);
    const unsigned condition = flags & ~static_cast<unsigned>(CU_STREAM_WAIT_VALUE_FLUSH);
    if (source == nullptr || condition > CU_STREAM_WAIT_VALUE_NOR) return cudaErrorInvalidValue;
    const auto wait = [source, value, condition] {
      for (int round = 0; !holds(__atomic_load_n(source, __ATOMIC_SEQ_CST), value, condition); ++round) {
        if (device_failed(current_device())) return;
        if (round < 100)
          std::this_thread::yield();
        else
          std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    };
    return submit_to(handle, {Operation::Kind::device, wait, nullptr});
  }));
}

struct Entry {
  std::string_view name;
  void* function;
};
template <class F>
void* address_of(F* function) {
  return reinterpret_cast<void*>(function);
}

cudaError_t entry_point(const char* call_name, const char* symbol, void** function,
                        cudaDriverEntryPointQueryResult* status) {
  return call(call_name, [&] {
    if (symbol == nullptr || function == nullptr) return cudaErrorInvalidValue;
    const Entry entries[] = {
        {"cuGetErrorString", address_of(&cuGetErrorString)},
        {"cuGetErrorName", address_of(&cuGetErrorName)},
        {"cuModuleGetLoadingMode", address_of(&cuModuleGetLoadingMode)},
        {"cuStreamWriteValue32", address_of(&cuStreamWriteValue32)},
        {"cuStreamWriteValue64", address_of(&cuStreamWriteValue64)},
        {"cuStreamWaitValue32", address_of(&cuStreamWaitValue32)},
        {"cuStreamWaitValue64", address_of(&cuStreamWaitValue64)},
    };
    *function = nullptr;
    for (const Entry& entry : entries)
      if (entry.name == symbol) *function = entry.function;
    if (status != nullptr)
      *status = *function != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
  });
}

}  // namespace
}  // namespace cuda_emulation::detail

using namespace cuda_emulation::detail;

CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode* mode) {
  const char* asked = std::getenv("CUDA_MODULE_LOADING");
  *mode = asked != nullptr && std::string_view(asked) == "EAGER" ? CU_MODULE_EAGER_LOADING : CU_MODULE_LAZY_LOADING;
  return CUDA_SUCCESS;
}
CUresult cuStreamWriteValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned int flags) {
  return write_value("cuStreamWriteValue32", stream, address, value, flags);
}
CUresult cuStreamWriteValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned int flags) {
  return write_value("cuStreamWriteValue64", stream, address, value, flags);
}
CUresult cuStreamWaitValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned int flags) {
  return wait_value("cuStreamWaitValue32", stream, address, value, flags);
}
CUresult cuStreamWaitValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned int flags) {
  return wait_value("cuStreamWaitValue64", stream, address, value, flags);
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char** text) {
  *text = cudaGetErrorName(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned int, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  return entry_point("cudaGetDriverEntryPointByVersion", symbol, function, status);
}
cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* status) {
  return entry_point("cudaGetDriverEntryPoint", symbol, function, status);
}
