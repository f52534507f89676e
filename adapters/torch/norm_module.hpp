// A normalization layer as a libtorch module with autograd.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adapters/torch/streams.hpp"
#include "allnorm/norm.hpp"
#include "allnorm/operation.hpp"

/// Layers of allnorm as modules of libtorch.
namespace allnorm::torch_adapter {

/// Tensors of a call by the names of the row's slots. An undefined one is not given.
using SlotTensors = std::vector<std::pair<std::string_view, torch::Tensor>>;

/// What one forward call leaves: the statistics that it normalized with. Handed back to NormModule::replay to compute
/// the same output again (activation checkpointing).
struct Call final : torch::CustomClassHolder {
  /// A tensor, and where its gradient is.
  struct Edge {
    std::string_view slot;      ///< the tensor's name
    std::string_view gradient;  ///< its gradient's
  };
  std::unique_ptr<SavedCall> saved;  ///< the library's part
  std::vector<Edge> edges;           ///< of the tensors that take gradients, the input first
  std::vector<Edge> statistics;  ///< of those that the call gives out: their names, and the slots of their gradients
  Order order = Order::channels_first;  ///< of the input's memory
};
using CallHandle = c10::intrusive_ptr<Call>;  ///< several may be in flight

/// An operation of the catalogue with parameters, autograd and train()/eval(). Tensors are of type Double, Float, Half
/// or BFloat16, dense in either order (others are copied), on the device of the module's queue. On a GPU everything,
/// the making of the layer's state included, runs on torch's current stream, whatever the stream of that queue: as with
/// torch's own modules, a program that changes the current stream orders the two. Several forwards may be in flight.
/// Every rank of the layer's group makes the same forward and backward calls in the same order. Errors are
/// allnorm::Error, but for a second backward through freed buffers, which is torch's own.
class NormModule : public torch::nn::Module {
 public:
  /// `channels` is C. Parameters that are the same for every input are the module's and made on the queue's device, of
  /// the values where the row says that they start, or those that stand for them where they are not given; over
  /// trailing axes they have the layer's normalized_shape (which must be given). All else is given with a call, and has
  /// its gradients there: tables with a row for each label, what each sample or position has of its own, maps, a style,
  /// and what rows of a weight are multiplied with. `queue` is borrowed and must outlive the module, and the module the
  /// graphs of its calls. `name` must be the same on all ranks. Throws invalid_argument for an activation that the
  /// layer's row does not have, unsupported as device_for() and for ranks as threads on GPUs.
  NormModule(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
             const std::string& name);

  /// The output for an input (N, C, space...), of the same shape and order; `more`: other tensors that the row lists,
  /// as "residual". In training mode uses and advances the layer's statistics; in evaluation mode uses the running
  /// ones.
  torch::Tensor forward(const torch::Tensor& input, const SlotTensors& more = {});
  /// The same, and after the output those statistics of the row that gradients may flow into, as mean and std of each
  /// position, in the row's order and of the input's type.
  std::vector<torch::Tensor> forward_with_statistics(const torch::Tensor& input, const SlotTensors& more = {});
  /// The output of an earlier call again, with gradients: no exchange in forward, no change of state.
  torch::Tensor replay(const CallHandle& earlier, const torch::Tensor& input, const SlotTensors& more = {});
  /// The newest forward call in training mode; null before the first.
  const CallHandle& last_call() const noexcept { return last_; }

  /// As torch::nn::Module::train; the layer goes along.
  void train(bool on = true) override;

  /// The module's parameter of that slot, Float until the module is converted; undefined where it has none.
  torch::Tensor parameter(std::string_view slot) const;
  /// Running statistics, counters and window: PyTorch's keys and the library's own. Parameters are the module's.
  State state() const { return operation_->save(queue()); }
  /// As Operation::load; throws invalid_input before anything is changed.
  void load_state(const State& state, const LoadOptions& options = {}) { operation_->load(state, queue(), options); }

  Operation& operation() noexcept { return *operation_; }              ///< the layer
  const Operation& operation() const noexcept { return *operation_; }  ///< the layer
  /// The operation as a layer with mean and variance. Throws unsupported where the row makes another.
  Norm& norm();
  /// The queue of calls made now: on a GPU over torch's current stream there.
  Queue& queue() const { return current_queue(*queue_); }
  /// Who is to know of calls: called as one begins, forward (also again) or backward; what it returns goes as it ends.
  using CallScope = std::function<std::shared_ptr<void>(const Operation&, Direction)>;
  /// Sets it; empty: nobody.
  void watch_calls(CallScope scope) { scope_ = std::move(scope); }
  /// Tells it of a call, for as long as the result lives.
  std::shared_ptr<void> begin_call(Direction direction) const {
    return scope_ ? scope_(*operation_, direction) : nullptr;
  }
  /// True where the layer acts on trailing axes as they lie.
  bool by_rows() const noexcept { return operation_->layer().row->by_trailing(); }

  torch::Tensor weight;  ///< parameter("weight"), as torch's own modules have it
  torch::Tensor bias;    ///< parameter("bias"), likewise

 private:
  std::vector<torch::Tensor> run(const torch::Tensor& input, const SlotTensors& more, const CallHandle& call,
                                 const CallHandle& earlier);

  std::unique_ptr<Operation> operation_;
  Queue* queue_;
  CallHandle last_;
  CallScope scope_;
};

}  // namespace allnorm::torch_adapter
