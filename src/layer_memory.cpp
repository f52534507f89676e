#include "src/layer_memory.hpp"

#include <algorithm>
#include <atomic>
#include <new>
#include <string>
#include <utility>

#include "allnorm/sizes.hpp"
#include "kernels/arrays.hpp"
#include "kernels/steps.hpp"
#include "src/gpu.hpp"

namespace allnorm {

namespace {

template <class T>
T value_of(const Buffer<T>& buffer, std::size_t i, Queue& queue) {
  return to_host(std::span<const T>(buffer.data() + i, 1), queue)[0];
}

}  // namespace

LayerMemory::LayerMemory(const Layer& layer, std::int64_t channels, Queue& queue, bool keeps)
    : r_max_ramp_(to_device(layer.options.r_max_ramp, queue)),
      d_max_ramp_(to_device(layer.options.d_max_ramp, queue)),
      counters_(2, queue),
      parity_(1, queue),
      last_(1, queue),
      hits_(1, queue) {
  const NormOptions& o = layer.options;
  static_cast<PlainOptions&>(rules_) = o;
  rules_.centred = layer.row->centred;
  rules_.scaled = layer.row->scaled;
  rules_.persists = layer.has_state();
  rules_.pools = rules_.persists && layer.row->state("running_mean")->axes != layer.row->statistics;
  rules_.r_max_ramp = {r_max_ramp_.data(), static_cast<std::int64_t>(r_max_ramp_.size())};
  rules_.d_max_ramp = {d_max_ramp_.data(), static_cast<std::int64_t>(d_max_ramp_.size())};
  view_.counters = counters_.data();
  view_.parity = parity_.data();
  view_.last = last_.data();
  view_.hits = hits_.data();
  if (queue.device().kind == DeviceKind::cpu) listen(queue);
  const Hits none;
  copy_to_device(hits_.data(), &none, sizeof none, queue);
  put(Counters{}, queue);
  if (!rules_.persists) return;

  // More than all arrays need, so that no size below overflows.
  expect_fits("channels", channels, {2 * LayerState::fields_with_history, sizeof(double)});
  expect_fits("attribute window", o.window, {7, std::max<std::int64_t>(1, channels), sizeof(double)});
  if (!keeps) return;
  const bool history = o.minibatches > 1 || o.window > 1;
  view_.channels = channels;
  view_.fields = history ? LayerState::fields_with_history : LayerState::fields_without_history;
  values_ = Buffer<double>(index(2 * view_.fields * channels), queue);
  view_.values = values_.data();
  put(LayerState::running_spread, std::vector<double>(index(channels), 1.0), queue);
  if (o.window == 1) return;

  Ring& ring = view_.ring;
  ring.slots = o.window;
  try {
    ring_ = Buffer<double>(index(o.window + (2 * o.window + 1 + 4 * (o.window - 1)) * channels), queue);
  } catch (const Error& error) {
    fail(error.code(), "attribute window is " + std::to_string(o.window) + ": " + error.message());
  }
  ring.count = ring_.data();
  ring.mean = ring.count + o.window;
  ring.var = ring.mean + o.window * channels;
  ring.center = ring.var + o.window * channels;
  ring.past = ring.center + channels;
}

void expect_shape(const LayerState& state, const WeightShape& shape) {
  const Ring& ring = state.ring;
  expect(ring.fan_in == 0 || (ring.fan_in == shape.fan_in && ring.mean_rows == shape.mean_rows), Code::invalid_argument,
         [&] {
           return "conv_weight has " + std::to_string(shape.channels) + " x " + std::to_string(shape.fan_in) +
                  " weights (channels x fan-in), must have " + std::to_string(state.channels) + " x " +
                  std::to_string(ring.fan_in) + " as in the window's earlier calls";
         });
}

void LayerMemory::make_window(const WeightShape& shape, bool wide, Queue& queue) {
  expect_shape(view_, shape);
  Ring& ring = view_.ring;
  if (ring.fan_in != 0 || shape.fan_in == 0) return;
  for (const std::int64_t rows : {shape.mean_rows, 2 * shape.channels})
    expect_fits("conv_weight's fan-in", shape.fan_in,
                {2 * ring.slots, std::max<std::int64_t>(1, rows), std::int64_t{sizeof(double)}});
  const std::size_t size = wide ? sizeof(double) : sizeof(float);
  const std::size_t means = index(ring.slots * shape.mean_rows * shape.fan_in) * size,
                    weights = index(ring.slots * shape.channels * shape.fan_in) * size;
  derivatives_ = Buffer<std::byte>(means + 2 * weights, queue, Fill::none);  // not zeroed by every replay of a graph
  ring.wide = wide;
  ring.fan_in = shape.fan_in;
  ring.mean_rows = shape.mean_rows;
  ring.dmean = derivatives_.data();
  ring.dvar = derivatives_.data() + means;
  ring.weight = derivatives_.data() + means + weights;
}

void LayerMemory::listen(const Queue& queue) {
  if (met_) return;
  if (queue.device().kind == DeviceKind::cpu)
    met_ = std::make_shared<HitsMet>();
  else
    met_ = {new (lasting_memory(sizeof(HitsMet), queue.device().index)) HitsMet, [](HitsMet*) {}};
  view_.met = met_.get();
}

HitsMet LayerMemory::met() const noexcept {
  if (!met_) return {};
  const std::int64_t calls = std::atomic_ref(met_->calls).load(std::memory_order_acquire);  // what a kernel writes last
  HitsMet read = *met_;
  read.calls = calls;
  return read;
}

std::uint32_t LayerMemory::parity(Queue& queue) const { return value_of(parity_, 0, queue); }

Counters LayerMemory::counters(Queue& queue) const { return value_of(counters_, parity(queue) & 1, queue); }

std::vector<double> LayerMemory::values(LayerState::Field field, Queue& queue) const {
  const std::int64_t at = ((parity(queue) & 1) * view_.fields + field) * view_.channels;
  return to_host(std::span<const double>(values_.data() + at, index(view_.channels)), queue);
}

void LayerMemory::put(LayerState::Field field, const std::vector<double>& values, Queue& queue) {
  const std::int64_t at = ((parity(queue) & 1) * view_.fields + field) * view_.channels;
  copy_to_device(values_.data() + at, values.data(), values.size() * sizeof(double), queue);
}

void LayerMemory::put(const Counters& counters, Queue& queue) {
  copy_to_device(counters_.data() + (parity(queue) & 1), &counters, sizeof counters, queue);
}

RunningStatistics LayerMemory::running(Queue& queue) const {
  if (!persists()) return {};
  return {values(LayerState::running_mean, queue), values(LayerState::running_spread, queue), counters(queue).tracked};
}

Norm::PastStatistics LayerMemory::past(Queue& queue) const {
  Norm::PastStatistics past;
  const Turn turn = value_of(last_, 0, queue);
  if (!turn.averages || turn.fails) return past;
  const std::int64_t C = view_.channels;
  const auto all = to_host(std::span<const double>(view_.ring.past, index(4 * turn.entries * C)), queue);
  past.entries = turn.entries;
  std::vector<double>* const parts[] = {&past.stale_mean, &past.stale_var, &past.mean, &past.var};
  for (std::int64_t j = 0; j < turn.entries; ++j)
    for (std::int64_t part = 0; part < 4; ++part) {
      const auto from = all.begin() + (4 * j + part) * C;
      parts[part]->insert(parts[part]->end(), from, from + C);
    }
  return past;
}

void LayerMemory::take(LayerMemory&& other, Queue& queue) {
  const auto into = [&queue](auto& to, auto& from) {
    if (to.size() == from.size())
      copy_on_device(to.data(), from.data(), from.size() * sizeof(*from.data()), queue);
    else
      to = std::move(from);
  };
  into(r_max_ramp_, other.r_max_ramp_);
  into(d_max_ramp_, other.d_max_ramp_);
  rules_ = other.rules_;
  rules_.r_max_ramp.points = r_max_ramp_.data();
  rules_.d_max_ramp.points = d_max_ramp_.data();
  into(counters_, other.counters_);
  into(parity_, other.parity_);
  into(last_, other.last_);
  into(values_, other.values_);
  into(ring_, other.ring_);
  const Ring& theirs = other.view_.ring;
  Ring& ring = view_.ring;
  if (theirs.fan_in == 0) return;  // it has no derivatives: ours mean nothing to its counters
  const bool same = ring.wide == theirs.wide && ring.fan_in == theirs.fan_in && ring.mean_rows == theirs.mean_rows;
  if (same) return into(derivatives_, other.derivatives_);
  derivatives_ = std::move(other.derivatives_);
  ring.wide = theirs.wide;
  ring.fan_in = theirs.fan_in;
  ring.mean_rows = theirs.mean_rows;
  ring.dmean = theirs.dmean;
  ring.dvar = theirs.dvar;
  ring.weight = theirs.weight;
}

std::size_t LayerMemory::bytes() const noexcept {
  return (values_.size() + ring_.size()) * sizeof(double) + derivatives_.size();
}

}  // namespace allnorm
