// A normalization layer: forward, backward, infer, and its state.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/communicator.hpp"
#include "allnorm/device.hpp"
#include "allnorm/nonfinite.hpp"
#include "allnorm/partition.hpp"
#include "allnorm/state.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

/// What a forward call reads. Only `input` must be given; the others as the layer's row in the catalogue says: what it
/// does not list is refused.
struct ForwardInputs {
  ConstTensorView input{};        ///< (N, C, space...), any dtype
  ConstTensorView weight{};       ///< gamma, of any type: (C), normalized_shape or what the row says; 1 when not given
  ConstTensorView bias{};         ///< beta, likewise; 0 when not given
  ConstTensorView residual{};     ///< like input, added before the activation
  ConstTensorView tau{};          ///< (C), of any type: the level that y does not fall below; none when not given
  ConstTensorView eps_learned{};  ///< (C): its size is added to eps; 0 when not given
  // Cross-Iteration BN with compensate:
  ConstTensorView conv_input{};   ///< (N, Ci, space...), dtype of input: what the convolution read
  ConstTensorView conv_weight{};  ///< (C, Ci/groups, k...), f32 or f64: the weights that made `input`
};

/// What a backward call reads. Gradients by the statistics are of rows that output mean and std; those of ranks add up.
struct BackwardInputs {
  ConstTensorView output{};  ///< of the loss by y, like input; 0 when not given where one of the others is
  ConstTensorView mean{};    ///< by the frame's mean, of any type: (N, 1, space...); 0 when not given
  ConstTensorView sigma{};   ///< by the frame's sigma, likewise
};

/// What a backward call writes; each optional.
struct BackwardOutputs {
  TensorView input{};        ///< like input
  TensorView residual{};     ///< like input
  TensorView weight{};       ///< of any type; this rank's share: data-parallel averaging is the caller's
  TensorView bias{};         ///< likewise
  TensorView tau{};          ///< likewise
  TensorView eps_learned{};  ///< likewise
};

/// The statistics that a call normalized with, one value per group G (channels for batch_norm, (N,G) for group_norm,
/// leading axes for layer_norm), in memory of the queue's device: to_host() brings them from a GPU.
/// y = gamma * ((x - mean) * rstd * r + d) + beta.
struct Frame {
  std::span<const double> mean{};   ///< (G)
  std::span<const double> var{};    ///< (G) biased, without eps
  std::span<const double> rstd{};   ///< (G)
  std::span<const double> r{};      ///< (G) with renorm, otherwise empty (1)
  std::span<const double> d{};      ///< (G) with renorm, otherwise empty (0)
  std::span<const double> sigma{};  ///< (G) 1 / rstd where the row outputs std, otherwise empty
  std::span<const double> share{};  ///< (G) d mean / d (this call's mean): 1 for BN, 1/n in a window, 0 in inference
};

/// What forward leaves for backward. It borrows the tensors of the call: keep them until backward is done. Several may
/// be in flight.
class Saved {
 public:
  Saved() = default;
  const Frame& frame() const noexcept { return frame_; }  ///< lives as long as this
  bool training() const noexcept { return training_; }  ///< the call used its batch's statistics, not the running ones

 private:
  friend class Norm;
  friend class NormImpl;
  ForwardInputs inputs_{};
  Frame frame_{};
  Buffer<double> memory_{};      ///< the frame's
  Buffer<std::uint8_t> mask_{};  ///< 1 bit per element: activation let it pass; only with a residual
  bool training_ = false;
};

/// Running statistics (C) of layers that keep them, empty otherwise.
struct RunningStatistics {
  std::vector<double> mean{};    ///< (C)
  std::vector<double> spread{};  ///< (C) the variance, or sigma where Layer::keeps_std()
  std::int64_t tracked = 0;      ///< updates so far: PyTorch's num_batches_tracked
};

/// One layer object. Calls are made by one thread at a time, all with queues of the device (on CUDA: of the stream)
/// that the layer was made with. A call that throws leaves the state as it was. On CUDA, calls return when their work
/// is enqueued: a disagreement between ranks leaves the state as it was, fills y or the gradients with NaN, and is
/// thrown by the next call that takes part in the group's exchanges, or by Communicator::check() after Queue::wait().
///
/// Sources: Ioffe & Szegedy 2015 (BN), Peng et al. 2018 (Cross-GPU BN), Ioffe 2017 (Batch Renormalization), Yao et al.
/// 2021 (Cross-Iteration BN), Bochkovskiy et al. 2020 (CmBN), Ba et al. 2016 (LN), Wu & He 2018 (GN), Singh & Krishnan
/// 2019 (FRN), Li et al. 2019 (PONO); docs/equations.md has the formulas as implemented.
class Norm {
 public:
  /// `channels` is C; layers without per-channel state (layer_norm) ignore it. `group`: the ranks that hold parts of
  /// the same groups, whatever the layer's sync; null means this rank alone. `name` appears in error messages and must
  /// be the same on all ranks. Throws invalid_argument for options out of range, for a sync that asks for ranks where
  /// no group is given (self() says that this rank is alone), and for a group of more ranks than it asks for.
  Norm(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
       std::string name = {});
  /// Moved, not copied.
  Norm(Norm&&) noexcept;
  /// Moved, not copied.
  Norm& operator=(Norm&&) noexcept;
  ~Norm();

  /// output = the layer's y for inputs.input, shaped and typed like it; may be the input itself when no backward
  /// follows. In training, exchanges with the group and then advances the state; with training=false uses the running
  /// statistics. Throws invalid_argument and invalid_input (its peers then throw aborted with this rank's reason),
  /// mismatch, timeout, aborted. A group must be in one mode: a rank in inference sends nothing, and its peers time
  /// out.
  Saved forward(const ForwardInputs& inputs, TensorView output, Queue& queue);
  /// The same output again from an earlier call's statistics: no exchange, no change of state (activation
  /// checkpointing).
  Saved replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue);
  /// Gradients of sum(grad_output * output). Exchanges 2 numbers per group when the forward call did.
  void backward(const Saved& saved, ConstTensorView grad_output, const BackwardOutputs& outputs, Queue& queue);
  /// With gradients by statistics too, where the row outputs them.
  void backward(const Saved& saved, const BackwardInputs& inputs, const BackwardOutputs& outputs, Queue& queue);
  /// output with the running statistics, whatever the mode: no exchange, no change of state. Throws unsupported for
  /// layers without running statistics that need none: they are the same in inference, use forward.
  void infer(const ForwardInputs& inputs, TensorView output, Queue& queue);

  /// Of all calls; on CUDA of those that are done. Does not wait.
  NonFiniteCalls nonfinite() const;
  /// Throws non_finite for such a call that has not been told yet, where the layer is to fail then: on CUDA the next
  /// call would. Does not wait.
  void check();

  /// Starts a new batch of mini-batches (minibatches > 1) before the current one is complete: the running statistics
  /// take what it has. Does nothing between batches.
  void begin_batch(Queue& queue);

  /// true: statistics of the batch, which advance the state; false: the running ones, where the layer has them.
  void set_training(bool training) noexcept;
  const Layer& layer() const noexcept;       ///< row and attributes
  const std::string& name() const noexcept;  ///< as errors have it
  Communicator& group() const noexcept;      ///< the ranks that share statistics, this one alone included
  std::int64_t channels() const noexcept;    ///< C

  // What follows moves values between the host and the queue's device, and waits for the queue.

  /// The whole state, under PyTorch's keys where it has them.
  State save(Queue& queue) const;
  /// The batch_norm family is one layer here: running statistics alone load into any of it that keeps the same spread.
  /// Checks everything before it changes anything: throws invalid_input for another family or C, missing or malformed
  /// entries, and where there are entries in a window or an open batch (and they are not dropped) for another window,
  /// number of mini-batches or of ranks.
  void load(const State& state, Queue& queue, const LoadOptions& options = {});

  /// The running statistics, to read, set or average.
  RunningStatistics running(Queue& queue) const;
  /// Sets them; ranks of a group must keep them equal. Throws invalid_argument for another number of channels,
  /// invalid_input for values that are not finite and for a negative spread.
  void set_running(const RunningStatistics& running, Queue& queue);
  /// True for layers that have them: the batch_norm family, instance_norm with track.
  bool has_running() const noexcept;

  /// Of the last training call with a window: past statistics as stored and as compensated, for reports. Row j (0 = the
  /// newest) holds C values.
  struct PastStatistics {
    std::int64_t entries = 0;          ///< past iterations
    std::vector<double> stale_mean{};  ///< (entries, C) as they were measured
    std::vector<double> stale_var{};   ///< likewise
    std::vector<double> mean{};        ///< (entries, C) moved to the present weights
    std::vector<double> var{};         ///< likewise
  };
  PastStatistics past(Queue& queue) const;  ///< without entries before such a call
  /// The r_max and d_max of the next training call.
  std::pair<double, double> renorm_bounds(Queue& queue) const;

  /// Bytes that the state and the window hold.
  std::size_t state_bytes() const noexcept;

 private:
  std::unique_ptr<class NormImpl> impl_;
};

}  // namespace allnorm
