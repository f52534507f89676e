// A layer's ranks as a caller of allnorm/halves.hpp has them, and the tensors of their calls.
#pragma once

#include <cstdint>
#include <cstring>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/halves.hpp"
#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "harness.hpp"

namespace halves_support {

using namespace allnorm;
using Doubles = backend::Array<double>;
using ByteArray = backend::Array<std::byte>;

inline constexpr std::int64_t channels = 4;

struct Case {
  const char* name;
  const char* layer;
  bool residual = false, convolution = false;
  std::vector<std::int64_t> samples{2, 0, 3};  // of each rank
};
inline void PrintTo(const Case& c, std::ostream* out) { *out << c.layer; }

/// What a rank gives to a step, and what it gets: the same tensors whoever calls.
class Step {
 public:
  Step(const Case& c, int step, int rank)
      : case_(c),
        layer_(parse_layer(c.layer)),
        shape_{c.samples[static_cast<std::size_t>(rank)], channels, 3},
        own_(static_cast<std::uint64_t>(100 * step + rank)) {
    const std::int64_t batch = (step < 5 ? step : step + 1) / layer_.options.minibatches;  // cut before step 5
    const Shape parameters = layer_.row->by_trailing() ? Shape{4, 3} : Shape{channels};
    inputs_.input = normal(shape_, own_);
    gradient_.output = normal(shape_, own_ + 50);
    outputs_.input = room(shape_);
    output_ = room(shape_);
    if (c.residual) inputs_.residual = normal(shape_, own_ + 10), outputs_.residual = room(shape_);
    if (layer_.row->tensor("weight")) inputs_.weight = normal(parameters, 1), outputs_.weight = room(parameters);
    if (layer_.row->tensor("bias")) inputs_.bias = normal(parameters, 2), outputs_.bias = room(parameters);
    if (!c.convolution) return;
    inputs_.conv_input = normal({shape_[0], 2, 3}, own_ + 20);
    inputs_.conv_weight = normal({channels, 2, 1}, 7 + static_cast<std::uint64_t>(batch));
  }

  ForwardInputs& inputs() { return inputs_; }
  const ForwardInputs& inputs() const { return inputs_; }
  TensorView output() const { return output_; }
  const BackwardInputs& gradient() const { return gradient_; }
  const BackwardOutputs& outputs() const { return outputs_; }
  bool is_gated() const { return case_.residual && layer_.options.activation.kind != ActivationKind::identity; }
  std::size_t mask_bytes() const { return static_cast<std::size_t>((shape_.elements() + 7) / 8); }
  /// Everything that was made, once the queue is done.
  std::vector<double> results() const {
    std::vector<double> all;
    for (const Doubles& made : rooms_) all.insert(all.end(), made.begin(), made.end());
    return all;
  }

 private:
  TensorView keep(Doubles values, const Shape& shape, std::vector<Doubles>& where) {
    where.push_back(std::move(values));
    return backend::view(where.back().data(), shape);
  }
  TensorView normal(const Shape& shape, std::uint64_t seed) {
    cases::Random random(seed);
    const auto made = cases::normal(random, {shape.begin(), shape.end()}, 0.3, 1.5).v;
    return keep(Doubles(made.begin(), made.end()), shape, given_);
  }
  TensorView room(const Shape& shape) {
    return keep(Doubles(static_cast<std::size_t>(shape.elements())), shape, rooms_);
  }

  Case case_;
  Layer layer_;
  Shape shape_;
  std::uint64_t own_;
  std::vector<Doubles> given_, rooms_;
  ForwardInputs inputs_;
  TensorView output_;
  BackwardInputs gradient_;
  BackwardOutputs outputs_;
};

/// A rank whose caller is the test.
class Caller {
 public:
  Caller(const Case& c, const char* layer, int rank, Queue& queue)
      : queue_(&queue),
        halves_(parse_layer(layer), channels, rank, static_cast<int>(c.samples.size()), queue, "layer"),
        mean_(index(channels), 0.0),
        spread_(index(channels), 1.0),
        tracked_(1, 0) {
    const Step step(c, 0, rank);
    conv_weight_ = step.inputs().conv_weight;
    history_.resize(halves_.history_bytes(conv_weight_, true));
    halves_.start_history(history_, queue, conv_weight_, true);
  }

  Halves& halves() { return halves_; }
  ByteArray& history() { return history_; }
  std::int64_t tracked() const { return tracked_[0]; }
  void copy_state_of(const Caller& other) {
    mean_ = other.mean_;
    spread_ = other.spread_;
    tracked_ = other.tracked_;
    history_ = other.history_;
  }
  KeptState state() {
    KeptState kept;
    if (!halves_.layer().has_state()) return kept;
    kept.running_mean = backend::view(mean_.data(), {channels});
    if (halves_.layer().row->scaled) kept.running_spread = backend::view(spread_.data(), {channels});
    kept.tracked = backend::view(tracked_.data(), {1});
    kept.history = history_;
    return kept;
  }
  void resume(const State& saved) {
    mean_.assign(mean_.size(), 7);
    halves_.start_history(history_, *queue_, conv_weight_, true);
    halves_.load(saved, state(), *queue_);
  }

  void forward_local(const Step& step) {
    const std::int64_t groups = halves_.groups(step.inputs().input);
    work_.resize(halves_.work_bytes(step.inputs()));
    frame_.resize(static_cast<std::size_t>(halves_.frame_size(groups)));
    mask_.resize(step.is_gated() ? step.mask_bytes() : 0);
    record_.resize(halves_.record_bytes(Direction::forward, groups));
    halves_.forward_local(step.inputs(), state(), work_.data(), record_.data(), *queue_);
  }
  void forward_finish(const Step& step, const ByteArray& records) {
    halves_.forward_finish(step.inputs(), step.output(), state(), frame(), work_.data(), records.data(), *queue_);
  }
  void replay(const Step& step) { halves_.replay(step.inputs(), step.output(), frame(), *queue_); }
  void backward_local(const Step& step) {
    record_.resize(halves_.record_bytes(Direction::backward, halves_.groups(step.inputs().input)));
    halves_.backward_local(step.inputs(), step.gradient(), step.outputs(), frame(), work_.data(), record_.data(),
                           *queue_);
  }
  void backward_finish(const Step& step, const ByteArray& records) {
    halves_.backward_finish(step.inputs(), step.gradient(), step.outputs(), frame(), work_.data(), records.data(),
                            *queue_);
  }
  const ByteArray& record() const { return record_; }
  KeptFrame frame() { return {frame_.data(), mask_.empty() ? nullptr : mask_.data()}; }
  std::vector<double> statistics(const Step& step) const {
    const auto size = static_cast<std::ptrdiff_t>(4 * halves_.groups(step.inputs().input));
    return {frame_.begin(), frame_.begin() + size};
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  Queue* queue_;
  Halves halves_;
  Doubles mean_, spread_, frame_;
  backend::Array<std::int64_t> tracked_;
  ConstTensorView conv_weight_{};
  ByteArray history_, work_, record_;
  backend::Array<std::uint8_t> mask_;
};

inline std::vector<Caller> callers_of(const Case& c, Queue& queue) {
  std::vector<Caller> callers;
  for (std::size_t r = 0; r < c.samples.size(); ++r) callers.emplace_back(c, c.layer, static_cast<int>(r), queue);
  return callers;
}

inline ByteArray gathered(const std::vector<Caller>& callers, Queue& queue) {
  queue.wait();
  ByteArray all;
  for (const Caller& caller : callers) all.insert(all.end(), caller.record().begin(), caller.record().end());
  return all;
}

}  // namespace halves_support
