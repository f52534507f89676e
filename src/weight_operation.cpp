// The operation of rows that divide a weight by the lengths of its rows: w = g v / |v|.
#include <cmath>
#include <utility>
#include <vector>

#include "allnorm/error.hpp"
#include "kernels/ops.hpp"
#include "src/operations.hpp"
#include "src/parameters.hpp"
#include "src/plan.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

using Values = std::vector<double>;

std::size_t index(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }

struct SavedWeight final : SavedCall {
  bool training() const noexcept override { return false; }  // ranks exchange nothing
  std::span<const double> statistic(std::string_view) const noexcept override { return {}; }

  ConstTensorView v{};
  bool has_g = false;
  Partition rows{};
  Values zero{}, length{}, g{};  // (rows)
};

const SavedWeight& own(const SavedCall& call) {
  const auto* found = dynamic_cast<const SavedWeight*>(&call);
  expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
  return *found;
}

// Of every row; a length of 0 makes its weights NaN.
Values lengths_of(const SavedWeight& call, Queue& queue) {
  Values mean(call.zero.size()), squares(mean.size());
  queue.ops().moments({call.v.data, call.v.dtype, call.rows, mean.data(), squares.data()}, queue);
  const auto count = static_cast<double>(call.rows.group_size());
  for (std::size_t r = 0; r < mean.size(); ++r) squares[r] = std::sqrt(squares[r] + count * mean[r] * mean[r]);
  return squares;
}

class WeightOperation final : public Operation {
 public:
  WeightOperation(const Layer& layer, std::shared_ptr<Communicator> group, const Queue& queue, std::string name)
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
  void set_state(const State& state, Queue&) override {
    for (const StateEntry& entry : state.entries) expect_known(*layer_.row, false, entry.name);
  }
  State save(Queue&) const override { return {}; }
  void load(const State& state, Queue&, const LoadOptions&) override {
    expect(state.entries.empty(), Code::invalid_input,
           [&] { return std::string(layer_.row->name) + " has no state, must be loaded with none"; });
  }

 private:
  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    return map(inputs, outputs["output"], nullptr, queue);
  }
  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    const SavedWeight& before = own(earlier);
    const Shape shape = inputs["input"].shape;
    expect(shape == before.v.shape, Code::invalid_argument, [&] {
      return "the replayed input has shape " + to_string(shape) + ", must have " + to_string(before.v.shape) +
             " as in the earlier call";
    });
    return map(inputs, outputs["output"], &before, queue);
  }

  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    const SavedWeight& call = own(saved);
    const ConstTensorView dw = inputs["grad_output"];
    const TensorView dv = gradients["grad_input"], dg = gradients["grad_g"];
    expect_like(dw, call.v, queue, "grad_output");
    if (dv.given()) expect_like(dv, call.v, queue, "grad_input");
    expect(!dg.given() || call.has_g, Code::invalid_argument,
           "grad_g is asked for, must not be where forward had no g");
    if (dg.given()) expect_tensor(layer_, *layer_.row->tensor("g"), dg, call.v, queue, "grad_g");

    Values sum(call.g.size()), sum_v(call.g.size());  // of dw, of dw * v
    const double* const zero = call.zero.data();
    queue.ops().moments_grad({.x = call.v.data,
                              .dy = dw.data,
                              .dtype = dw.dtype,
                              .partition = call.rows,
                              .center = zero,
                              .sum_g = sum.data(),
                              .sum_gx = sum_v.data()},
                             queue);
    for (std::size_t r = 0; dg.given() && r < sum_v.size(); ++r)
      parameter_grad(dg).set(static_cast<std::int64_t>(r), sum_v[r] / call.length[r]);
    if (!dv.given()) return;
    // With the root mean square of a row, |v| / sqrt(n), in place of its length, it is a layer about 0 whose gamma is
    // g / sqrt(n).
    const auto count = static_cast<double>(call.rows.group_size());
    Values gain(sum.size()), slope(sum.size()), offset(sum.size()), power(sum.size());
    for (std::size_t r = 0; r < sum.size(); ++r) {
      const double gamma = call.g[r] / std::sqrt(count), rstd = std::sqrt(count) / call.length[r];
      const auto k = formulas::apply_grad(rstd, 1, gamma, 1, false, count, 0, gamma * sum_v[r]);
      gain[r] = k.gain, slope[r] = k.slope, offset[r] = k.offset, power[r] = k.power;
    }
    queue.ops().apply_grad({.x = call.v.data,
                            .dy = dw.data,
                            .dx = dv.data,
                            .dtype = dw.dtype,
                            .partition = call.rows,
                            .center = zero,
                            .gain = gain.data(),
                            .slope = slope.data(),
                            .offset = offset.data(),
                            .power = power.data()},
                           queue);
  }

  void run_infer(const InputSlots&, const OutputSlots&, Queue&) override {
    fail(Code::unsupported, std::string(layer_.row->name) +
                                " has no running statistics and is the same in inference, must be called with forward");
  }

  /// `earlier`: whose lengths are taken, where it is given.
  std::unique_ptr<SavedCall> map(const InputSlots& inputs, const TensorView& w, const SavedWeight* earlier,
                                 Queue& queue) const {
    const ConstTensorView v = inputs["input"], g = inputs["g"];
    expect_on_cpu(layer_.row->name, queue);
    expect(v.given(), Code::invalid_argument, "input is missing");
    expect_like(v, v, queue, "input");
    const Plan plan = plan_for(layer_, v.shape, v.order);
    expect_like(w, v, queue, "output");
    if (g.given()) expect_tensor(layer_, *layer_.row->tensor("g"), g, v, queue, "g");

    auto call = std::make_unique<SavedWeight>();
    call->v = v;
    call->has_g = g.given();
    call->rows = plan.norm;
    call->zero.assign(index(plan.norm.groups()), 0);
    call->length = earlier != nullptr ? earlier->length : lengths_of(*call, queue);
    call->g = call->length;
    Values scale(call->g.size());
    for (std::size_t r = 0; r < scale.size(); ++r) {
      if (g.given()) call->g[r] = parameter(g, 0)[static_cast<std::int64_t>(r)];
      scale[r] = call->g[r] / call->length[r];
    }
    queue.ops().apply({.x = v.data,
                       .y = w.data,
                       .dtype = v.dtype,
                       .partition = call->rows,
                       .center = call->zero.data(),
                       .scale = scale.data()},
                      queue);
    return call;
  }

  Layer layer_;
  std::shared_ptr<Communicator> group_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Operation> make_weight_operation(const Layer& layer, std::int64_t, std::shared_ptr<Communicator> group,
                                                 Queue& queue, std::string name) {
  return std::make_unique<WeightOperation>(layer, std::move(group), queue, std::move(name));
}

}  // namespace allnorm
