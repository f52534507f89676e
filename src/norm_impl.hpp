// The inside of a layer: what forward, backward and the state share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/norm.hpp"
#include "history.hpp"
#include "kernels/formulas.hpp"
#include "plan.hpp"
#include "running.hpp"

namespace allnorm {

using Values = std::vector<double>;

inline std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

/// Throws unless `view` has the shape, dtype, order and device of the input.
void expect_like(const ConstTensorView& view, const ConstTensorView& input, const char* name);
/// Copies in memory of the queue's device.
Buffer<double> copy(const Values& values, Queue& queue);
Buffer<double> copy(const Buffer<double>& values, Queue& queue);
Buffer<double> filled(std::size_t size, double value, Queue& queue);

/// r and d of one group of a frame.
formulas::Correction correction_of(const Frame& frame, std::size_t group) noexcept;

/// Per fine group F of a plan: y = (x - center) * scale + shift.
struct FineCoefficients {
  Values center{}, scale{}, shift{};  // (F)
};
FineCoefficients fine_coefficients(const Plan& plan, const Frame& frame, const Values& gamma, const Values& beta);

class NormImpl {
 public:
  NormImpl(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
           std::string name);

  Saved forward(const ForwardInputs& inputs, TensorView output, Queue& queue);
  Saved replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue);
  void backward(const Saved& saved, const ConstTensorView& grad_output, const BackwardOutputs& outputs, Queue& queue);
  void infer(const ForwardInputs& inputs, TensorView output, Queue& queue);
  void begin_batch(Queue& queue);
  State save() const;
  void load(const State& state, const LoadOptions& options);

  bool has_running() const noexcept { return layer_.row->reduction == Reduction::batch_and_space; }
  std::pair<double, double> bounds() const noexcept {
    return {ramp_value(layer_.options.r_max_ramp, running_.calls, layer_.options.r_max),
            ramp_value(layer_.options.d_max_ramp, running_.calls, layer_.options.d_max)};
  }

  Layer layer_;
  std::int64_t channels_;
  std::shared_ptr<Communicator> group_;
  std::string name_;
  Running running_;
  History history_;
  Norm::PastStatistics past_;
  std::uint64_t calls_ = 0;  // training forward calls: the call number of messages

 private:
  // What a training call will leave behind; nothing of it shows before commit().
  struct Next {
    History::Step history{};
    bool moves = false;               // the running statistics do
    Buffer<double> mean{}, spread{};  // (C) running statistics, where they move
    Values pivot{};                   // (C)
    bool counts = false;              // the call had values
  };

  // Of this rank's values, per group.
  struct LocalMoments {
    double count = 0;
    Values mean{}, m2{};  // (G); m2: sum of squared deviations
  };

  Plan check(const ForwardInputs& inputs, const ConstTensorView& output, const Queue& queue) const;
  Header header(const ForwardInputs& inputs, const Plan& plan, Direction direction, std::uint64_t call) const;

  LocalMoments local_moments(const ForwardInputs& inputs, const Plan& plan, Queue& queue) const;
  Statistics exchanged(const LocalMoments& local, const ForwardInputs& inputs, const Plan& plan,
                       const DerivativeSource* source, Values& lanes, Queue& queue) const;
  Next history(const Statistics& current, const Values& lanes, const DerivativeSource* source, Queue& queue) const;
  Frame corrected(const Statistics& use, double count, Queue& queue) const;
  Frame inference_frame(Queue& queue) const;
  void apply(const ForwardInputs& inputs, const Plan& plan, const Frame& frame, const TensorView& output,
             Buffer<std::uint8_t>& mask, Queue& queue) const;
  void commit(Next&& next) noexcept;
  void advance_running(const RunningValues& values, Next& next, Queue& queue) const;
};

}  // namespace allnorm
