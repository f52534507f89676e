#include "launch/bench/check.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <span>
#include <string>

#include "launch/bench/subject.hpp"
#include "launch/reference/definitions.hpp"

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

void compare(const TensorView& made, const reference::Answer& answer, std::size_t first, DType dtype, Check& found) {
  const Array got = array_of(made);
  const reference::Doubles tolerances = reference::tolerances_of(answer, dtype, 0);
  const double largest = reference::largest_of(answer);
  for (std::size_t i = 0; i < got.v.size(); ++i) {
    const double off = std::abs(got.v[i] - answer.values.at(first + i));
    const double tolerance = tolerances[first + i];
    found.wrong += !(off <= tolerance && std::isfinite(tolerance));
    if (largest > 0) found.max_error = std::max(found.max_error, std::isfinite(off) ? off / largest : HUGE_VAL);
  }
}

}  // namespace

std::optional<Check> check(const Plan& plan, const Case& of, Rank& rank) {
  const Row& row = *of.layer.row;
  const auto group = sync_group(rank.world, of.layer.options.sync, rank.queue);
  const auto defined = std::find_if(reference::definitions().begin(), reference::definitions().end(),
                                    [&](const reference::Defined& one) { return one.row == row.name; });
  // Ranks that share sets within samples hold parts of the same ones, and the reference would take them for more.
  const bool shares = rank.size > 1 && of.layer.options.sync.ranks != Sync::none;
  const Axes statistics = of.layer.statistics();
  const bool within = statistics.has(Axis::sample) || statistics.has(Axis::leading);
  if (defined == reference::definitions().end() || (shares && within)) return std::nullopt;
  Subject subject(of.layer, of.shape, plan.dtype, plan.order, group, rank.rank, rank.queue);
  subject.forward();
  subject.backward();
  std::deque<Subject> ranks;  // for their values: they are never called
  for (int r = 0; r < group->size(); ++r)
    ranks.emplace_back(of.layer, of.shape, plan.dtype, plan.order, self(), rank.rank - group->rank() + r, rank.queue);
  const Tensors given = whole_of(ranks);
  const std::int64_t channels = of.shape.rank() > 1 ? of.shape[1] : 1;
  const auto definition = defined->make(of.layer.options, channels);
  const reference::Answers forward = definition->forward(given, of.layer.options.training);
  const reference::Answers backward = definition->backward(given);
  Check found;
  const auto compare_own = [&](std::string_view name, const TensorView& made, const reference::Answers& answers) {
    const auto at = answers.find(name);
    if (at == answers.end()) return;
    const auto own = static_cast<std::size_t>(made.shape.elements());
    compare(made, at->second, own * static_cast<std::size_t>(group->rank()), plan.dtype, found);
  };
  compare_own("output", subject.output(), forward);
  for (const auto& [name, made] : subject.gradients())
    if (name == "grad_input" || !shares) compare_own(name, made, backward);
  return found;
}

}  // namespace allnorm::launch::bench
