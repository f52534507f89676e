// A normalization layer: forward, backward, infer, and its state.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/catalogue.hpp"
#include "allnorm/communicator.hpp"
#include "allnorm/device.hpp"
#include "allnorm/partition.hpp"
#include "allnorm/state.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

/// What a forward call reads. Only `input` must be given; the others as the layer's row in the catalogue says.
struct ForwardInputs {
  ConstTensorView input{};     ///< (N, C, space...), any dtype
  ConstTensorView weight{};    ///< gamma, f32 or f64: (C) or normalized_shape; 1 when not given
  ConstTensorView bias{};      ///< beta, likewise; 0 when not given
  ConstTensorView residual{};  ///< like input, added before the activation
  // Cross-Iteration BN with compensate, one of the two pairs:
  ConstTensorView conv_input{};   ///< (N, Ci, space...), dtype of input: what the convolution read
  ConstTensorView conv_weight{};  ///< (C, Ci/groups, k...), f32 or f64: the weights that made `input`
  // ... or conv_weight and, from a framework, sums over this rank's values instead of conv_input:
  ConstTensorView patch_sum{};      ///< (C, fan-in), f32 or f64: sum over n, space of d x_c / d theta_c
  ConstTensorView patch_product{};  ///< (C, fan-in): sum of x_c * d x_c / d theta_c
};

/// What a backward call writes; each optional.
struct BackwardOutputs {
  TensorView input{};     ///< like input
  TensorView residual{};  ///< like input
  TensorView weight{};    ///< f32 or f64; this rank's share: data-parallel averaging is the caller's
  TensorView bias{};
};

/// The statistics that a call normalized with, one value per group G (channels for batch_norm, (N,G) for group_norm,
/// leading axes for layer_norm). y = gamma * ((x - mean) * rstd * r + d) + beta.
struct Frame {
  Buffer<double> mean{};   ///< (G)
  Buffer<double> var{};    ///< (G) biased, without eps
  Buffer<double> rstd{};   ///< (G)
  Buffer<double> r{};      ///< (G) with renorm, otherwise empty (1)
  Buffer<double> d{};      ///< (G) with renorm, otherwise empty (0)
  Buffer<double> share{};  ///< (G) d mean / d (this call's mean): 1 for BN, 1/n in a window, 0 in inference
  double count = 0;        ///< values per group of this call, over all ranks
};

/// What forward leaves for backward. It borrows the tensors of the call: keep them until backward is done. Several may
/// be in flight.
class Saved {
 public:
  Saved() = default;
  const Frame& frame() const noexcept { return frame_; }
  bool training() const noexcept { return training_; }

 private:
  friend class Norm;
  friend class NormImpl;
  ForwardInputs inputs_{};
  Frame frame_{};
  Buffer<std::uint8_t> mask_{};  ///< 1 bit per element: activation let it pass; only with a residual
  std::uint64_t call_ = 0;
  bool training_ = false;
};

struct LoadOptions {
  bool drop_window = false;  ///< accept a state of another number of ranks, without its per-rank parts
};

/// One layer object. Calls are made by one thread at a time. A call that throws leaves the state as it was.
///
/// Sources: Ioffe & Szegedy 2015 (BN), Peng et al. 2018 (Cross-GPU BN), Ioffe 2017 (Batch Renormalization), Yao et al.
/// 2021 (Cross-Iteration BN), Bochkovskiy et al. 2020 (CmBN), Ba et al. 2016 (LN), Wu & He 2018 (GN);
/// docs/equations.md has the formulas as implemented.
class Norm {
 public:
  /// `channels` is C; layers without per-channel state (layer_norm) ignore it. `group`: the ranks that hold parts of
  /// the same groups; null means self(). `name` appears in error messages and must be the same on all ranks. Throws
  /// invalid_argument for options out of range.
  Norm(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
       std::string name = {});
  Norm(Norm&&) noexcept;
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
  /// output with the running statistics, whatever the mode: no exchange, no change of state. Throws unsupported for
  /// layers without running statistics that need none: they are the same in inference, use forward.
  void infer(const ForwardInputs& inputs, TensorView output, Queue& queue);

  /// Starts a new batch of mini-batches (minibatches > 1) before the current one is complete: the running statistics
  /// take what it has. Does nothing between batches.
  void begin_batch(Queue& queue);

  void set_training(bool training) noexcept;
  const Layer& layer() const noexcept;
  const std::string& name() const noexcept;
  Communicator& group() const noexcept;
  std::int64_t channels() const noexcept;

  /// The whole state. Loading checks everything before it changes anything: throws invalid_input for another layer,
  /// C, window, number of ranks (unless dropped), missing or malformed entries.
  State save() const;
  void load(const State& state, const LoadOptions& options = {});

  /// Running statistics (C) of the batch_norm family, empty otherwise; running_spread is the variance, or sigma where
  /// Layer::keeps_std(). Writable, so that a caller can set or average them; ranks of a group must keep them equal.
  Buffer<double>& running_mean() noexcept;
  Buffer<double>& running_spread() noexcept;
  std::int64_t batches_tracked() const noexcept;
  void set_batches_tracked(std::int64_t count) noexcept;

  /// Of the last training call with a window: past statistics as stored and as compensated, for reports. Row j (0 = the
  /// newest) holds C values.
  struct PastStatistics {
    std::int64_t entries = 0;
    std::vector<double> stale_mean{}, stale_var{}, mean{}, var{};  ///< (entries, C)
  };
  const PastStatistics& past() const noexcept;
  /// The r_max and d_max of the next training call.
  std::pair<double, double> renorm_bounds() const noexcept;
  /// Bytes that the state and the window hold.
  std::size_t state_bytes() const noexcept;

 private:
  std::unique_ptr<class NormImpl> impl_;
};

}  // namespace allnorm
