// The operation of rows whose gamma and beta are each sample's own: rows of tables that its label or its weights say,
// and what the call adds to them.
#include <algorithm>
#include <utility>

#include "src/mixture.hpp"
#include "src/modulated_operation.hpp"
#include "src/parameters.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

constexpr Axes each_instance{Axis::sample, Axis::channel};

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
      : ModulatedOperation(layer, layer.row->statistics, each_instance, channels, std::move(group), queue,
                           std::move(name)),
        choice_(*std::find_if(layer.row->tensors.begin(), layer.row->tensors.end(), [](const TensorSpec& tensor) {
          return tensor.role == TensorRole::labels || tensor.role == TensorRole::mixture;
        })) {}

 private:
  struct BySample final : Modulation {
    BySample(Mixture own, Shape of) : mixture(std::move(own)), shape(of) {}
    Mixture mixture;
    Shape shape;                          // (N, C)
    std::vector<double> gamma{}, beta{};  // (N, C)
    InputSlots given{};                   // whose gradients may be asked for
  };

  struct BySampleGrad final : ModulationGrad {
    explicit BySampleGrad(const BySample& of) : call(&of) {}
    void finish() override {
      for (const auto& [sources, values] : {std::pair{&gamma, &dgamma}, {&beta, &dbeta}}) {
        if (const TensorView table = wanted[sources->grad_table]; table.given()) call->mixture.add_up(*values, table);
        const TensorView delta = wanted[sources->grad_delta];
        const ParameterGrad to = parameter_grad(delta);
        for (std::int64_t i = 0; delta.given() && i < delta.elements(); ++i)
          to.set(i, (*values)[static_cast<std::size_t>(i)]);
      }
    }
    const BySample* call;
    OutputSlots wanted{};
    std::vector<double> dgamma{}, dbeta{};  // (N, C)
  };

  std::unique_ptr<Modulation> modulate(const InputSlots& inputs, const ConstTensorView& input,
                                       Queue& queue) const override {
    const TensorSpec& spec = choice_;
    const std::string choice(spec.name);
    expect(inputs[choice].given() || spec.required == nullptr || !spec.required(layer().options),
           Code::invalid_argument, [&] { return choice + " is missing, must be given"; });
    auto made = std::make_unique<BySample>(Mixture(spec, inputs[choice], input.samples(), queue),
                                           layer().shape_of(each_instance, input.shape));
    for (const auto& [sources, values] : {std::pair{&gamma, &made->gamma}, {&beta, &made->beta}}) {
      const ConstTensorView table = inputs[sources->table], delta = inputs[sources->delta];
      made->mixture.expect_table(table, input.channels(), queue, sources->table);
      expect_parameter(delta, made->shape, queue, sources->delta);
      made->given.add(sources->grad_table, table);
      made->given.add(sources->grad_delta, delta);
      values->resize(static_cast<std::size_t>(made->shape.elements()));
      made->mixture.add_rows(table, sources->otherwise, *values);
      const Parameter more = parameter(delta, 0);
      for (std::size_t i = 0; i < values->size(); ++i) (*values)[i] += more[static_cast<std::int64_t>(i)];
    }
    made->weight = view(std::as_const(made->gamma).data(), made->shape);
    made->bias = view(std::as_const(made->beta).data(), made->shape);
    return made;
  }

  std::unique_ptr<ModulationGrad> gradients_of(const Modulation& modulation, const OutputSlots& gradients,
                                               Queue& queue) const override {
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
    const auto room = [&](const Sources& sources, std::vector<double>& values) {
      if (!made->wanted[sources.grad_table].given() && !made->wanted[sources.grad_delta].given()) return TensorView{};
      values.resize(static_cast<std::size_t>(call.shape.elements()));
      return view(values.data(), call.shape);
    };
    made->weight = room(gamma, made->dgamma);
    made->bias = room(beta, made->dbeta);
    return made;
  }

  const TensorSpec& choice_;  // which rows of the tables samples take
};

}  // namespace

std::unique_ptr<Operation> make_conditional_operation(const Layer& layer, std::int64_t channels,
                                                      std::shared_ptr<Communicator> group, Queue& queue,
                                                      std::string name) {
  return std::make_unique<ConditionalOperation>(layer, channels, std::move(group), queue, std::move(name));
}

}  // namespace allnorm
