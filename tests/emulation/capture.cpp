// Capture of streams into graphs, and the graphs: operations in the order of the calls that made them.
#include <set>

#include "cuda_runtime_api.h"
#include "stream.hpp"

struct CUgraph_st {
  std::shared_ptr<const std::vector<cuda_emulation::detail::Operation>> operations;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<cuda_emulation::detail::Operation>> operations;
};

namespace cuda_emulation::detail {
namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
unsigned long long next_capture = 1;  // under api_mutex
struct Handles {                      // under api_mutex
  std::set<const CUgraph_st*> graphs;
  std::set<const CUgraphExec_st*> executables;
};
Handles& handles() {
  static Handles* const instance = new Handles;
  return *instance;
}

/// Whether every operation of every joined stream comes before what the origin does next.
bool joined(const Capture& capture) {
  const Clock& known = capture.branches.at(capture.origin);
  for (const auto& [stream, clock] : capture.branches) {
    const auto own = clock.find(stream);
    if (own == clock.end()) continue;  // it joined, and did nothing
    const auto seen = known.find(stream);
    if (seen == known.end() || seen->second < own->second) return false;
  }
  return true;
}

}  // namespace

cudaError_t check_unsafe_call() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  for (const auto& capture : open_captures()) {
    const bool own = capture->thread == std::this_thread::get_id() && capture->mode != cudaStreamCaptureModeRelaxed;
    const bool others = capture->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (!own && !others) continue;
    capture->invalid = true;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

}  // namespace cuda_emulation::detail

using namespace cuda_emulation::detail;

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return call("cudaThreadExchangeStreamCaptureMode", [&] {
    if (mode == nullptr) return cudaErrorInvalidValue;
    std::swap(*mode, thread_mode);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture", [&] {
    if (handle == nullptr || handle == cudaStreamLegacy) return cudaErrorStreamCaptureUnsupported;
    const std::lock_guard lock(api_mutex());
    const auto stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) return cudaErrorIllegalState;
    auto capture = std::make_shared<Capture>();
    capture->id = next_capture++;
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->origin = stream.get();
    capture->branches[stream.get()];
    stream->capture = capture;
    open_captures().push_back(std::move(capture));
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return call("cudaStreamEndCapture", [&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    *graph = nullptr;
    const std::lock_guard lock(api_mutex());
    const auto stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    const auto capture = stream->capture;
    if (capture == nullptr) return cudaErrorIllegalState;
    if (capture->origin != stream.get()) {
      capture->invalid = true;
      return cudaErrorStreamCaptureUnmatched;
    }
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
      return cudaErrorStreamCaptureWrongThread;
    capture->ended = true;
    std::erase(open_captures(), capture);
    for (const auto& [branch, clock] : capture->branches) {
      const auto joined_stream = find_stream(const_cast<cudaStream_t>(branch));
      if (joined_stream != nullptr && joined_stream->capture == capture) joined_stream->capture = nullptr;
    }
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (!joined(*capture)) return cudaErrorStreamCaptureUnjoined;
    *graph = new CUgraph_st{std::make_shared<const std::vector<Operation>>(std::move(capture->operations))};
    handles().graphs.insert(*graph);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(handle, status);
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  return call("cudaStreamGetCaptureInfo", [&] {
    if (graph != nullptr || dependencies != nullptr || edges != nullptr || count != nullptr)
      return cudaErrorNotSupported;
    const std::lock_guard lock(api_mutex());
    const auto stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *status = cudaStreamCaptureStatusNone;
    if (stream->capture != nullptr) {
      *status = stream->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
      if (id != nullptr) *id = stream->capture->id;
    }
    return cudaSuccess;
  });
}

// ---- graphs
// ----------------------------------------------------------------------------------------------------------
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return call("cudaGraphInstantiate", [&] {
    const std::lock_guard lock(api_mutex());
    if (executable == nullptr || handles().graphs.count(graph) == 0) return cudaErrorInvalidValue;
    *executable = new CUgraphExec_st{graph->operations};
    handles().executables.insert(*executable);
    return cudaSuccess;
  });
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return call("cudaGraphGetNodes", [&] {
    if (nodes != nullptr) return cudaErrorNotSupported;  // only their number
    const std::lock_guard lock(api_mutex());
    if (count == nullptr || handles().graphs.count(graph) == 0) return cudaErrorInvalidValue;
    *count = graph->operations->size();
    return cudaSuccess;
  });
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  return call("cudaGraphLaunch", [&] {
    const std::lock_guard lock(api_mutex());
    const auto stream = find_stream(handle);
    if (stream == nullptr || handles().executables.count(executable) == 0) return cudaErrorInvalidResourceHandle;
    for (const Operation& operation : *executable->operations)
      if (const cudaError_t error = submit(*stream, operation); error != cudaSuccess) return error;
    return cudaSuccess;
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call("cudaGraphDestroy", [&] {
    const std::lock_guard lock(api_mutex());
    if (handles().graphs.erase(graph) == 0) return cudaErrorInvalidValue;
    delete graph;
    return cudaSuccess;
  });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return call("cudaGraphExecDestroy", [&] {
    const std::lock_guard lock(api_mutex());
    if (handles().executables.erase(executable) == 0) return cudaErrorInvalidValue;
    delete executable;
    return cudaSuccess;
  });
}
