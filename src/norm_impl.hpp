// The inside of a layer: what forward, backward and the state share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "allnorm/norm.hpp"
#include "kernels/arrays.hpp"
#include "kernels/ops.hpp"
#include "src/cross_iteration.hpp"
#include "src/layer_memory.hpp"
#include "src/plan.hpp"

namespace allnorm {

/// The names under which the tensors of a typed call stand in the catalogue and in messages; `tensor` is the one of the
/// row that lets it be given.
struct InputSlot {
  const char* name;
  ConstTensorView ForwardInputs::*view;
  std::string_view tensor;
};
inline constexpr InputSlot input_slots[] = {{"residual", &ForwardInputs::residual, "residual"},
                                            {"weight", &ForwardInputs::weight, "weight"},
                                            {"gain", &ForwardInputs::weight, "gain"},
                                            {"gamma", &ForwardInputs::weight, "gamma"},
                                            {"bias", &ForwardInputs::bias, "bias"},
                                            {"beta", &ForwardInputs::bias, "beta"},
                                            {"tau", &ForwardInputs::tau, "tau"},
                                            {"eps_learned", &ForwardInputs::eps_learned, "eps_learned"},
                                            {"conv_input", &ForwardInputs::conv_input, "conv_input"},
                                            {"conv_weight", &ForwardInputs::conv_weight, "conv_weight"}};
struct GradientSlot {
  const char* name;
  TensorView BackwardOutputs::*view;
  std::string_view tensor;
};
inline constexpr GradientSlot gradient_slots[] = {{"grad_residual", &BackwardOutputs::residual, "residual"},
                                                  {"grad_weight", &BackwardOutputs::weight, "weight"},
                                                  {"grad_gain", &BackwardOutputs::weight, "gain"},
                                                  {"grad_gamma", &BackwardOutputs::weight, "gamma"},
                                                  {"grad_bias", &BackwardOutputs::bias, "bias"},
                                                  {"grad_beta", &BackwardOutputs::bias, "beta"},
                                                  {"grad_tau", &BackwardOutputs::tau, "tau"},
                                                  {"grad_eps_learned", &BackwardOutputs::eps_learned, "eps_learned"}};
/// Of backward, besides grad_output.
struct BackwardSlot {
  const char* name;
  ConstTensorView BackwardInputs::*view;
};
inline constexpr BackwardSlot backward_slots[] = {{"grad_mean", &BackwardInputs::mean},
                                                  {"grad_std", &BackwardInputs::sigma}};

/// The row lets the tensor of that slot be given, under this name or another.
template <class Slot, std::size_t size>
bool serves(const Row& row, const Slot (&slots)[size], const Slot& slot) {
  return std::any_of(std::begin(slots), std::end(slots),
                     [&](const Slot& other) { return other.view == slot.view && row.tensor(other.tensor) != nullptr; });
}

/// The row's state tensors by name, of running statistics; and of those what `given` has in their place. Throws
/// invalid_argument for what the layer does not keep, invalid_input for another shape.
State named_state(const Layer& layer, const RunningStatistics& running);
void take_named_state(const Layer& layer, const State& given, RunningStatistics& running);

/// Writes of which layer, and of which rank, a state is; and reads it: false for a framework's buffers, which have no
/// such mark. Throws invalid_input for a layer of another family, or another version.
void mark_state(State& state, const Layer& layer, const Communicator& group);
bool expect_mark(const State& state, const Row& row);

class NormImpl {
 public:
  /// Without `keeps_state` its calls are given one (CallMemory).
  NormImpl(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
           std::string name, bool keeps_state = true);

  Saved forward(const ForwardInputs& inputs, TensorView output, Queue& queue);
  Saved replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue);
  void backward(const Saved& saved, BackwardInputs inputs, const BackwardOutputs& outputs, Queue& queue);
  void infer(const ForwardInputs& inputs, TensorView output, Queue& queue);
  void begin_batch(Queue& queue);
  State save(Queue& queue) const;
  void load(const State& state, Queue& queue, const LoadOptions& options);
  std::pair<double, double> renorm_bounds(Queue& queue) const;
  // norm_values.cpp
  NonFiniteCalls nonfinite() const { return nonfinite(memory_.met()); }
  NonFiniteCalls nonfinite(const HitsMet& met) const;
  /// Throws non_finite, once for a call, where the layer is to fail then.
  void expect_finite();
  /// Throws it where there was one.
  void expect_finite(const HitsMet& met) const;
  /// Throws invalid_input where a call, on a CPU, had more values than can be counted.
  void expect_counted(const Turn& call) const;

  bool has_running() const noexcept { return memory_.persists(); }

  /// Memory that the halves of a call share until it is enqueued, in one block: on a GPU every allocation takes time.
  struct Work {
    Buffer<std::byte> memory{};
    double* scratch = nullptr;
    Record record{};  // this rank's, and room for the group's
  };
  /// Memory of the caller's in place of Work's own.
  struct Place {
    std::byte* scratch = nullptr;
    std::byte* record = nullptr;
  };
  // Of an exchange (norm_call.cpp), also for operations that keep state and group in a layer of theirs.
  Header header(DType dtype, std::int64_t groups, Direction direction) const;
  Work make_work(std::int64_t scratch, std::int64_t count, Header& header, Queue& queue,
                 const Place* place = nullptr) const;
  /// The group's records, or what a rank that is alone has in its own.
  Gathered gather(const Work& work, bool exchanges, Queue& queue) const;

  Layer layer_;
  std::int64_t channels_;
  std::shared_ptr<Communicator> group_;
  std::string name_;
  Device device_;
  LayerMemory memory_;
  std::int64_t failed_ = 0;      // calls that expect_finite() has told
  bool tells_channels_ = false;  // what is not finite is noted by channel, whatever has moments

  /// What a call leaves for backward, and the state that it takes and changes, in memory of the queue's device.
  struct CallMemory {
    LayerState state{};
    double* frame = nullptr;       // frame_size() doubles
    std::uint8_t* mask = nullptr;  // where has_mask()
  };
  /// A call that takes moments, on its way through its halves.
  struct ForwardCall {
    ForwardArgs args{};
    Work work{};
    CrossIteration past{};
  };

  // What can be wrong on this rank alone (norm_check.cpp).
  Plan check(const ForwardInputs& inputs, const ConstTensorView& output, const Queue& queue) const;
  void check(const ForwardInputs& inputs, const BackwardInputs& gradients, const BackwardOutputs& outputs,
             const Queue& queue) const;

  // From a call's tensors to what its halves take (norm_call.cpp).
  void describe(const ForwardInputs& inputs, const Plan& plan, LayerCall& call) const;
  void describe(const ForwardInputs& inputs, const TensorView& output, const Plan& plan, const CallMemory& memory,
                ForwardArgs& args) const;
  void describe(const ForwardInputs& inputs, const BackwardInputs& gradients, const BackwardOutputs& outputs,
                const CallMemory& memory, BackwardArgs& args) const;
  bool has_mask(const ForwardInputs& inputs) const noexcept {
    return layer_.options.activation.kind != ActivationKind::identity && inputs.residual.given();
  }
  /// Doubles of a frame: its arrays one after the other (lay_out), then the scalars.
  std::int64_t frame_size(std::int64_t groups) const noexcept;
  /// Where they lie in `memory`.
  Frame frame_in(const double* memory, std::int64_t groups) const noexcept;
  steps::FrameView lay_out(double* memory, std::int64_t groups) const noexcept;
  /// `place`: memory of the caller's; otherwise the work has its own.
  Work work_for(ForwardArgs& args, std::int64_t more, const Place* place, Queue& queue) const;
  Work work_for(BackwardArgs& args, bool exchanges, const Place* place, Queue& queue) const;

  // The halves of a call (norm_forward.cpp, norm_backward.cpp).
  /// Everything of a call but its kernels. The window in `memory` has the derivatives' arrays; a message has products
  /// of `entries` of it.
  void open(ForwardCall& call, const ForwardInputs& inputs, const TensorView& output, const Plan& plan,
            const CallMemory& memory, std::int64_t entries, const Place* place, Queue& queue) const;
  void first_half(ForwardCall& call, Queue& queue) const;
  void second_half(const ForwardCall& call, const Gathered& gathered, Queue& queue) const;

 private:
  /// Memory for what a call leaves.
  Saved saved_for(const ForwardInputs& inputs, std::int64_t groups, Queue& queue) const;
  CallMemory memory_of(Saved& saved) const noexcept {
    return {memory_.view(), saved.memory_.data(), saved.mask_.data()};
  }
  Saved map(const ForwardInputs& inputs, const TensorView& output, FrameSource source, const Saved* earlier,
            Queue& queue) const;
};

}  // namespace allnorm
