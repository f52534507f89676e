#include "running.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/formulas.hpp"
#include "state_reader.hpp"

namespace allnorm {

void advance(const Running& running, const RunningValues& values, const NormOptions& options, bool keeps_std,
             Buffer<double>& next_mean, Buffer<double>& next_spread) {
  const double momentum = options.cumulative ? 1.0 / static_cast<double>(running.tracked + 1) : options.momentum;
  for (std::size_t c = 0; c < running.mean.size(); ++c) {
    const double spread = keeps_std ? std::sqrt(values.biased[c] + options.eps) : values.var[c];
    next_mean[c] = formulas::move(running.mean[c], values.mean[c], momentum);
    next_spread[c] = formulas::move(running.spread[c], spread, momentum);
  }
}

double running_sigma(const Running& running, std::size_t channel, double eps, bool keeps_std) noexcept {
  return keeps_std ? running.spread[channel] : std::sqrt(running.spread[channel] + eps);
}

namespace {
const char* spread_name(bool keeps_std) { return keeps_std ? "running_std" : "running_var"; }
}  // namespace

void save(const Running& running, bool keeps_std, State& state) {
  const Shape shape{static_cast<std::int64_t>(running.mean.size())};
  state.add("running_mean", running.mean.data(), shape);
  state.add(spread_name(keeps_std), running.spread.data(), shape);
  state.add("num_batches_tracked", running.tracked);
  state.add("allnorm.pivot", running.pivot.data(), shape);
  state.add("allnorm.calls", running.calls);
}

void load(Running& running, bool keeps_std, const State& state) {
  using namespace state_reader;
  const Shape shape{static_cast<std::int64_t>(running.mean.size())};
  const auto mean = finite(state, "running_mean", shape);
  const double least = keeps_std ? std::numeric_limits<double>::min() : 0;
  const auto spread = finite(state, spread_name(keeps_std), shape, least);
  const std::int64_t tracked = state.find("num_batches_tracked") ? integer(state, "num_batches_tracked", 0) : 0;
  auto pivot = state.find("allnorm.pivot") ? finite(state, "allnorm.pivot", shape) : std::vector<double>(mean.size());
  const std::int64_t calls = state.find("allnorm.calls") ? integer(state, "allnorm.calls", 0) : tracked;

  std::copy(mean.begin(), mean.end(), running.mean.begin());
  std::copy(spread.begin(), spread.end(), running.spread.begin());
  running.tracked = tracked;
  running.pivot = std::move(pivot);
  running.calls = calls;
}

}  // namespace allnorm
