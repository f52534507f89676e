#include "launch/bench/check.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <span>
#include <string>
#include <vector>

namespace allnorm::launch::bench {

namespace {

using reference::Array;
using reference::Tensors;

double value_at(const ConstTensorView& view, std::size_t i) {
  if (view.dtype == DType::i64) return static_cast<double>(static_cast<const std::int64_t*>(view.data)[i]);
  return visit(view.dtype, [&]<class T>(std::type_identity<T>) {
    return static_cast<double>(load(static_cast<const T*>(view.data)[i]));
  });
}

// In logical order.
Array array_of(const ConstTensorView& view) {
  Array made = reference::zeros({view.shape.begin(), view.shape.end()});
  const auto channels = static_cast<std::size_t>(view.channels()), space = static_cast<std::size_t>(view.space());
  for (std::size_t i = 0; i < made.v.size(); ++i) {
    const bool last = view.order == Order::channels_last;
    const std::size_t sample = i / (channels * space), channel = i / space % channels, position = i % space;
    made.v[i] = value_at(view, last ? (sample * space + position) * channels + channel : i);
  }
  return made;
}

bool has_samples(const Row& row, std::string_view name) {
  const TensorSpec* tensor = row.tensor(name);
  return tensor == nullptr || is_of_samples(*tensor);
}

// What the ranks of a group are given, samples behind one another.
Tensors whole_of(const std::deque<Subject>& ranks) {
  Tensors whole;
  const auto add = [&](std::string_view name, const ConstTensorView& view) {
    const auto [at, made] = whole.try_emplace(std::string(name), array_of(view));
    if (!made && has_samples(*ranks.front().layer().row, name))
      at->second = reference::concatenate({at->second, array_of(view)});
  };
  for (const Subject& rank : ranks) {
    for (const auto& [name, view] : rank.inputs()) add(name, view);
    add("grad_output", rank.grad_output());
  }
  return whole;
}

// A tensor of the device's memory.
Array array_of(const TensorView& made, Queue& queue) {
  const std::size_t bytes = static_cast<std::size_t>(made.shape.elements()) * size_of(made.dtype);
  const std::vector<std::byte> values = to_host(std::span(static_cast<const std::byte*>(made.data), bytes), queue);
  ConstTensorView here = made;
  here.data = values.data();
  return array_of(here);
}

void compare_values(const Array& got, const reference::Answer& answer, std::size_t first,
                    const reference::Doubles& tolerances, Check& found) {
  const double largest = reference::largest_of(answer);
  for (std::size_t i = 0; i < got.v.size(); ++i) {
    const double off = std::abs(got.v[i] - answer.values.at(first + i));
    const double tolerance = tolerances[first + i];
    found.wrong += !(off <= tolerance && std::isfinite(tolerance));
    if (largest > 0) found.max_error = std::max(found.max_error, std::isfinite(off) ? off / largest : HUGE_VAL);
  }
}

}  // namespace

std::optional<Truth> Truth::of(const Plan& plan, const Case& of, const Rank& rank, const Communicator& group) {
  const Row& row = *of.layer.row;
  const auto defined = std::find_if(reference::definitions().begin(), reference::definitions().end(),
                                    [&](const reference::Defined& one) { return one.row == row.name; });
  // Ranks that share sets within samples hold parts of the same ones, and the reference would take them for more.
  Truth truth;
  truth.shares_ = rank.size > 1 && of.layer.options.sync.ranks != Sync::none;
  const Axes statistics = of.layer.statistics();
  const bool within = statistics.has(Axis::sample) || statistics.has(Axis::leading);
  if (defined == reference::definitions().end() || (truth.shares_ && within)) return std::nullopt;
  truth.dtype_ = plan.dtype;
  truth.place_ = static_cast<std::size_t>(group.rank());
  Queue host = Queue::cpu();
  std::deque<Subject> ranks;  // for their values: they are never called
  for (int r = 0; r < group.size(); ++r)
    ranks.emplace_back(of.layer, of.shape, plan.dtype, plan.order, self(), rank.rank - group.rank() + r, host);
  const Tensors given = whole_of(ranks);
  const std::int64_t channels = of.shape.rank() > 1 ? of.shape[1] : 1;
  const auto definition = defined->make(of.layer.options, channels);
  truth.forward_ = definition->forward(given, of.layer.options.training);
  truth.backward_ = definition->backward(given);
  return truth;
}

Check Truth::compare(const Subject& subject) const {
  Check found;
  Queue& queue = subject.queue();
  const double statistics_unit = reference::statistics_unit(dtype_, queue.device().kind != DeviceKind::cpu);
  const auto compare_own = [&](std::string_view name, const TensorView& made, const reference::Answers& answers) {
    const auto at = answers.find(name);
    if (at == answers.end()) return;
    const auto own = static_cast<std::size_t>(made.shape.elements());
    compare_values(array_of(made, queue), at->second, own * place_,
                   reference::tolerances_of(at->second, dtype_, statistics_unit), found);
  };
  compare_own("output", subject.output(), forward_);
  for (const auto& [name, made] : subject.gradients())
    if (name == "grad_input" || !shares_) compare_own(name, made, backward_);
  return found;
}

}  // namespace allnorm::launch::bench
