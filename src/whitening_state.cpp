#include "src/whitening_state.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "src/norm_impl.hpp"
#include "src/slots.hpp"
#include "src/state_reader.hpp"

namespace allnorm {

WhiteningState::WhiteningState(std::int64_t channels, std::int64_t width)
    : width_(width), mean_(index(channels)), whitening_(index(channels * width)) {
  for (std::int64_t c = 0; c < channels; ++c) whitening_[index(c * width + c % width)] = 1;
}

Shape WhiteningState::of_channels() const { return {static_cast<std::int64_t>(mean_.size())}; }
Shape WhiteningState::of_pairs() const { return {static_cast<std::int64_t>(mean_.size()) / width_, width_, width_}; }

std::uint64_t WhiteningState::hash() const noexcept {
  const std::uint64_t of_mean = hash_of(mean_.data(), mean_.size() * sizeof(double));
  return hash_of(whitening_.data(), whitening_.size() * sizeof(double), of_mean);
}

void WhiteningState::move(const NormOptions& options, double count, const std::vector<double>& mean,
                          const std::vector<double>& matrix, const std::vector<double>& power) {
  ++calls_;
  if (count == 0) return;
  ++counted_;
  ++tracked_;
  const double f = options.cumulative ? 1 / static_cast<double>(tracked_) : options.momentum;
  const auto width = index(width_), pairs = width * width;
  for (std::size_t group = 0; group < power.size(); ++group) {
    const auto usable = [](const std::vector<double>& values, std::size_t from, std::size_t size, double factor) {
      return std::all_of(&values[from], &values[from] + size, [factor](double v) { return std::isfinite(v * factor); });
    };
    if (!usable(mean, group * width, width, 1) || !usable(matrix, group * pairs, pairs, power[group])) continue;
    for (std::size_t c = group * width; c < (group + 1) * width; ++c) mean_[c] = formulas::move(mean_[c], mean[c], f);
    for (std::size_t i = group * pairs; i < (group + 1) * pairs; ++i)
      whitening_[i] = formulas::move(whitening_[i], matrix[i] * power[group], f);
  }
}

State WhiteningState::named() const {
  State made;
  made.add("running_mean", mean_.data(), of_channels());
  made.add("running_whitening", whitening_.data(), of_pairs());
  return made;
}

void WhiteningState::take_named(const Row& row, const State& given) {
  for (const StateEntry& entry : given.entries) expect_known(row, row.state(entry.name) != nullptr, entry.name);
  WhiteningState next = *this;
  if (given.find("running_mean")) next.mean_ = state_reader::finite(given, "running_mean", of_channels());
  if (given.find("running_whitening")) next.whitening_ = state_reader::finite(given, "running_whitening", of_pairs());
  *this = std::move(next);
}

State WhiteningState::saved(const Layer& layer, const Communicator& group) const {
  State made = named();
  made.add("num_batches_tracked", tracked_);
  made.add("allnorm.calls", counted_);
  mark_state(made, layer, group);
  return made;
}

void WhiteningState::load(const Row& row, const State& state) {
  expect_mark(state, row);
  WhiteningState next = *this;
  next.mean_ = state_reader::finite(state, "running_mean", of_channels());
  next.whitening_ = state_reader::finite(state, "running_whitening", of_pairs());
  next.tracked_ = state.find("num_batches_tracked") ? state_reader::integer(state, "num_batches_tracked", 0) : 0;
  next.counted_ = state.find("allnorm.calls") ? state_reader::integer(state, "allnorm.calls", 0) : next.tracked_;
  *this = std::move(next);
}

}  // namespace allnorm
