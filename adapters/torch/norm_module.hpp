// A normalization layer as a libtorch module with autograd.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "adapters/torch/streams.hpp"
#include "allnorm/norm.hpp"

namespace allnorm::torch_adapter {

/// What one forward call leaves: the statistics that it normalized with. Handed back to NormModule::replay to compute
/// the same output again (activation checkpointing).
struct Call final : torch::CustomClassHolder {
  Saved saved;
};
using CallHandle = c10::intrusive_ptr<Call>;

/// What the convolution before a layer with a window and compensation read and held when it made the layer's input.
struct ConvolutionTensors {
  torch::Tensor input;   ///< (N, Ci, space...)
  torch::Tensor weight;  ///< (C, Ci/groups, k...)
};

/// allnorm::Norm with parameters, autograd and train()/eval(). Tensors are of type Double, Float, Half or BFloat16,
/// dense in either order (others are copied), on the device of the module's queue. On a GPU everything, the making of
/// the layer's state included, runs on torch's current stream, whatever the stream of that queue: as with torch's own
/// modules, a program that changes the current stream orders the two. Several forwards may be in flight. Every rank of
/// the layer's group makes the same forward and backward calls in the same order. Errors are allnorm::Error, but for a
/// second backward through freed buffers, which is torch's own.
class NormModule : public torch::nn::Module {
 public:
  /// `channels` is C, also for layer_norm, whose parameters have the layer's normalized_shape (which must be given).
  /// The parameters are made on the queue's device. `queue` is borrowed and must outlive the module, and the module the
  /// graphs of its calls. `name` must be the same on all ranks. Throws invalid_argument for an activation that the
  /// layer's row does not have, unsupported as device_for() and for ranks as threads on GPUs.
  NormModule(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
             const std::string& name);

  /// y = activation(gamma * xhat + beta + residual), input (N, C, space...) -> the same shape and order. In training
  /// mode uses and advances the layer's statistics; in evaluation mode uses the running ones.
  torch::Tensor forward(const torch::Tensor& input, const torch::Tensor& residual = {},
                        const ConvolutionTensors& convolution = {});
  /// The output of an earlier call again, with gradients: no exchange in forward, no change of state.
  torch::Tensor replay(const CallHandle& earlier, const torch::Tensor& input, const torch::Tensor& residual = {});
  /// The newest forward call in training mode; null before the first.
  const CallHandle& last_call() const noexcept { return last_; }

  void train(bool on = true) override;

  /// Running statistics, counters and window: PyTorch's keys and the library's own. Parameters are the module's.
  State state() const { return norm_.save(current_queue(*queue_)); }
  void load_state(const State& state, const LoadOptions& options = {}) {
    norm_.load(state, current_queue(*queue_), options);
  }

  Norm& norm() noexcept { return norm_; }
  const Norm& norm() const noexcept { return norm_; }
  /// The queue of calls made now: on a GPU over torch's current stream there.
  Queue& queue() const { return current_queue(*queue_); }
  /// True where the layer acts on trailing axes as they lie.
  bool by_rows() const noexcept { return norm_.layer().row->by_trailing(); }

  /// Throws invalid_argument with the name of a tensor, or parameter, that is on another device than the module's
  /// queue.
  void expect_tensors(const torch::Tensor& input, const torch::Tensor& residual,
                      const ConvolutionTensors& convolution) const;

  torch::Tensor weight,
      bias;  ///< gamma and beta, Float until the module is converted; undefined where the row has none

 private:
  Norm norm_;
  Queue* queue_;
  CallHandle last_;
};

}  // namespace allnorm::torch_adapter
