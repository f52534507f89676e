// The operation of rows whose gamma and beta are maps: shaped like the input, in its type and order (SPADE).
#include <utility>

#include "kernels/group_steps.hpp"
#include "kernels/ops.hpp"
#include "src/modulated_operation.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

/// The norm writes the gradients of maps of T as a map itself where that is the type that T is computed in.
template <class T>
constexpr bool is_written_as_it_is = std::is_same_v<T, compute_t<T>>;

class MapsOperation final : public ModulatedOperation {
 public:
  MapsOperation(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                std::string name)
      : ModulatedOperation(layer, layer.statistics(), {Axis::sample, Axis::channel, Axis::space},
                           layer.options.plus_one ? 1 : 0, channels, std::move(group), queue, std::move(name)) {}

 private:
  struct Maps final : Modulation {
    explicit Maps(const ConstTensorView& x) : input(x) {}
    ConstTensorView input;
  };

  template <class T>
  struct MapGrads final : ModulationGrad {
    using C = compute_t<T>;
    static TensorView room(const TensorView& wanted, Buffer<C>& own, Queue& queue) {
      if (!wanted.given() || is_written_as_it_is<T>) return wanted;
      own = Buffer<C>(static_cast<std::size_t>(wanted.elements()), queue, Fill::none);
      return {own.data(), dtype_of<C>(), wanted.device, wanted.shape, wanted.order};
    }
    void finish(Queue& queue) override {
      if constexpr (!is_written_as_it_is<T>)
        for (const auto& [from, to] : {std::pair{&dgamma, grad_gamma}, {&dbeta, grad_beta}})
          queue.ops().each({steps::Narrow<T>{from->data(), static_cast<T*>(to.data)}},
                           static_cast<std::int64_t>(from->size()), queue);
    }
    TensorView grad_gamma{}, grad_beta{};
    Buffer<C> dgamma{}, dbeta{};
  };

  std::unique_ptr<Modulation> modulate(const InputSlots& inputs, const ConstTensorView& input,
                                       Queue& queue) const override {
    for (const char* name : {"gamma", "beta"}) {
      expect(inputs[name].given(), Code::invalid_argument,
             [&] { return std::string(name) + " is missing, must be given"; });
      expect_like(inputs[name], input, queue, name);
    }
    auto made = std::make_unique<Maps>(input);
    made->weight = inputs["gamma"];
    made->bias = inputs["beta"];
    return made;
  }

  std::unique_ptr<ModulationGrad> gradients_of(const Modulation& modulation, const OutputSlots& gradients,
                                               Queue& queue) const override {
    const ConstTensorView& input = static_cast<const Maps&>(modulation).input;
    for (const char* name : {"grad_gamma", "grad_beta"})
      if (gradients[name].given()) expect_like(gradients[name], input, queue, name);
    return visit(input.dtype, [&]<class T>(std::type_identity<T>) -> std::unique_ptr<ModulationGrad> {
      auto made = std::make_unique<MapGrads<T>>();
      made->grad_gamma = gradients["grad_gamma"];
      made->grad_beta = gradients["grad_beta"];
      made->weight = made->room(made->grad_gamma, made->dgamma, queue);
      made->bias = made->room(made->grad_beta, made->dbeta, queue);
      return made;
    });
  }
};

}  // namespace

std::unique_ptr<Operation> make_maps_operation(const Layer& layer, std::int64_t channels,
                                               std::shared_ptr<Communicator> group, Queue& queue, std::string name) {
  return std::make_unique<MapsOperation>(layer, channels, std::move(group), queue, std::move(name));
}

}  // namespace allnorm
