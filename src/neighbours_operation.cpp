// The operation of rows that divide values by the squares of the channels around: local response normalization.
#include <algorithm>

#include "kernels/ops.hpp"
#include "src/operations.hpp"
#include "src/stateless_operation.hpp"

namespace allnorm {

namespace {

/// What a call leaves: the input, of which backward makes everything again.
struct SavedNeighbours final : StatelessCall {
  ConstTensorView input{};
};

/// Section 12 of docs/equations.md. A window that reaches past the first and the last channel has all of them.
Neighbours window_of(const NormOptions& o, std::int64_t channels) {
  const std::int64_t shorter = (o.size - 1) / 2, longer = o.size / 2;
  const bool sums = o.convention == WindowConvention::alexnet, leads = o.convention == WindowConvention::onnx;
  const std::int64_t behind = leads ? shorter : longer, ahead = leads || sums ? longer : shorter;
  const std::int64_t most = std::max<std::int64_t>(0, channels - 1);
  return {sums ? o.alpha : o.alpha / static_cast<double>(o.size), o.beta, o.k, std::min(behind, most),
          std::min(ahead, most)};
}

class NeighboursOperation final : public StatelessOperation {
 public:
  using StatelessOperation::StatelessOperation;

 private:
  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    const ConstTensorView x = inputs["input"];
    const TensorView y = outputs["output"];
    expect_input(x, queue);
    layer().shape_of({}, x.shape);  // throws where there are too few axes
    expect_like(y, x, queue, "output");
    expect(y.data != x.data || y.data == nullptr, Code::invalid_argument,
           "output is in the memory of input, must be in its own: windows read what is written before");
    queue.ops().neighbours({.x = x.data,
                            .y = y.data,
                            .dtype = x.dtype,
                            .order = x.order,
                            .samples = x.samples(),
                            .channels = x.channels(),
                            .space = x.space(),
                            .window = window_of(layer().options, x.channels())},
                           queue);
    auto saved = std::make_unique<SavedNeighbours>();
    saved->input = x;
    return saved;
  }

  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    expect_replayed(inputs["input"].shape, own<SavedNeighbours>(earlier).input.shape);
    return run_forward(inputs, outputs, queue);
  }

  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    const ConstTensorView x = own<SavedNeighbours>(saved).input, dy = inputs["grad_output"];
    const TensorView dx = gradients["grad_input"];
    expect_like(dy, x, queue, "grad_output");
    if (!dx.given()) return;
    expect_like(dx, x, queue, "grad_input");
    queue.ops().neighbours_grad({.x = x.data,
                                 .dy = dy.data,
                                 .dx = dx.data,
                                 .dtype = x.dtype,
                                 .order = x.order,
                                 .samples = x.samples(),
                                 .channels = x.channels(),
                                 .space = x.space(),
                                 .window = window_of(layer().options, x.channels())},
                                queue);
  }
};

}  // namespace

std::unique_ptr<Operation> make_neighbours_operation(const Layer& layer, std::int64_t,
                                                     std::shared_ptr<Communicator> group, Queue&, std::string name) {
  return std::make_unique<NeighboursOperation>(layer, std::move(group), std::move(name));
}

}  // namespace allnorm
