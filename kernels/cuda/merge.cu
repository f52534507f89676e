// The moments of a record over a transport that can only add: what its two rounds add, and what that makes
// (formulas::SumsAbout). A thread per group; one launch before, between and after the rounds.
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"

namespace allnorm::cuda {

namespace {

using formulas::SumsAbout;

constexpr int merge_threads = 256;

__device__ __forceinline__ std::int64_t own_group() {
  return static_cast<std::int64_t>(blockIdx.x) * merge_threads + threadIdx.x;
}

__global__ void __launch_bounds__(merge_threads)
    weigh_kernel(const double* payload, double* round, const steps::Layout layout) {
  const std::int64_t g = own_group();
  if (g == 0) round[0] = payload[0];
  if (g < layout.groups) round[1 + g] = SumsAbout::weighed(payload[0], payload[layout.mean(g)]);
}

__global__ void __launch_bounds__(merge_threads)
    centre_kernel(double* payload, const double* round, const steps::Layout layout) {
  const std::int64_t g = own_group();
  if (g >= layout.groups) return;
  double &mean = payload[layout.mean(g)], &m2 = payload[layout.m2(g)];
  const auto sums = SumsAbout::of(payload[0], mean, m2, SumsAbout::middle(round[0], round[1 + g]));
  mean = sums.sum;
  m2 = sums.squares;
}

__global__ void __launch_bounds__(merge_threads)
    merge_kernel(double* payload, const double* round, const steps::Layout layout) {
  const std::int64_t g = own_group();
  if (g >= layout.groups) return;
  double &mean = payload[layout.mean(g)], &m2 = payload[layout.m2(g)];
  const SumsAbout sums{mean, m2};
  mean = sums.mean(payload[0], SumsAbout::middle(round[0], round[1 + g]));
  m2 = sums.m2(payload[0]);
}

}  // namespace

void merge_by_adding(MergeStep step, const Record& record, double* round, Queue& queue) {
  const steps::Layout layout{static_cast<std::int64_t>(record.moments)};
  const std::int64_t blocks = (layout.groups + merge_threads - 1) / merge_threads;
  double* const payload = steps::payload_of(record.data);
  switch (step) {
    case MergeStep::weigh:
      return launch(queue, blocks, merge_threads, 0, weigh_kernel, payload, round, layout);
    case MergeStep::centre:
      return launch(queue, blocks, merge_threads, 0, centre_kernel, payload, round, layout);
    case MergeStep::merge:
      return launch(queue, blocks, merge_threads, 0, merge_kernel, payload, round, layout);
  }
}

}  // namespace allnorm::cuda
