#include "allnorm/batch_average.hpp"

#include <string>

#include "kernels/formulas.hpp"

namespace allnorm {

void BatchAverage::add(const SavedCall& call, Queue& queue) {
  const auto mean = to_host(call.statistic("mean"), queue), var = to_host(call.statistic("var"), queue);
  expect(!mean.empty() && mean.size() == var.size(), Code::invalid_argument,
         "a call without the statistics mean and var is added to an average of batches, must have both");
  expect(calls_ == 0 || mean.size() == mean_.size(), Code::invalid_argument, [&] {
    return "a call with " + std::to_string(mean.size()) + " channels is added to an average of batches, must have " +
           std::to_string(mean_.size()) + " as the ones before";
  });
  mean_.resize(mean.size());
  var_.resize(mean.size());
  ++calls_;
  for (std::size_t c = 0; c < mean.size(); ++c) {
    const auto all = formulas::accumulate({mean_[c], var_[c]}, {mean[c], var[c]}, 1 / static_cast<double>(calls_));
    mean_[c] = all.mean;
    var_[c] = all.var;
  }
}

void BatchAverage::set(Operation& operation, Queue& queue) const {
  expect(calls_ > 0, Code::invalid_argument, "an average of batches has no call, must have at least one");
  const Shape channels{static_cast<std::int64_t>(mean_.size())};
  State state;
  state.add("running_mean", mean_.data(), channels);
  state.add("running_var", var_.data(), channels);
  operation.set_state(state, queue);
}

}  // namespace allnorm
