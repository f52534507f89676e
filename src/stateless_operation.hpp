// What operations share whose calls leave nothing for the next, and whose ranks exchange nothing.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "allnorm/error.hpp"
#include "allnorm/operation.hpp"
#include "src/slots.hpp"

namespace allnorm {

class StatelessOperation : public Operation {
 public:
  StatelessOperation(const Layer& layer, std::shared_ptr<Communicator> group, std::string name)
      : layer_((layer.check(), layer)),
        group_(group ? std::move(group) : self()),
        name_(name.empty() ? std::string(layer.row->name) : std::move(name)) {}

  const Layer& layer() const noexcept final { return layer_; }
  const std::string& name() const noexcept final { return name_; }
  Communicator& group() const noexcept final { return *group_; }
  void set_training(bool training) noexcept final { layer_.options.training = training; }

  State state(Queue&) const final { return {}; }
  void set_state(const State& state, Queue&) final {
    for (const StateEntry& entry : state.entries) expect_known(*layer_.row, false, entry.name);
  }
  State save(Queue&) const final { return {}; }
  void load(const State& state, Queue&, const LoadOptions&) final {
    expect(state.entries.empty(), Code::invalid_input,
           [&] { return std::string(layer_.row->name) + " has no state, must be loaded with none"; });
  }

 protected:
  /// Throws unless `input` is given, of a floating-point type, and in memory of the queue's device.
  static void expect_input(const ConstTensorView& input, const Queue& queue) {
    expect(input.given(), Code::invalid_argument, "input is missing");
    if (input.dtype == DType::i64) refuse_integers("input");
    expect_like(input, {input.data, input.dtype, queue.device(), input.shape, input.order}, queue, "input");
  }
  /// Throws unless a replayed input has the shape of the earlier call's.
  static void expect_replayed(const Shape& input, const Shape& earlier) {
    expect(input == earlier, Code::invalid_argument, [&] {
      return "the replayed input has shape " + to_string(input) + ", must have " + to_string(earlier) +
             " as in the earlier call";
    });
  }
  /// `saved` as what calls of an operation like this leave.
  template <class Own>
  static const Own& own(const SavedCall& saved) {
    const auto* found = dynamic_cast<const Own*>(&saved);
    expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
    return *found;
  }

 private:
  void run_infer(const InputSlots&, const OutputSlots&, Queue&) final {
    fail(Code::unsupported, std::string(layer_.row->name) +
                                " has no running statistics and is the same in inference, must be called with forward");
  }

  Layer layer_;
  std::shared_ptr<Communicator> group_;
  std::string name_;
};

/// What a call of such an operation leaves has no statistics of the row's.
struct StatelessCall : SavedCall {
  bool training() const noexcept final { return false; }
  std::span<const double> statistic(std::string_view) const noexcept final { return {}; }
};

}  // namespace allnorm
