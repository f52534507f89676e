// The operation of rows whose gamma and beta are maps: shaped like the input, in its type and order (SPADE).
#include <algorithm>
#include <utility>
#include <vector>

#include "src/modulated_operation.hpp"
#include "src/runtime/parallel.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

constexpr std::int64_t task_values = 1 << 16;

/// f(i) for every value of a map, on the queue's threads.
template <class F>
void for_values(std::int64_t values, Queue& queue, const F& f) {
  parallel(queue, (values + task_values - 1) / task_values, [&](std::int64_t task) {
    const std::int64_t end = std::min(values, (task + 1) * task_values);
    for (std::int64_t i = task * task_values; i < end; ++i) f(i);
  });
}

/// The norm reads gamma and beta, and writes their gradients, in the type that maps of T are computed in.
template <class T>
constexpr bool is_read_as_it_is = std::is_same_v<T, compute_t<T>>;

class MapsOperation final : public ModulatedOperation {
 public:
  MapsOperation(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                std::string name)
      : ModulatedOperation(layer, layer.statistics(), {Axis::sample, Axis::channel, Axis::space}, channels,
                           std::move(group), queue, std::move(name)) {}

 private:
  struct Maps final : Modulation {
    explicit Maps(const ConstTensorView& x) : input(x) {}
    ConstTensorView input;
    Buffer<std::byte> gamma{}, beta{};  // where they are not read as they are
  };

  template <class T>
  struct MapGrads final : ModulationGrad {
    using C = compute_t<T>;
    explicit MapGrads(Queue& its_queue) : queue(&its_queue) {}
    TensorView room(const TensorView& wanted, Buffer<C>& own) const {
      if (!wanted.given() || is_read_as_it_is<T>) return wanted;
      own = Buffer<C>(static_cast<std::size_t>(wanted.elements()), *queue, Fill::none);
      return {own.data(), dtype_of<C>(), wanted.device, wanted.shape, wanted.order};
    }
    void finish() override {
      for (const auto& [from, to] : {std::pair{&dgamma, grad_gamma}, {&dbeta, grad_beta}})
        for_values(static_cast<std::int64_t>(from->size()), *queue,
                   [from = from->data(), to = static_cast<T*>(to.data)](std::int64_t i) { to[i] = store<T>(from[i]); });
    }
    Queue* queue;
    TensorView grad_gamma{}, grad_beta{};
    Buffer<C> dgamma{}, dbeta{};
  };

  // `map`, with `added` to it, as the norm reads it; `own`: where it is not read as it is.
  template <class T>
  static ConstTensorView read(const ConstTensorView& map, compute_t<T> added, Buffer<std::byte>& own, Queue& queue) {
    using C = compute_t<T>;
    if (is_read_as_it_is<T> && added == 0) return map;
    own = Buffer<std::byte>(static_cast<std::size_t>(map.elements()) * sizeof(C), queue, Fill::none);
    const auto* from = static_cast<const T*>(map.data);
    auto* to = reinterpret_cast<C*>(own.data());
    for_values(map.elements(), queue, [=](std::int64_t i) { to[i] = allnorm::load(from[i]) + added; });
    return {to, dtype_of<C>(), map.device, map.shape, map.order};
  }

  std::unique_ptr<Modulation> modulate(const InputSlots& inputs, const ConstTensorView& input,
                                       Queue& queue) const override {
    for (const char* name : {"gamma", "beta"}) {
      expect(inputs[name].given(), Code::invalid_argument,
             [&] { return std::string(name) + " is missing, must be given"; });
      expect_like(inputs[name], input, queue, name);
    }
    auto made = std::make_unique<Maps>(input);
    visit(input.dtype, [&]<class T>(std::type_identity<T>) {
      made->weight = read<T>(inputs["gamma"], layer().options.plus_one ? 1 : 0, made->gamma, queue);
      made->bias = read<T>(inputs["beta"], 0, made->beta, queue);
    });
    return made;
  }

  std::unique_ptr<ModulationGrad> gradients_of(const Modulation& modulation, const OutputSlots& gradients,
                                               Queue& queue) const override {
    const ConstTensorView& input = static_cast<const Maps&>(modulation).input;
    for (const char* name : {"grad_gamma", "grad_beta"})
      if (gradients[name].given()) expect_like(gradients[name], input, queue, name);
    return visit(input.dtype, [&]<class T>(std::type_identity<T>) -> std::unique_ptr<ModulationGrad> {
      auto made = std::make_unique<MapGrads<T>>(queue);
      made->grad_gamma = gradients["grad_gamma"];
      made->grad_beta = gradients["grad_beta"];
      made->weight = made->room(made->grad_gamma, made->dgamma);
      made->bias = made->room(made->grad_beta, made->dbeta);
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
