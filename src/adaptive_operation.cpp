// The operation of rows that give each sample's channels the mean and the deviation of another tensor's (AdaIN).
#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/adaptive.hpp"
#include "kernels/ops.hpp"
#include "src/operations.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

constexpr Axes each_instance{Axis::sample, Axis::channel};
using Values = std::vector<double>;

/// A tensor's channels of every sample.
struct Sets {
  Partition partition{};
  Values mean{}, sigma{};  // (N * C)
  double count = 0;        // values of each
};

/// What a call leaves: its statistics, and the tensors that it borrows.
struct SavedAdaptive final : SavedCall {
  bool training() const noexcept override { return false; }  // nothing was exchanged
  std::span<const double> statistic(std::string_view) const noexcept override { return {}; }
  ConstTensorView input{}, style{};
  Sets of_input{}, of_style{};
};

class AdaptiveOperation final : public Operation {
 public:
  AdaptiveOperation(const Layer& layer, std::shared_ptr<Communicator> group, Queue& queue, std::string name)
      : layer_((layer.check(), layer)),
        group_(group ? std::move(group) : self()),
        name_(name.empty() ? std::string(layer.row->name) : std::move(name)) {
    expect_on_cpu(layer.row->name, queue);
  }

  const Layer& layer() const noexcept override { return layer_; }
  const std::string& name() const noexcept override { return name_; }
  Communicator& group() const noexcept override { return *group_; }
  void set_training(bool training) noexcept override { layer_.options.training = training; }

  State state(Queue&) const override { return {}; }
  void set_state(const State& given, Queue&) override {
    for (const StateEntry& entry : given.entries) expect_known(*layer_.row, false, entry.name);
  }
  State save(Queue&) const override { return {}; }
  void load(const State& state, Queue&, const LoadOptions&) override {
    expect(state.entries.empty(), Code::invalid_input,
           [&] { return std::string(layer_.row->name) + " has no state, must be loaded with none"; });
  }

 private:
  Sets sets_of(const ConstTensorView& x, Queue& queue) const {
    Sets made{partition(each_instance, x.shape, x.order), {}, {}, static_cast<double>(x.space())};
    Values m2(static_cast<std::size_t>(made.partition.groups()));
    made.mean.resize(m2.size());
    queue.ops().moments({x.data, x.dtype, made.partition, made.mean.data(), m2.data()}, queue);
    for (double& value : m2)
      value = formulas::adaptive_sigma(layer_.options.unbiased, layer_.options.eps, value, made.count);
    made.sigma = std::move(m2);
    return made;
  }

  void check(const ConstTensorView& input, const ConstTensorView& style, const ConstTensorView& output,
             const Queue& queue) const {
    expect(input.given(), Code::invalid_argument, "input is missing");
    layer_.shape_of({}, input.shape);  // throws where there are too few axes
    if (input.dtype == DType::i64) refuse_integers("input");
    expect_like(input, {input.data, input.dtype, queue.device(), input.shape, input.order}, queue, "input");
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
    auto saved = std::make_unique<SavedAdaptive>();
    saved->input = inputs["input"];
    saved->style = inputs["style"];
    check(saved->input, saved->style, outputs["output"], queue);
    saved->of_input = sets_of(saved->input, queue);
    saved->of_style = sets_of(saved->style, queue);
    map(*saved, outputs["output"], queue);
    return saved;
  }

  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    auto saved = std::make_unique<SavedAdaptive>(own(earlier));
    const ConstTensorView input = inputs["input"], style = inputs["style"];
    expect(input.shape == saved->input.shape, Code::invalid_argument, [&] {
      return "the replayed input has shape " + to_string(input.shape) + ", must have " + to_string(saved->input.shape) +
             " as in the earlier call";
    });
    saved->input = input;
    saved->style = style;
    check(input, style, outputs["output"], queue);
    map(*saved, outputs["output"], queue);
    return saved;
  }

  void run_infer(const InputSlots&, const OutputSlots&, Queue&) override {
    fail(Code::unsupported, std::string(layer_.row->name) +
                                " has no running statistics and is the same in inference, must be called with forward");
  }

  void map(const SavedAdaptive& call, const TensorView& output, Queue& queue) const {
    const Sets &x = call.of_input, &style = call.of_style;
    Values scale(x.mean.size()), shift(x.mean.size());
    for (std::size_t i = 0; i < scale.size(); ++i) {
      const auto k = formulas::adaptive(layer_.options.alpha, x.mean[i], x.sigma[i], style.mean[i], style.sigma[i]);
      scale[i] = k.scale;
      shift[i] = k.shift;
    }
    ApplyArgs args;
    args.x = call.input.data;
    args.y = output.data;
    args.dtype = call.input.dtype;
    args.partition = x.partition;
    args.center = x.mean.data();
    args.scale = scale.data();
    args.shift = shift.data();
    queue.ops().apply(args, queue);
  }

  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    const SavedAdaptive& call = own(saved);
    const ConstTensorView dy = inputs["grad_output"];
    const TensorView dx = gradients["grad_input"], dstyle = gradients["grad_style"];
    expect_like(dy, call.input, queue, "grad_output");
    if (dx.given()) expect_like(dx, call.input, queue, "grad_input");
    if (dstyle.given()) expect_like(dstyle, call.style, queue, "grad_style");
    const Sets &x = call.of_input, &style = call.of_style;
    Values sum_g(x.mean.size()), sum_gx(x.mean.size());
    MomentsGradArgs sums;
    sums.x = call.input.data;
    sums.dy = dy.data;
    sums.dtype = dy.dtype;
    sums.partition = x.partition;
    sums.center = x.mean.data();
    sums.sum_g = sum_g.data();
    sums.sum_gx = sum_gx.data();
    queue.ops().moments_grad(sums, queue);
    const auto of_set = [&](std::size_t i) {
      return formulas::AdaptiveSums{x.sigma[i], style.sigma[i], x.count, style.count, sum_g[i], sum_gx[i]};
    };
    if (dx.given())
      map_grad(
          call.input, dy.data, dx, x,
          [&](std::size_t i) {
            return formulas::adaptive_grad(layer_.options.alpha, layer_.options.unbiased, of_set(i));
          },
          queue);
    if (dstyle.given())  // every factor of the gradient is 0: any tensor of the style's shape stands for it
      map_grad(
          call.style, call.style.data, dstyle, style,
          [&](std::size_t i) {
            return formulas::adaptive_style_grad(layer_.options.alpha, layer_.options.unbiased, of_set(i));
          },
          queue);
  }

  // dx = dy * gain + (x - mean) * power * slope + offset, with coefficients(i) of set i.
  template <class Coefficients>
  static void map_grad(const ConstTensorView& x, const void* dy, const TensorView& dx, const Sets& sets,
                       const Coefficients& coefficients, Queue& queue) {
    const std::size_t size = sets.mean.size();
    Values gain(size), slope(size), offset(size), power(size);
    for (std::size_t i = 0; i < size; ++i) {
      const formulas::GradCoefficients k = coefficients(i);
      gain[i] = k.gain;
      slope[i] = k.slope;
      offset[i] = k.offset;
      power[i] = k.power;
    }
    ApplyGradArgs args;
    args.x = x.data;
    args.dy = dy;
    args.dx = dx.data;
    args.dtype = x.dtype;
    args.partition = sets.partition;
    args.center = sets.mean.data();
    args.gain = gain.data();
    args.slope = slope.data();
    args.offset = offset.data();
    args.power = power.data();
    queue.ops().apply_grad(args, queue);
  }

  static const SavedAdaptive& own(const SavedCall& call) {
    const auto* found = dynamic_cast<const SavedAdaptive*>(&call);
    expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
    return *found;
  }

  Layer layer_;
  std::shared_ptr<Communicator> group_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Operation> make_adaptive_operation(const Layer& layer, std::int64_t,
                                                   std::shared_ptr<Communicator> group, Queue& queue,
                                                   std::string name) {
  return std::make_unique<AdaptiveOperation>(layer, std::move(group), queue, std::move(name));
}

}  // namespace allnorm
