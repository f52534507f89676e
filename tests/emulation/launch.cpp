// Kernel launches: the checks of the configuration, and the grid's blocks in a shuffled order.
#include "emulation/launch.h"

#include <algorithm>
#include <map>

#include "block.hpp"
#include "stream.hpp"

namespace cuda_emulation::detail {
namespace {

/// What is known of a kernel. Its static shared memory is the most that a block of it has come to: CUDA knows it from
/// the compiler, here a kernel has to run first.
struct Function {
  bool has_run = false;
  std::size_t static_shared = 0;
  std::map<int, std::size_t> max_dynamic_shared;  // by device, where cudaFuncSetAttribute was called

  std::size_t most_dynamic(int device) const {
    const auto found = max_dynamic_shared.find(device);
    return found == max_dynamic_shared.end() ? Model::shared_per_block - static_shared : found->second;
  }
  /// What a launch leaves to shared variables.
  std::size_t static_room(int device, std::size_t dynamic) const {
    const auto found = max_dynamic_shared.find(device);
    return found == max_dynamic_shared.end() ? Model::shared_per_block - dynamic
                                             : Model::shared_per_block_optin - found->second;
  }
};
struct Functions {
  std::mutex mutex;
  std::map<const void*, Function> known;
};
Functions& functions() {
  static Functions* const instance = new Functions;
  return *instance;
}
Function function_of(const void* function) {
  const std::lock_guard lock(functions().mutex);
  return functions().known[function];
}
void note_run(const void* function, const Block& block) {
  const std::lock_guard lock(functions().mutex);
  Function& known = functions().known[function];
  known.has_run = true;
  known.static_shared = std::max(known.static_shared, block.static_bytes());
}

/// Blocks of a multiprocessor: what threads, registers, shared memory and the model's limit allow.
int occupancy(int threads, std::size_t shared) {
  if (threads < 1 || threads > Model::max_threads_per_block) return 0;
  const int rounded = (threads + 31) / 32 * 32;
  const int by_threads = Model::max_threads_per_multiprocessor / rounded;
  const int by_registers = Model::registers / (Model::registers_per_thread * rounded);
  const auto by_shared =
      static_cast<int>(Model::shared_per_multiprocessor / (shared + Model::shared_reserved_per_block));
  return std::min({by_threads, by_registers, by_shared, Model::max_blocks_per_multiprocessor});
}

std::size_t volume(dim3 extent) { return std::size_t{extent.x} * extent.y * extent.z; }
uint3 unflatten(std::size_t flat, dim3 extent) {
  return {static_cast<unsigned>(flat % extent.x), static_cast<unsigned>(flat / extent.x % extent.y),
          static_cast<unsigned>(flat / extent.x / extent.y)};
}

cudaError_t check(const cudaLaunchConfig_t& config, const Function& function) {
  const dim3 block = config.blockDim, grid = config.gridDim;
  if (volume(block) == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 ||
      volume(block) > Model::max_threads_per_block)
    return cudaErrorInvalidConfiguration;
  if (volume(grid) == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  return config.dynamicSmemBytes > function.most_dynamic(current_device()) ? cudaErrorInvalidValue : cudaSuccess;
}

/// One block after the other on the calling thread. Returns why it failed; empty if it did not.
std::string run_in_turn(const Grid& grid, std::uint64_t seed) {
  BlockLease block;
  Shuffler shuffler(seed);
  std::vector<std::uint32_t> order(volume(grid.extent));
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t other = shuffler.below(i + 1);
    order[i] = order[other];
    order[other] = static_cast<std::uint32_t>(i);
  }
  for (const std::uint32_t flat : order) {
    auto failure = (*block).run(grid, unflatten(flat, grid.extent), shuffler.next(), nullptr);
    note_run(grid.function, *block);
    if (!failure.empty()) return failure;
  }
  return {};
}

/// All blocks at once, each on an OS thread.
std::string run_together(const Grid& grid, std::uint64_t seed) {
  const std::size_t count = volume(grid.extent);
  GridBarrier barrier(count);
  std::vector<std::thread> threads;
  for (std::size_t flat = 0; flat < count; ++flat) {
    threads.emplace_back([&, flat] {
      BlockLease block;
      (*block).run(grid, unflatten(flat, grid.extent), seed * 0x9e3779b97f4a7c15u + flat, &barrier);
      note_run(grid.function, *block);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return barrier.reason();  // of the block that failed first: the others fail in its wake
}

}  // namespace

cudaError_t launch(const char* name, const cudaLaunchConfig_t& config, const void* function,
                   std::function<void()> body) {
  return call(name, [&]() -> cudaError_t {
    const Function known = function_of(function);
    if (const cudaError_t error = check(config, known); error != cudaSuccess) return error;
    bool cooperative = false;
    for (unsigned i = 0; i < config.numAttrs; ++i) {
      const cudaLaunchAttribute& attribute = config.attrs[i];
      if (attribute.id == cudaLaunchAttributeCooperative) cooperative = attribute.val.cooperative != 0;
      if (attribute.id != cudaLaunchAttributeClusterDimension) continue;
      const auto& cluster = attribute.val.clusterDim;
      if (cluster.x * cluster.y * cluster.z > 1) return cudaErrorNotSupported;
    }
    const int resident =
        occupancy(static_cast<int>(volume(config.blockDim)), known.static_shared + config.dynamicSmemBytes);
    if (cooperative && volume(config.gridDim) > static_cast<std::size_t>(Model::multiprocessors * resident))
      return cudaErrorCooperativeLaunchTooLarge;
    const std::lock_guard lock(api_mutex());
    if (cooperative) {
      auto& most = counters().most_cooperative_blocks;
      most = std::max<std::size_t>(most, volume(config.gridDim));
    }
    const auto stream = find_stream(config.stream);
    if (stream == nullptr || stream->device != current_device()) return cudaErrorInvalidResourceHandle;
    const int device = stream->device;
    const Grid shape{
        config.gridDim, config.blockDim, config.dynamicSmemBytes, known.static_room(device, config.dynamicSmemBytes),
        function,       nullptr};
    auto run = [shape, device, cooperative, function, kernel = std::move(body)] {
      Grid grid = shape;
      grid.body = &kernel;
      const std::uint64_t seed = next_launch_seed();
      const std::string failure = cooperative ? run_together(grid, seed) : run_in_turn(grid, seed);
      if (!failure.empty()) set_failure(device, "kernel " + kernel_name(function) + ": " + failure);
    };
    return submit(*stream, {Operation::Kind::kernel, std::move(run), function});
  });
}

}  // namespace cuda_emulation::detail

using namespace cuda_emulation::detail;

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return call("cudaFuncSetAttribute", [&] {
    if (function == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    const std::lock_guard lock(functions().mutex);
    Function& known = functions().known[function];
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<std::size_t>(value) + known.static_shared > Model::shared_per_block_optin)
      return cudaErrorInvalidValue;
    known.max_dynamic_shared[current_device()] = static_cast<std::size_t>(value);
    return cudaSuccess;
  });
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  return call("cudaFuncGetAttributes", [&] {
    if (attributes == nullptr || function == nullptr) return cudaErrorInvalidDeviceFunction;
    constexpr std::size_t not_yet_known = 1024;  // of a kernel that has not run: more than it has, one hopes
    const Function known = function_of(function);
    *attributes = {};
    attributes->sharedSizeBytes = known.has_run ? known.static_shared : not_yet_known;
    attributes->maxThreadsPerBlock = Model::max_threads_per_block;
    attributes->numRegs = Model::registers_per_thread;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(known.most_dynamic(current_device()));
    return cudaSuccess;
  });
}
cudaError_t cudaFuncGetName(const char** name, const void* function) {
  return call("cudaFuncGetName", [&] {
    if (name == nullptr || function == nullptr) return cudaErrorInvalidValue;
    *name = mangled_name(function);
    return cudaSuccess;
  });
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          size_t dynamic_shared) {
  return call("cudaOccupancyMaxActiveBlocksPerMultiprocessor", [&] {
    if (blocks == nullptr || function == nullptr || threads < 1) return cudaErrorInvalidValue;
    const std::size_t shared = function_of(function).static_shared + dynamic_shared;
    *blocks = shared > Model::shared_per_block_optin ? 0 : occupancy(threads, shared);
    return cudaSuccess;
  });
}
