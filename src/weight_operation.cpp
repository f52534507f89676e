// The operation of rows that divide a weight by the lengths of its rows: w = g v / |v|.
#include <utility>

#include "kernels/group_steps.hpp"
#include "kernels/ops.hpp"
#include "src/arrays.hpp"
#include "src/operations.hpp"
#include "src/parameters.hpp"
#include "src/plan.hpp"
#include "src/stateless_operation.hpp"

namespace allnorm {

namespace {

struct SavedWeight final : StatelessCall {
  ConstTensorView v{};
  bool has_g = false;
  Partition rows{};
  enum : std::int64_t { zero, length, of_g, scale, mean, m2, count };
  Arrays arrays{};  // (rows) each
};

class WeightOperation final : public StatelessOperation {
 public:
  using StatelessOperation::StatelessOperation;

 private:
  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    return map(inputs, outputs["output"], nullptr, queue);
  }
  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    const auto& before = own<SavedWeight>(earlier);
    expect_replayed(inputs["input"].shape, before.v.shape);
    return map(inputs, outputs["output"], &before, queue);
  }

  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    const auto& call = own<SavedWeight>(saved);
    const ConstTensorView dw = inputs["grad_output"];
    const TensorView dv = gradients["grad_input"], dg = gradients["grad_g"];
    expect_like(dw, call.v, queue, "grad_output");
    if (dv.given()) expect_like(dv, call.v, queue, "grad_input");
    expect(!dg.given() || call.has_g, Code::invalid_argument,
           "grad_g is asked for, must not be where forward had no g");
    if (dg.given()) expect_tensor(layer(), *layer().row->tensor("g"), dg, call.v, queue, "grad_g");

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

  /// `earlier`: whose lengths are taken, where it is given.
  std::unique_ptr<SavedCall> map(const InputSlots& inputs, const TensorView& w, const SavedWeight* earlier,
                                 Queue& queue) const {
    const ConstTensorView v = inputs["input"], g = inputs["g"];
    expect(v.given(), Code::invalid_argument, "input is missing");
    expect_like(v, {v.data, v.dtype, queue.device(), v.shape, v.order}, queue, "input");
    const Plan plan = plan_for(layer(), v.shape, v.order);
    expect_like(w, v, queue, "output");
    if (g.given()) expect_tensor(layer(), *layer().row->tensor("g"), g, v, queue, "g");

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
};

}  // namespace

std::unique_ptr<Operation> make_weight_operation(const Layer& layer, std::int64_t, std::shared_ptr<Communicator> group,
                                                 Queue&, std::string name) {
  return std::make_unique<WeightOperation>(layer, std::move(group), std::move(name));
}

}  // namespace allnorm
