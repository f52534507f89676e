// The two halves of a layer's call, with the exchange between them and all memory the caller's: for frameworks that
// have collectives and allocators of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "allnorm/catalogue.hpp"
#include "allnorm/norm.hpp"
#include "allnorm/operation.hpp"
#include "allnorm/state.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

/// The tensors of a typed call by the names of their slots; others are not looked at.
ForwardInputs forward_inputs(const InputSlots& slots);
/// \copybrief forward_inputs()
BackwardInputs backward_inputs(const InputSlots& slots);
/// \copybrief forward_inputs()
BackwardOutputs backward_outputs(const OutputSlots& slots);

/// What a layer's caller keeps of its state from call to call, in memory of the queue's device.
struct KeptState {
  // As PyTorch has them; all three or none: where there are none, every call takes those of a fresh layer.
  TensorView running_mean{};    ///< (C), of any floating-point type: the stored value is the rounded one
  TensorView running_spread{};  ///< (C), likewise: the variance, or sigma where Layer::keeps_std()
  /// i64 (1): updates so far. May be left out unless the momentum is cumulative: nothing is counted then, every call is
  /// number 0.
  TensorView tracked{};
  /// history_bytes() of a layer with a window or mini-batches, aligned to 8, as start_history() or calls left them;
  /// with running statistics.
  std::span<std::byte> history{};
};

/// What a forward call leaves for backward and replay, in memory of the queue's device.
struct KeptFrame {
  /// frame_size(G) doubles: mean, var, rstd and share (G) each; with renorm r and d (G); where the row outputs std,
  /// sigma (G); then the count of values per group over all ranks, and the call's number in the bits of the last one.
  double* frame = nullptr;
  std::uint8_t* mask = nullptr;  ///< (elements + 7) / 8 bytes with an activation and a residual, otherwise null
};

/// A layer that is a Norm, made once, for any number of calls by any number of threads: nothing of a call stays in it.
///
///     forward_local ─▶ the caller gathers the ranks' records ─▶ forward_finish           and backward likewise
///
/// Between the halves stands this rank's record alone. Records of one layer, number of channels and direction have one
/// length, whatever is in the window. They begin with a head of head_bytes; where ranks may have other numbers of
/// channels, heads alone tell (expect_agreement), before records of unequal lengths meet in a collective. On the CPU a
/// second half throws what heads say before it changes anything: mismatch, aborted with the reason of a rank whose
/// first half has declined, invalid_argument where weights of the convolution differ within a batch. On a GPU its
/// kernels find that, fill the output with NaN and leave the state, and expect_agreement tells; only of more values
/// than can be counted (2^53, over all ranks) nothing tells but the NaN. Calls on a GPU wait for nothing. A call has
/// the bits of the one over threads() of as many ranks, up to Patience::gather_limit of them.
///
/// Where nothing is exchanged (one rank, inference) first halves do nothing and records are null.
class Halves {
 public:
  /// As Norm for rank `rank` of `ranks`. Throws as Norm, invalid_argument for a rank that is not there, and unsupported
  /// for nonfinite=fail on a GPU, where no call waits for what its kernels find.
  Halves(const Layer& layer, std::int64_t channels, int rank, int ranks, Queue& queue, std::string name = {});
  /// Moved, not copied.
  Halves(Halves&&) noexcept;
  /// Moved, not copied.
  Halves& operator=(Halves&&) noexcept;
  ~Halves();

  const Layer& layer() const noexcept;  ///< row and attributes
  int rank() const noexcept;            ///< this rank's number
  int ranks() const noexcept;           ///< how many there are
  /// Forward and backward calls have something to exchange.
  bool exchanges() const noexcept;

  // ---- sizes: G is the number of groups of the statistics: channels for batch_norm, (N, G) for group_norm, ...
  static const std::size_t head_bytes;  ///< of a record's head, which is its beginning
  /// Of a record, head included.
  std::size_t record_bytes(Direction direction, std::int64_t groups) const;
  /// Doubles of KeptFrame::frame.
  std::int64_t frame_size(std::int64_t groups) const noexcept;
  /// G for such an input.
  std::int64_t groups(const ConstTensorView& input) const;
  /// Of what every function below takes as `work` for such inputs; contents are lost. Aligned to 8.
  std::size_t work_bytes(const ForwardInputs& inputs) const;
  /// Of a history: 0 where the layer has none. With a window that compensates `conv_weight` says how large its
  /// derivatives are, and `wide` that they are kept in f64 (as a Norm does where input or weight are).
  std::size_t history_bytes(const ConstTensorView& conv_weight = {}, bool wide = false) const;

  // ---- state
  /// Makes the history of a fresh layer in history_bytes() of the queue's device.
  void start_history(std::span<std::byte> history, Queue& queue, const ConstTensorView& conv_weight = {},
                     bool wide = false) const;
  /// There are entries in the window, or a batch is open. Of a history in the host's memory.
  bool has_entries(std::span<const std::byte> history) const;
  /// As Norm::begin_batch.
  void begin_batch(const KeptState& state, Queue& queue) const;
  /// As Norm's, under the same names: a state of one loads into the other.
  State save(const KeptState& state, Queue& queue) const;
  /// As Norm::load; throws as that does.
  void load(const State& from, const KeptState& state, Queue& queue, const LoadOptions& options = {}) const;

  // ---- calls: `record` has record_bytes() and `records` those of all ranks in rank order, aligned to 8
  /// Takes the moments. Does not throw where there are other ranks: what is wrong here is told in the record's head.
  void forward_local(const ForwardInputs& inputs, const KeptState& state, std::byte* work, std::byte* record,
                     Queue& queue) const;
  /// Writes output and frame, and the next state.
  void forward_finish(const ForwardInputs& inputs, TensorView output, const KeptState& state, const KeptFrame& frame,
                      std::byte* work, const std::byte* records, Queue& queue) const;
  /// The output again from an earlier call's frame, and its mask; no exchange, no change of state.
  void replay(const ForwardInputs& inputs, TensorView output, const KeptFrame& frame, Queue& queue) const;
  /// Sums, and the gradients of parameters. `inputs` as in the forward call; of a residual it is only looked at whether
  /// it is given. `outputs` as in backward_finish.
  void backward_local(const ForwardInputs& inputs, const BackwardInputs& gradients, const BackwardOutputs& outputs,
                      const KeptFrame& frame, std::byte* work, std::byte* record, Queue& queue) const;
  /// Writes the gradients of input and residual; where nothing is exchanged, all.
  void backward_finish(const ForwardInputs& inputs, const BackwardInputs& gradients, const BackwardOutputs& outputs,
                       const KeptFrame& frame, std::byte* work, const std::byte* records, Queue& queue) const;

  /// In place of a first half that this rank cannot make: its record says why, as where the first half fails itself.
  void decline(Direction direction, std::string_view why, std::byte* record, Queue& queue) const;
  /// Throws what the heads of all ranks say, `stride` bytes apart in the host's memory: heads alone, or of records.
  void expect_agreement(const std::byte* heads, std::size_t stride) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace allnorm
