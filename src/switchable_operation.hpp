// The operation of rows that mix the statistics of instance, layer and batch norm (Switchable Normalization). Those of
// every channel of a sample are the only pass over x; layer and batch norm's are made of them, by the steps of
// kernels/switchable_steps.hpp. N samples, C channels.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/switchable_steps.hpp"
#include "src/norm_impl.hpp"
#include "src/operations.hpp"
#include "src/record_exchange.hpp"

namespace allnorm {

class SwitchableOperation final : public Operation {
 public:
  SwitchableOperation(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                      std::string name);

  const Layer& layer() const noexcept override { return layer_; }
  const std::string& name() const noexcept override { return norm_.name_; }
  Communicator& group() const noexcept override { return *norm_.group_; }
  void set_training(bool training) noexcept override;
  NonFiniteCalls nonfinite() const override { return norm_.nonfinite(); }
  void check() override {
    Operation::check();
    norm_.expect_finite();
  }
  State state(Queue& queue) const override;
  void set_state(const State& given, Queue& queue) override;
  State save(Queue& queue) const override;
  void load(const State& state, Queue& queue, const LoadOptions& options) override;

 private:
  /// What a call leaves: its statistics, in memory of the device, and the tensors that it borrows.
  struct Call final : SavedCall {
    bool training() const noexcept override { return exchanged; }
    std::span<const double> statistic(std::string_view name) const noexcept override;

    ConstTensorView input{}, weight{}, bias{};
    Partition partition{};  // into the channels of samples
    Buffer<double> memory{};
    steps::SwitchedFrames frames{};  // in `memory`
    bool live = false;               // the batch's statistics are this call's, not the running ones
    bool exchanged = false;          // so does backward
  };
  struct Map;
  struct Gradients;

  // The norm keeps the state and makes the exchanges; its sets are those whose moments travel.
  static Row row_of_norm(const Layer& layer);
  static Layer of_norm(Layer layer, const Row& row);

  /// Ranks hold parts of the same samples.
  bool has_parts_of_samples() const noexcept { return layer_.options.shard == Shard::space && group().size() > 1; }
  // Parts of samples have statistics of their own nowhere: inference exchanges those of the samples, too.
  bool exchanges(bool infers) const noexcept override {
    return has_parts_of_samples() || (layer_.options.training && !infers);
  }
  /// Ranks with samples of their own share the batch's statistics.
  bool shares_batch(const Call& call) const noexcept {
    return call.live && !has_parts_of_samples() && group().size() > 1;
  }

  // What can be wrong on this rank alone.
  void check(const InputSlots& inputs, const ConstTensorView& output, const Queue& queue) const;
  void check_gradients(const ConstTensorView& x, const OutputSlots& gradients, const Queue& queue) const;
  static const Call& own(const SavedCall& call);

  // switchable_forward.cpp
  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override;
  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override;
  void run_infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override;
  std::unique_ptr<Call> forward(const InputSlots& inputs, const TensorView& output, bool infers, Queue& queue);
  /// A call of these tensors, which are checked; room for its frames.
  std::unique_ptr<Call> call_with(const InputSlots& inputs, Queue& queue) const;
  /// This rank's moments; where others join them, its record, ready to be exchanged.
  RecordExchange take_moments(const Call& call, Queue& queue) const;
  RecordExchange forward_exchange(const Call& call, std::int64_t groups, Queue& queue) const;
  /// The moments of instances, layers and, in `mean` and `m2` (C), of this rank's batch.
  void pool(const Call& call, const steps::SetCount& count, double* mean, double* m2, Queue& queue) const;
  /// Those of all ranks, and the next state.
  void make_statistics(const Call& call, RecordExchange& exchange, const InputSlots& inputs, Queue& queue) const;

  // switchable_backward.cpp
  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override;
  /// This rank's sums and its shares of the parameters' gradients; where others join them, its record, ready to be
  /// exchanged.
  RecordExchange take_sums(const Call& call, const ConstTensorView& dy, Gradients& made, const OutputSlots& gradients,
                           Queue& queue) const;
  RecordExchange backward_exchange(const Call& call, std::int64_t groups, Queue& queue) const;
  /// What sums of dy and dy * (x - mean) (2, N * C) make: the terms of all sets, layers and batches, and the
  /// parameters' gradients, which are of this rank's.
  void make_terms(const Call& call, const Gathered& sums, Gradients& made, const steps::TermArrays& batches,
                  const OutputSlots& gradients, Queue& queue) const;
  void write_input(const Call& call, const ConstTensorView& dy, Gradients& made, const std::uint64_t* fails,
                   const TensorView& dx, Queue& queue) const;

  Layer layer_;
  Row row_;
  NormImpl norm_;
};

}  // namespace allnorm
