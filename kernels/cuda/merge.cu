// The moments of a record over a transport that can only add: what its two rounds add, and what that makes
// (formulas::SumsAbout). A thread per group; one launch before, between and after the rounds.
#include "kernels/cuda/kernels.hpp"
#include "kernels/cuda/launch.cuh"

namespace allnorm::cuda {

namespace {

using formulas::SumsAbout;

constexpr int merge_threads = 256;

template <MergeStep step>
__global__ void __launch_bounds__(merge_threads)
    merge_kernel(double* payload, double* round, const steps::Layout layout) {
  const std::int64_t g = static_cast<std::int64_t>(blockIdx.x) * merge_threads + threadIdx.x;
  if (step == MergeStep::weigh && g == 0) round[0] = payload[0];
  if (g >= layout.groups) return;
  double &mean = payload[layout.mean(g)], &m2 = payload[layout.m2(g)], &sum = round[1 + g];
  if constexpr (step == MergeStep::weigh) {
    sum = SumsAbout::weighed(payload[0], mean);
  } else {
    const double middle = SumsAbout::middle(round[0], sum);
    if constexpr (step == MergeStep::centre) {
      const auto sums = SumsAbout::of(payload[0], mean, m2, middle);
      mean = sums.sum;
      m2 = sums.squares;
    } else {
      const SumsAbout sums{mean, m2};
      mean = sums.mean(payload[0], middle);
      m2 = sums.m2(payload[0]);
    }
  }
}

}  // namespace

void merge_by_adding(MergeStep step, const Record& record, double* round, Queue& queue) {
  const steps::Layout layout{static_cast<std::int64_t>(record.moments)};
  const auto kernel = step == MergeStep::weigh    ? merge_kernel<MergeStep::weigh>
                      : step == MergeStep::centre ? merge_kernel<MergeStep::centre>
                                                  : merge_kernel<MergeStep::merge>;
  launch(queue, (layout.groups + merge_threads - 1) / merge_threads, merge_threads, 0, kernel,
         steps::payload_of(record.data), round, layout);
}

}  // namespace allnorm::cuda
