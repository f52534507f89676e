// What a row of the catalogue makes, with its tensors bound by the names of the row's slots.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/communicator.hpp"
#include "allnorm/device.hpp"
#include "allnorm/nonfinite.hpp"
#include "allnorm/state.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

class Norm;

/// Views by the names of slots, which are borrowed. One that is not given is as if it were not there.
template <class View>
class Slots {
 public:
  /// A name and its view.
  using Slot = std::pair<std::string_view, View>;

  Slots() = default;
  /// These slots.
  Slots(std::initializer_list<Slot> slots) : slots_(slots) {}

  /// Adds a slot that is not there yet.
  void add(std::string_view name, const View& view) { slots_.emplace_back(name, view); }
  /// The view of that name, or one that is not given.
  View operator[](std::string_view name) const noexcept {
    for (const auto& [own, view] : slots_)
      if (own == name) return view;
    return {};
  }
  auto begin() noexcept { return slots_.begin(); }        ///< of all slots, in the order in which they were added
  auto end() noexcept { return slots_.end(); }            ///< likewise
  auto begin() const noexcept { return slots_.begin(); }  ///< likewise
  auto end() const noexcept { return slots_.end(); }      ///< likewise

 private:
  std::vector<Slot> slots_{};
};
using InputSlots = Slots<ConstTensorView>;  ///< what a call reads
using OutputSlots = Slots<TensorView>;      ///< what a call writes

/// The shape of the output, and of grad_output, of a call with these inputs: the input's, or (N, M) where an input
/// (N, K) is compared with vectors (M, K).
Shape output_shape(const Row& row, const InputSlots& inputs) noexcept;

/// What a forward call leaves for backward and replay. It borrows the tensors of the call: keep them until backward is
/// done. Several may be in flight.
class SavedCall {
 public:
  virtual ~SavedCall() = default;
  /// The call took part in an exchange of the group, and so does its backward call.
  virtual bool training() const noexcept = 0;
  /// The values of a statistic, in memory of the queue's device, for as long as this is there; none where the call has
  /// no such statistic.
  virtual std::span<const double> statistic(std::string_view name) const noexcept = 0;
};

/// One layer object of any row. Tensors are what the row lists: of forward, infer and replay "input" and the row's
/// tensors but its state and gradients of statistics, and "output"; of backward "grad_output" and these gradients, and
/// "grad_input" with the row's gradients. What a call is given beyond that is refused with invalid_argument, as is what
/// does not fit the input with invalid_argument or invalid_input. Calls, threads and errors are as of Norm
/// (allnorm/norm.hpp).
class Operation {
 public:
  virtual ~Operation() = default;

  /// Writes "output"; in training exchanges with the group and then advances the state. Throws as Norm::forward.
  std::unique_ptr<SavedCall> forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue);
  /// The same output again from an earlier call's statistics: no exchange, no change of state.
  std::unique_ptr<SavedCall> replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                    Queue& queue);
  /// Gradients of sum(grad_output * output), and of as much for every gradient of a statistic; each optional. Without
  /// grad_output only where one of the latter is given.
  void backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients, Queue& queue);
  /// The output with the state as it is, whatever the mode. Throws unsupported where the row has no state.
  void infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue);

  /// Throws what the kernels of calls that are done have found, in their tensors (invalid_input) or in an exchange;
  /// every later call asks too. Never blocks: after Queue::wait() it has heard of all calls.
  virtual void check() { group().check(); }

  /// See Norm::nonfinite; nothing where the row has no attribute nonfinite.
  virtual NonFiniteCalls nonfinite() const { return {}; }

  virtual const Layer& layer() const noexcept = 0;        ///< row and attributes
  virtual const std::string& name() const noexcept = 0;   ///< as errors have it
  virtual Communicator& group() const noexcept = 0;       ///< the ranks that share statistics
  virtual void set_training(bool training) noexcept = 0;  ///< as Norm::set_training

  // What follows moves values between the host and the queue's device, and waits for the queue.

  /// The row's state tensors that exist with the layer's options, under their names.
  virtual State state(Queue& queue) const = 0;
  /// Sets those of them that `state` has. Throws invalid_input for another shape, and for values that no layer has.
  virtual void set_state(const State& state, Queue& queue) = 0;
  /// Everything that the next call depends on.
  virtual State save(Queue& queue) const = 0;
  /// Checks everything before it changes anything, and throws invalid_input.
  virtual void load(const State& state, Queue& queue, const LoadOptions& options = {}) = 0;

  /// The layer, for what only one with mean and variance has; null for other operations.
  virtual Norm* norm() noexcept { return nullptr; }

 protected:
  /// A call with the running statistics, or the present mode's, takes part in an exchange.
  virtual bool exchanges(bool infers) const noexcept {
    return !infers && (layer().options.training || !layer().has_state());
  }

 private:
  // The same, with slots that the row has.
  virtual std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs,
                                                 Queue& queue) = 0;
  virtual std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs,
                                                const OutputSlots& outputs, Queue& queue) = 0;
  virtual void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                            Queue& queue) = 0;
  virtual void run_infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) = 0;

  void expect_slots(const InputSlots& inputs, const OutputSlots& outputs) const;
};

/// The operation of the layer's row. `channels`, `group` and `name` are as for Norm; throws as its constructor.
std::unique_ptr<Operation> make_operation(const Layer& layer, std::int64_t channels,
                                          std::shared_ptr<Communicator> group, Queue& queue, std::string name = {});

}  // namespace allnorm
