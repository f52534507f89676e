// Times of work on a GPU in torch's memory: medians, in microseconds, on torch's current stream.
#pragma once

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/gpu_timing.hpp"

namespace allnorm::bench {

using Call = SetCall;

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

/// See eager_times().
inline Time eager(const Call& call, std::size_t sets, std::size_t samples) {
  try {
    return {median(eager_times(c10::cuda::getCurrentCUDAStream().stream(), call, sets, 10, samples)), {}};
  } catch (const std::exception& error) {
    return {0, error.what()};
  }
}

/// A graph of torch's, which keeps the memory that its allocator gives meanwhile.
inline Replay captured_by_torch(const std::function<void()>& work) {
  const auto graph = std::make_shared<at::cuda::CUDAGraph>();
  c10::cuda::getCurrentCUDAStream().synchronize();
  graph->capture_begin();
  try {
    work();
  } catch (...) {
    try {  // the stream must leave its capture, which has failed already
      graph->capture_end();
    } catch (const std::exception&) {
    }
    throw;
  }
  graph->capture_end();
  return [graph] { graph->replay(); };
}

/// See replayed_times().
inline Time replayed(const Call& call, std::size_t sets, std::size_t samples) {
  try {
    void* const stream = c10::cuda::getCurrentCUDAStream().stream();
    return {median(replayed_times(stream, call, sets, 3, samples, captured_by_torch)), {}};
  } catch (const std::exception& error) {
    return {0, error.what()};
  }
}

}  // namespace allnorm::bench
