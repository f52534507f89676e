// The operation of rows whose gamma and beta are each sample's own: rows of tables that its label or its weights say,
// and what the call adds to them.
#include <algorithm>
#include <utility>

#include "kernels/group_steps.hpp"
#include "kernels/ops.hpp"
#include "src/arrays.hpp"
#include "src/gpu.hpp"
#include "src/mixture.hpp"
#include "src/modulated_operation.hpp"
#include "src/parameters.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

/// The slots behind gamma, or beta.
struct Sources {
  const char *table, *grad_table, *delta, *grad_delta;
  double otherwise;  // of the table
};
constexpr Sources gamma{"weight", "grad_weight", "delta_weight", "grad_delta_weight", 1};
constexpr Sources beta{"bias", "grad_bias", "delta_bias", "grad_delta_bias", 0};

class ConditionalOperation final : public ModulatedOperation {
 public:
  ConditionalOperation(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                       std::string name)
      : ModulatedOperation(layer, layer.row->statistics, each_instance, 0, channels, std::move(group), queue,
                           std::move(name)),
        choice_(*std::find_if(layer.row->tensors.begin(), layer.row->tensors.end(), [](const TensorSpec& tensor) {
          return tensor.role == TensorRole::labels || tensor.role == TensorRole::mixture;
        })) {
    if (queue.device().kind != DeviceKind::cpu)
      reports_ = lone_reports(queue.device().index, std::string(choice_.name));
  }

  void check() override {
    ModulatedOperation::check();
    if (reports_) reports_->check();
  }

 private:
  struct BySample final : Modulation {
    BySample(Mixture own, Shape of) : mixture(std::move(own)), shape(of) {}
    Mixture mixture;
    Shape shape;  // (N, C)
    enum : std::int64_t { gamma, beta, count };
    Arrays arrays{};     // (N, C) each
    InputSlots given{};  // whose gradients may be asked for
  };

  struct BySampleGrad final : ModulationGrad {
    explicit BySampleGrad(const BySample& of) : call(&of) {}
    void finish(Queue& queue) override {
      for (const auto& [sources, values] : {std::pair{&gamma, weight.data}, {&beta, bias.data}}) {
        const auto* const from = static_cast<const double*>(values);
        if (const TensorView table = wanted[sources->grad_table]; table.given())
          call->mixture.add_up(from, table, queue);
        if (const TensorView delta = wanted[sources->grad_delta]; delta.given())
          queue.ops().each({steps::WriteGradient{from, parameter_grad(delta)}}, delta.elements(), queue);
      }
    }
    const BySample* call;
    OutputSlots wanted{};
    Arrays arrays{};  // (N, C) each: of gamma, of beta
  };

  std::unique_ptr<Modulation> modulate(const InputSlots& inputs, const ConstTensorView& input,
                                       Queue& queue) const override {
    if (reports_) reports_->check();
    const TensorSpec& spec = choice_;
    const std::string choice(spec.name);
    expect(inputs[choice].given() || spec.required == nullptr || !spec.required(layer().options),
           Code::invalid_argument, [&] { return choice + " is missing, must be given"; });
    auto made = std::make_unique<BySample>(Mixture(spec, inputs[choice], input.samples(), queue),
                                           layer().shape_of(each_instance, input.shape));
    made->arrays = Arrays(BySample::count, made->shape.elements(), queue);
    for (const Sources* sources : {&gamma, &beta}) {
      made->mixture.expect_table(inputs[sources->table], input.channels(), queue, sources->table);
      expect_parameter(inputs[sources->delta], made->shape, queue, sources->delta);
    }
    const auto take = [&](const Sources& sources, std::int64_t at) {
      const ConstTensorView table = inputs[sources.table], delta = inputs[sources.delta];
      made->given.add(sources.grad_table, table);
      made->given.add(sources.grad_delta, delta);
      made->mixture.take(table, sources.otherwise, delta, input.channels(), made->arrays[at],
                         reports_ ? reports_->reporter().report : nullptr, queue);
      return of_device(view(std::as_const(made->arrays)[at], made->shape), queue);
    };
    made->weight = take(gamma, BySample::gamma);
    made->bias = take(beta, BySample::beta);
    return made;
  }

  std::unique_ptr<ModulationGrad> gradients_of(const Modulation& modulation, const OutputSlots& gradients,
                                               Queue& queue) const override {
    if (reports_) reports_->check();
    const auto& call = static_cast<const BySample&>(modulation);
    auto made = std::make_unique<BySampleGrad>(call);
    for (const auto& [name, was] : call.given) {
      const TensorView gradient = gradients[name];
      if (!gradient.given()) continue;
      const std::string own(name), of = own.substr(own.find('_') + 1);
      expect(was.given(), Code::invalid_argument,
             [&] { return own + " is asked for, must not be where forward had no " + of; });
      expect_parameter(gradient, was.shape, queue, own.c_str());
      made->wanted.add(name, gradient);
    }
    made->arrays = Arrays(BySample::count, call.shape.elements(), queue);
    const auto room = [&](const Sources& sources, std::int64_t at) {
      if (!made->wanted[sources.grad_table].given() && !made->wanted[sources.grad_delta].given()) return TensorView{};
      return of_device(view(made->arrays[at], call.shape), queue);
    };
    made->weight = room(gamma, BySample::gamma);
    made->bias = room(beta, BySample::beta);
    return made;
  }

  template <class View>
  static View of_device(View made, const Queue& queue) {
    made.device = queue.device();
    return made;
  }

  std::shared_ptr<LoneReports> reports_{};  // of labels, on a GPU
  const TensorSpec& choice_;                // which rows of the tables samples take
};

}  // namespace

std::unique_ptr<Operation> make_conditional_operation(const Layer& layer, std::int64_t channels,
                                                      std::shared_ptr<Communicator> group, Queue& queue,
                                                      std::string name) {
  return std::make_unique<ConditionalOperation>(layer, channels, std::move(group), queue, std::move(name));
}

}  // namespace allnorm
