// Times of work on a GPU, by events on its stream.
#pragma once

#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace allnorm::bench {

/// Work for one of several sets of data: rotating among sets keeps a call from finding its input in the L2 cache.
using Call = std::function<void(std::size_t set)>;

/// Microseconds per call, or why there are none.
struct Time {
  double us = 0;
  std::string failure{};
};

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// The median over `samples` of the time between events around `work`, which is given the number of the sample.
inline double between_events(const std::function<void(std::size_t)>& work, std::size_t samples) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  std::vector<at::cuda::CUDAEvent> start, end;
  for (std::size_t i = 0; i < samples; ++i) {
    start.emplace_back(cudaEventDefault);
    end.emplace_back(cudaEventDefault);
  }
  for (std::size_t i = 0; i < samples; ++i) {
    start[i].record(stream);
    work(i);
    end[i].record(stream);
  }
  stream.synchronize();
  std::vector<double> times(samples);
  for (std::size_t i = 0; i < samples; ++i) times[i] = 1e3 * double{start[i].elapsed_time(end[i])};
  return median(std::move(times));
}

/// A call as a program makes it: where the host takes longer to launch its kernels than the GPU to run them, the time
/// is the host's.
inline Time eager(const Call& call, std::size_t sets, std::size_t samples) {
  try {
    for (std::size_t i = 0; i < sets + 10; ++i) call(i % sets);
    return {between_events([&](std::size_t i) { call(i % sets); }, samples), {}};
  } catch (const std::exception& error) {
    return {0, error.what()};
  }
}

/// The same calls replayed from a CUDA graph of one call per set, at least ten: the host's part is gone, but for a
/// share of the launch of the whole.
inline Time replayed(const Call& call, std::size_t sets, std::size_t samples) {
  const std::size_t calls = (sets + 9) / sets * sets;
  at::cuda::CUDAGraph graph;
  try {
    for (std::size_t i = 0; i < sets; ++i) call(i);
    c10::cuda::getCurrentCUDAStream().synchronize();
    graph.capture_begin();
    try {
      for (std::size_t i = 0; i < calls; ++i) call(i % sets);
    } catch (...) {
      try {  // the stream must leave its capture, which has failed already
        graph.capture_end();
      } catch (const std::exception&) {
      }
      throw;
    }
    graph.capture_end();
    for (int i = 0; i < 3; ++i) graph.replay();
    const double us = between_events([&](std::size_t) { graph.replay(); }, samples);
    return {us / static_cast<double>(calls), {}};
  } catch (const std::exception& error) {
    return {0, error.what()};
  }
}

}  // namespace allnorm::bench
