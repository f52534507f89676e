// The inside of a layer: what forward, backward and the state share.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "allnorm/norm.hpp"
#include "kernels/ops.hpp"
#include "src/convolution.hpp"
#include "src/layer_memory.hpp"
#include "src/plan.hpp"

namespace allnorm {

using Values = std::vector<double>;

inline std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

/// Throws unless `view` has the shape, dtype, order and device of the input, and data that the queue can use.
void expect_like(const ConstTensorView& view, const ConstTensorView& input, const Queue& queue, const char* name);

/// Throws invalid_argument where `name` is given, which stands for a tensor, or is its gradient, that the row does not
/// list.
void expect_listed(const Row& row, bool given, std::string_view name, std::string_view tensor);

class NormImpl {
 public:
  NormImpl(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
           std::string name);

  Saved forward(const ForwardInputs& inputs, TensorView output, Queue& queue);
  Saved replay(const Saved& earlier, const ForwardInputs& inputs, TensorView output, Queue& queue);
  void backward(const Saved& saved, const ConstTensorView& grad_output, const BackwardOutputs& outputs, Queue& queue);
  void infer(const ForwardInputs& inputs, TensorView output, Queue& queue);
  void begin_batch(Queue& queue);
  State save(Queue& queue) const;
  void load(const State& state, Queue& queue, const LoadOptions& options);
  std::pair<double, double> renorm_bounds(Queue& queue) const;

  bool has_running() const noexcept { return memory_.persists(); }

  Layer layer_;
  std::int64_t channels_;
  std::shared_ptr<Communicator> group_;
  std::string name_;
  Device device_;
  LayerMemory memory_;

 private:
  // Memory that the halves of a call share until it is enqueued, in one block: on a GPU every allocation takes time.
  struct Work {
    Buffer<std::byte> memory{};
    double* scratch = nullptr;
    Record record{};  // this rank's, and room for the group's
  };
  struct Call {
    ForwardArgs args{};
    std::optional<DerivativeSource> source{};
    DerivativesArgs derivatives{};
    Work work{};
  };

  // A call's frame as kernels see it, in saved.memory_; also told to saved.frame_.
  static steps::FrameView lay_out(Saved& saved, std::int64_t groups, bool renorm);
  static steps::FrameView frame_view(const Saved& saved);
  void expect_same_history(const State& state) const;
  Plan check(const ForwardInputs& inputs, const ConstTensorView& output, const Queue& queue) const;
  /// The names are those of weight and bias in messages.
  void expect_parameters(const ConstTensorView& weight, const ConstTensorView& bias, const Shape& input,
                         const Queue& queue, std::pair<const char*, const char*> names) const;
  Header header(DType dtype, std::int64_t groups, Direction direction) const;
  void describe(const ForwardInputs& inputs, const Plan& plan, LayerCall& call) const;
  void describe(const ForwardInputs& inputs, const TensorView& output, const Plan& plan, Saved& saved,
                ForwardArgs& args, Queue& queue) const;
  void derive(const ForwardInputs& inputs, Call& call, Queue& queue);
  Work make_work(std::int64_t scratch, std::int64_t count, Header& header, Queue& queue) const;
  Saved map(const ForwardInputs& inputs, const TensorView& output, FrameSource source, const Saved* earlier,
            Queue& queue) const;
};

}  // namespace allnorm
