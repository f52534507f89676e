// A step of an operation, a thread per group.
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/group_steps.hpp"

namespace allnorm::cuda {

namespace {

constexpr int each_threads = 256;

template <class Step>
__global__ void __launch_bounds__(each_threads)
    each_kernel(const __grid_constant__ Step step, const std::int64_t groups) {
  const std::int64_t g = std::int64_t{blockIdx.x} * each_threads + threadIdx.x;
  if (g < groups) step(g);
}

}  // namespace

void each(const GroupSteps& steps, std::int64_t groups, Queue& queue) {
  std::visit(
      [&](const auto& step) {
        launch(queue, (groups + each_threads - 1) / each_threads, each_threads, 0,
               each_kernel<std::remove_cvref_t<decltype(step)>>, step, groups);
      },
      steps.of);
}

}  // namespace allnorm::cuda
