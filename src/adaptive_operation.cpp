// The operation of rows that give each sample's channels the mean and the deviation of another tensor's (AdaIN).
#include <utility>

#include "kernels/group_steps.hpp"
#include "kernels/ops.hpp"
#include "src/arrays.hpp"
#include "src/operations.hpp"
#include "src/stateless_operation.hpp"

namespace allnorm {

namespace {

constexpr Axes each_instance{Axis::sample, Axis::channel};

/// What a call leaves: its statistics, and the tensors that it borrows.
struct SavedAdaptive final : StatelessCall {
  ConstTensorView input{}, style{};
  Partition of_input{}, of_style{};  // into the channels of every sample
  enum : std::int64_t { mean, sigma, style_mean, style_sigma, scale, shift, count };
  Arrays arrays{};  // (N * C) each

  steps::AdaptiveSets sets(const ConstTensorView& x, std::int64_t at) const {
    return {arrays[at], const_cast<double*>(arrays[at + 1]), static_cast<double>(x.space())};  // backward only reads
  }
};

class AdaptiveOperation final : public StatelessOperation {
 public:
  using StatelessOperation::StatelessOperation;

 private:
  void check(const ConstTensorView& input, const ConstTensorView& style, const ConstTensorView& output,
             const Queue& queue) const {
    expect_input(input, queue);
    layer().shape_of({}, input.shape);  // throws where there are too few axes
    expect_like(output, input, queue, "output");
    expect(style.given(), Code::invalid_argument, "style is missing, must be given");
    const bool fits = style.shape.rank() >= 2 && style.shape[0] == input.shape[0] && style.shape[1] == input.shape[1];
    expect(fits, Code::invalid_input, [&] {
      return "style has shape " + to_string(style.shape) + ", must have " + std::to_string(input.shape[0]) + "," +
             std::to_string(input.shape[1]) + " as its first axes, N and C of input";
    });
    expect(style.space() > 0 || input.samples() * input.channels() == 0, Code::invalid_input, [&] {
      return "style has shape " + to_string(style.shape) + ", must have at least one value of every channel";
    });
    expect_like(style, {input.data, input.dtype, input.device, style.shape, input.order}, queue, "style");
  }

  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    using S = SavedAdaptive;
    const ConstTensorView input = inputs["input"], style = inputs["style"];
    auto saved = call_with(input, style, outputs["output"], queue);
    saved->arrays = Arrays(S::count, saved->of_input.groups(), queue);
    Arrays& arrays = saved->arrays;
    queue.ops().moments({input.data, input.dtype, saved->of_input, arrays[S::mean], arrays[S::sigma]}, queue);
    queue.ops().moments({style.data, style.dtype, saved->of_style, arrays[S::style_mean], arrays[S::style_sigma]},
                        queue);
    const NormOptions& o = layer().options;
    queue.ops().each({steps::AdaptiveForward{o.alpha, o.eps, o.unbiased, saved->sets(input, S::mean),
                                             saved->sets(style, S::style_mean), arrays.apply(S::scale)}},
                     saved->of_input.groups(), queue);
    map(*saved, outputs["output"], queue);
    return saved;
  }

  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    const auto& was = own<SavedAdaptive>(earlier);
    const ConstTensorView input = inputs["input"];
    expect_replayed(input.shape, was.input.shape);
    auto saved = call_with(input, inputs["style"], outputs["output"], queue);
    saved->arrays = was.arrays.copy(queue);
    map(*saved, outputs["output"], queue);
    return saved;
  }

  /// A call of these tensors, which are checked; without its statistics.
  std::unique_ptr<SavedAdaptive> call_with(const ConstTensorView& input, const ConstTensorView& style,
                                           const TensorView& output, const Queue& queue) const {
    check(input, style, output, queue);
    auto made = std::make_unique<SavedAdaptive>();
    made->input = input;
    made->style = style;
    made->of_input = partition(each_instance, input.shape, input.order);
    made->of_style = partition(each_instance, style.shape, style.order);
    return made;
  }

  static void map(const SavedAdaptive& call, const TensorView& output, Queue& queue) {
    queue.ops().apply({.x = call.input.data,
                       .y = output.data,
                       .dtype = call.input.dtype,
                       .partition = call.of_input,
                       .center = call.arrays[SavedAdaptive::mean],
                       .scale = call.arrays[SavedAdaptive::scale],
                       .shift = call.arrays[SavedAdaptive::shift]},
                      queue);
  }

  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    using S = SavedAdaptive;
    const auto& call = own<SavedAdaptive>(saved);
    const ConstTensorView dy = inputs["grad_output"];
    const TensorView dx = gradients["grad_input"], dstyle = gradients["grad_style"];
    expect_like(dy, call.input, queue, "grad_output");
    if (dx.given()) expect_like(dx, call.input, queue, "grad_input");
    if (dstyle.given()) expect_like(dstyle, call.style, queue, "grad_style");
    enum : std::int64_t { sum_g, sum_gx, of_input, of_style = of_input + 4, count = of_style + 4 };
    Arrays arrays(count, call.of_input.groups(), queue);
    queue.ops().moments_grad({.x = call.input.data,
                              .dy = dy.data,
                              .dtype = dy.dtype,
                              .partition = call.of_input,
                              .center = call.arrays[S::mean],
                              .sum_g = arrays[sum_g],
                              .sum_gx = arrays[sum_gx]},
                             queue);
    const GradArrays own_map = dx.given() ? arrays.grad(of_input) : GradArrays{},
                     style_map = dstyle.given() ? arrays.grad(of_style) : GradArrays{};
    const NormOptions& o = layer().options;
    queue.ops().each({steps::AdaptiveBackward{o.alpha, o.unbiased, call.sets(call.input, S::mean),
                                              call.sets(call.style, S::style_mean), arrays[sum_g], arrays[sum_gx],
                                              own_map, style_map}},
                     call.of_input.groups(), queue);
    if (dx.given()) map_grad(call.input, dy.data, dx, call.of_input, call.arrays[S::mean], own_map, queue);
    if (dstyle.given())  // every factor of the gradient is 0: any tensor of the style's shape stands for it
      map_grad(call.style, call.style.data, dstyle, call.of_style, call.arrays[S::style_mean], style_map, queue);
  }

  static void map_grad(const ConstTensorView& x, const void* dy, const TensorView& dx, const Partition& sets,
                       const double* mean, const GradArrays& k, Queue& queue) {
    queue.ops().apply_grad({.x = x.data,
                            .dy = dy,
                            .dx = dx.data,
                            .dtype = x.dtype,
                            .partition = sets,
                            .center = mean,
                            .gain = k.gain,
                            .slope = k.slope,
                            .offset = k.offset,
                            .power = k.power},
                           queue);
  }
};

}  // namespace

std::unique_ptr<Operation> make_adaptive_operation(const Layer& layer, std::int64_t,
                                                   std::shared_ptr<Communicator> group, Queue&, std::string name) {
  return std::make_unique<AdaptiveOperation>(layer, std::move(group), std::move(name));
}

}  // namespace allnorm
