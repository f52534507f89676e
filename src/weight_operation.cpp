// The operation of rows that divide a weight by the lengths of its rows: w = g v / |v|.
#include <utility>

#include "allnorm/error.hpp"
#include "kernels/group_steps.hpp"
#include "kernels/ops.hpp"
#include "src/arrays.hpp"
#include "src/operations.hpp"
#include "src/parameters.hpp"
#include "src/plan.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

struct SavedWeight final : SavedCall {
  bool training() const noexcept override { return false; }  // ranks exchange nothing
  std::span<const double> statistic(std::string_view) const noexcept override { return {}; }

  ConstTensorView v{};
  bool has_g = false;
  Partition rows{};
  enum : std::int64_t { zero, length, of_g, scale, mean, m2, count };
  Arrays arrays{};  // (rows) each
};

const SavedWeight& own(const SavedCall& call) {
  const auto* found = dynamic_cast<const SavedWeight*>(&call);
  expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
  return *found;
}

class WeightOperation final : public Operation {
 public:
  WeightOperation(const Layer& layer, std::shared_ptr<Communicator> group, std::string name)
      : layer_((layer.check(), layer)),
        group_(group ? std::move(group) : self()),
        name_(name.empty() ? std::string(layer.row->name) : std::move(name)) {}

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

    using S = SavedWeight;
    enum : std::int64_t { sum, sum_v, of_v, count = of_v + 4 };  // of dw, of dw * v, of the map
    const std::int64_t rows = call.rows.groups();
    Arrays arrays(count, rows, queue);
    queue.ops().moments_grad({.x = call.v.data,
                              .dy = dw.data,
                              .dtype = dw.dtype,
                              .partition = call.rows,
                              .center = call.arrays[S::zero],
                              .sum_g = arrays[sum],
                              .sum_gx = arrays[sum_v]},
                             queue);
    const GradArrays k = dv.given() ? arrays.grad(of_v) : GradArrays{};
    queue.ops().each({steps::LengthBackward{static_cast<double>(call.rows.group_size()), call.arrays[S::length],
                                            call.arrays[S::of_g], arrays[sum_v], parameter_grad(dg), k}},
                     rows, queue);
    if (!dv.given()) return;
    queue.ops().apply_grad({.x = call.v.data,
                            .dy = dw.data,
                            .dx = dv.data,
                            .dtype = dw.dtype,
                            .partition = call.rows,
                            .center = call.arrays[S::zero],
                            .gain = k.gain,
                            .slope = k.slope,
                            .offset = k.offset,
                            .power = k.power},
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
    expect(v.given(), Code::invalid_argument, "input is missing");
    expect_like(v, {v.data, v.dtype, queue.device(), v.shape, v.order}, queue, "input");
    const Plan plan = plan_for(layer_, v.shape, v.order);
    expect_like(w, v, queue, "output");
    if (g.given()) expect_tensor(layer_, *layer_.row->tensor("g"), g, v, queue, "g");

    auto call = std::make_unique<SavedWeight>();
    call->v = v;
    call->has_g = g.given();
    call->rows = plan.norm;
    using S = SavedWeight;
    const std::int64_t rows = plan.norm.groups();
    Arrays& arrays = call->arrays;
    if (earlier != nullptr) {
      arrays = earlier->arrays.copy(queue);
    } else {
      arrays = Arrays(S::count, rows, queue, Fill::zero);
      queue.ops().moments({v.data, v.dtype, call->rows, arrays[S::mean], arrays[S::m2]}, queue);
    }
    queue.ops().each({steps::LengthForward{static_cast<double>(call->rows.group_size()), arrays[S::mean], arrays[S::m2],
                                           parameter(g, 0), arrays[S::length], arrays[S::of_g], arrays[S::scale]}},
                     rows, queue);
    queue.ops().apply({.x = v.data,
                       .y = w.data,
                       .dtype = v.dtype,
                       .partition = call->rows,
                       .center = arrays[S::zero],
                       .scale = arrays[S::scale]},
                      queue);
    return call;
  }

  Layer layer_;
  std::shared_ptr<Communicator> group_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Operation> make_weight_operation(const Layer& layer, std::int64_t, std::shared_ptr<Communicator> group,
                                                 Queue&, std::string name) {
  return std::make_unique<WeightOperation>(layer, std::move(group), std::move(name));
}

}  // namespace allnorm
