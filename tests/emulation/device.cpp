// Devices: their number, properties and attributes, and the parts of the runtime that belong to them.
#include <cstdio>
#include <cstring>
#include <iterator>

#include "cuda_runtime_api.h"
#include "runtime.hpp"

using namespace cuda_emulation::detail;

namespace {
bool known(int device) { return device >= 0 && device < device_count(); }
/// One pool per device, which the runtime names by an address.
char pools[max_devices];
cudaMemPool_t pool_of(int device) { return reinterpret_cast<cudaMemPool_t>(&pools[device]); }
bool is_pool(cudaMemPool_t pool) {
  for (int device = 0; device < device_count(); ++device)
    if (pool == pool_of(device)) return true;
  return false;
}

struct Attribute {
  cudaDeviceAttr attribute;
  int value;
};
constexpr Attribute attributes[] = {
    {cudaDevAttrMaxThreadsPerBlock, Model::max_threads_per_block},
    {cudaDevAttrMaxGridDimX, 0x7fffffff},
    {cudaDevAttrMaxGridDimY, 65535},
    {cudaDevAttrMaxGridDimZ, 65535},
    {cudaDevAttrMaxSharedMemoryPerBlock, static_cast<int>(Model::shared_per_block)},
    {cudaDevAttrWarpSize, 32},
    {cudaDevAttrMaxRegistersPerBlock, Model::registers},
    {cudaDevAttrMultiProcessorCount, Model::multiprocessors},
    {cudaDevAttrIntegrated, 0},
    {cudaDevAttrCanMapHostMemory, 1},
    {cudaDevAttrConcurrentKernels, 1},
    {cudaDevAttrL2CacheSize, Model::l2_bytes},
    {cudaDevAttrMaxThreadsPerMultiProcessor, Model::max_threads_per_multiprocessor},
    {cudaDevAttrAsyncEngineCount, 1},
    {cudaDevAttrUnifiedAddressing, 1},
    {cudaDevAttrComputeCapabilityMajor, 9},
    {cudaDevAttrComputeCapabilityMinor, 0},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, static_cast<int>(Model::shared_per_multiprocessor)},
    {cudaDevAttrMaxRegistersPerMultiprocessor, Model::registers},
    {cudaDevAttrHostNativeAtomicSupported, 0},
    {cudaDevAttrPageableMemoryAccess, 0},
    {cudaDevAttrCanUseHostPointerForRegisteredMem, 1},
    {cudaDevAttrCooperativeLaunch, 1},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, static_cast<int>(Model::shared_per_block_optin)},
    {cudaDevAttrMaxBlocksPerMultiprocessor, Model::max_blocks_per_multiprocessor},
    {cudaDevAttrReservedSharedMemoryPerBlock, static_cast<int>(Model::shared_reserved_per_block)},
    {cudaDevAttrMemoryPoolsSupported, 1},
};
}  // namespace

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return call("cudaGetDeviceCount", [] { return cudaSuccess; });
}
cudaError_t cudaSetDevice(int device) {
  return call("cudaSetDevice", [&] {
    if (!known(device)) return cudaErrorInvalidDevice;
    current_device() = device;
    return cudaSuccess;
  });
}
cudaError_t cudaGetDevice(int* device) {
  return call("cudaGetDevice", [&] {
    *device = current_device();
    return cudaSuccess;
  });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call("cudaGetDeviceProperties", [&] {
    if (!known(device)) return cudaErrorInvalidDevice;
    cudaDeviceProp p{};
    std::snprintf(p.name, sizeof(p.name), "emulated device %d", device);
    p.uuid.bytes[15] = static_cast<char>(device);
    p.totalGlobalMem = memory_limit();
    p.sharedMemPerBlock = Model::shared_per_block;
    p.regsPerBlock = p.regsPerMultiprocessor = Model::registers;
    p.warpSize = 32;
    p.maxThreadsPerBlock = Model::max_threads_per_block;
    p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
    p.maxThreadsDim[2] = 64;
    p.maxGridSize[0] = 0x7fffffff;
    p.maxGridSize[1] = p.maxGridSize[2] = 65535;
    p.totalConstMem = 65536;
    p.major = 9;
    p.multiProcessorCount = Model::multiprocessors;
    p.canMapHostMemory = p.concurrentKernels = p.asyncEngineCount = p.unifiedAddressing = 1;
    p.cooperativeLaunch = p.memoryPoolsSupported = 1;
    p.pciBusID = device + 1;
    p.l2CacheSize = Model::l2_bytes;
    p.maxThreadsPerMultiProcessor = Model::max_threads_per_multiprocessor;
    p.maxBlocksPerMultiProcessor = Model::max_blocks_per_multiprocessor;
    p.sharedMemPerMultiprocessor = Model::shared_per_multiprocessor;
    p.sharedMemPerBlockOptin = Model::shared_per_block_optin;
    p.reservedSharedMemPerBlock = Model::shared_reserved_per_block;
    *properties = p;
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", [&] {
    if (!known(device)) return cudaErrorInvalidDevice;
    if (attribute == cudaDevAttrPciBusId) {
      *value = device + 1;
      return cudaSuccess;
    }
    for (const Attribute& row : attributes) {
      if (row.attribute != attribute) continue;
      *value = row.value;
      return cudaSuccess;
    }
    return cudaErrorInvalidValue;
  });
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  return call("cudaDeviceGetPCIBusId", [&] {
    if (!known(device)) return cudaErrorInvalidDevice;
    if (length < 13) return cudaErrorInvalidValue;
    std::snprintf(id, static_cast<std::size_t>(length), "0000:%02X:00.0", static_cast<unsigned>(device + 1));
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return call("cudaDeviceCanAccessPeer", [&] {
    if (!known(device) || !known(peer)) return cudaErrorInvalidDevice;
    *can = device != peer ? 1 : 0;
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
  return call("cudaDeviceEnablePeerAccess", [&] {
    if (!known(peer) || peer == current_device()) return cudaErrorInvalidDevice;
    return flags != 0 ? cudaErrorInvalidValue : cudaSuccess;
  });
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call("cudaDeviceGetStreamPriorityRange", [&] {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
  });
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// ---- the default memory pool: there, and its settings are accepted
// -----------------------------------------------------
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  return call("cudaDeviceGetDefaultMemPool", [&] {
    if (!known(device)) return cudaErrorInvalidDevice;
    *pool = pool_of(device);
    return cudaSuccess;
  });
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void* value) {
  return call("cudaMemPoolSetAttribute",
              [&] { return is_pool(pool) && value != nullptr ? cudaSuccess : cudaErrorInvalidValue; });
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t) {
  return call("cudaMemPoolTrimTo", [&] { return is_pool(pool) ? cudaSuccess : cudaErrorInvalidValue; });
}
