// Events and graphs on a stream, for host code without CUDA headers.
#include <memory>
#include <type_traits>

#include "src/gpu_timing.hpp"
#include "src/runtime/cuda/errors.hpp"

namespace allnorm {

namespace {

struct EventDeleter {
  void operator()(cudaEvent_t event) const noexcept { cuda::ignore(cudaEventDestroy(event)); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDeleter>;

std::vector<Event> make_events(std::size_t count) {
  std::vector<Event> events(count);
  for (Event& made : events) {
    cudaEvent_t event = nullptr;
    cuda::check(cudaEventCreateWithFlags(&event, cudaEventDefault), "making an event");
    made.reset(event);
  }
  return events;
}

}  // namespace

std::vector<double> times_between_events(void* stream, std::size_t samples,
                                         const std::function<void(std::size_t)>& work) {
  const auto on = static_cast<cudaStream_t>(stream);
  const std::vector<Event> before = make_events(samples), after = make_events(samples);
  for (std::size_t i = 0; i < samples; ++i) {
    cuda::check(cudaEventRecord(before[i].get(), on), "marking the begin of work");
    work(i);
    cuda::check(cudaEventRecord(after[i].get(), on), "marking the end of work");
  }
  cuda::check(cudaStreamSynchronize(on), "work");
  std::vector<double> times(samples);
  for (std::size_t i = 0; i < samples; ++i) {
    float milliseconds = 0;
    cuda::check(cudaEventElapsedTime(&milliseconds, before[i].get(), after[i].get()), "asking for the time of work");
    times[i] = 1e3 * double{milliseconds};
  }
  return times;
}

// What other threads call meanwhile, such as ranks that have another GPU each, is no part of this thread's capture.
Replay captured(void* stream, const std::function<void()>& work) {
  const auto on = static_cast<cudaStream_t>(stream);
  cudaGraph_t graph = nullptr;
  cuda::check(cudaStreamBeginCapture(on, cudaStreamCaptureModeThreadLocal), "capturing a stream");
  try {
    work();
  } catch (...) {  // the stream must leave its capture
    cuda::ignore(cudaStreamEndCapture(on, &graph));
    if (graph != nullptr) cuda::ignore(cudaGraphDestroy(graph));
    throw;
  }
  cuda::check(cudaStreamEndCapture(on, &graph), "ending a capture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cuda::ignore(cudaGraphDestroy(graph));
  cuda::check(status, "making a graph that can be launched");
  const auto destroy = [](cudaGraphExec_t made) { cuda::ignore(cudaGraphExecDestroy(made)); };
  const std::shared_ptr<std::remove_pointer_t<cudaGraphExec_t>> owner(executable, destroy);
  return [owner, on] { cuda::check(cudaGraphLaunch(owner.get(), on), "launching a graph"); };
}

}  // namespace allnorm
