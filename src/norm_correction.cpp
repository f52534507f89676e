// The correction stage: from statistics to the frame that a call normalizes with, r and d of Batch Renormalization
// included; and the frame of inference, from the running statistics.
#include <algorithm>
#include <cmath>

#include "norm_impl.hpp"

namespace allnorm {

namespace {

Buffer<double> copy_of(const double* values, std::size_t size, Queue& queue) {
  Buffer<double> buffer(size, queue);
  std::copy_n(values, size, buffer.data());
  return buffer;
}

}  // namespace

Buffer<double> copy(const Values& values, Queue& queue) { return copy_of(values.data(), values.size(), queue); }
Buffer<double> copy(const Buffer<double>& values, Queue& queue) { return copy_of(values.data(), values.size(), queue); }

Buffer<double> filled(std::size_t size, double value, Queue& queue) {
  Buffer<double> buffer(size, queue);
  std::fill(buffer.begin(), buffer.end(), value);
  return buffer;
}

// `count`: values per group of this call alone; use.count is that behind the statistics, 0 when there are none yet.
Frame NormImpl::corrected(const Statistics& use, double count, Queue& queue) const {
  const NormOptions& o = layer_.options;
  const std::size_t groups = use.mean.size();
  Frame frame{copy(use.mean, queue),
              copy(use.var, queue),
              Buffer<double>(groups, queue),
              {},
              {},
              copy(use.share, queue),
              count};
  for (std::size_t g = 0; g < groups; ++g)  // without any value there is nothing to scale, and eps may be 0
    frame.rstd[g] = use.count == 0 && has_running() ? 0 : 1 / std::sqrt(use.var[g] + o.eps);
  if (!o.renorm || !has_running()) return frame;
  frame.r = Buffer<double>(groups, queue);
  frame.d = Buffer<double>(groups, queue);
  const auto [r_max, d_max] = bounds();
  for (std::size_t c = 0; c < groups; ++c) {
    const auto correction = use.count == 0
                                ? formulas::Correction{}
                                : formulas::renorm({use.mean[c], use.var[c]}, o.eps, running_.mean[c],
                                                   running_sigma(running_, c, o.eps, layer_.keeps_std()), r_max, d_max);
    frame.r[c] = correction.r;
    frame.d[c] = correction.d;
  }
  return frame;
}

Frame NormImpl::inference_frame(Queue& queue) const {
  const std::size_t C = running_.mean.size();
  const double eps = layer_.options.eps;
  Frame frame{copy(running_.mean, queue),
              copy(running_.spread, queue),
              Buffer<double>(C, queue),
              {},
              {},
              filled(C, 0, queue),
              0};
  for (std::size_t c = 0; c < C; ++c) {
    const double sigma = running_sigma(running_, c, eps, layer_.keeps_std());
    frame.rstd[c] = 1 / sigma;
    if (layer_.keeps_std()) frame.var[c] = sigma * sigma - eps;
  }
  if (layer_.options.renorm) {
    frame.r = filled(C, 1, queue);
    frame.d = filled(C, 0, queue);
  }
  return frame;
}

}  // namespace allnorm
