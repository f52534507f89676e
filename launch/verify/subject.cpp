#include "launch/verify/subject.hpp"

#include <cstring>
#include <map>
#include <utility>

namespace allnorm::launch::verify {

namespace {

// (N, C, space) <-> (N, space, C): where element i of the former lies in memory.
std::size_t place(const std::vector<std::int64_t>& shape, Order order, std::size_t i) {
  if (order == Order::channels_first || shape.size() < 3) return i;
  const auto C = static_cast<std::size_t>(shape[1]),
             S = static_cast<std::size_t>(reference::elements({shape.begin() + 2, shape.end()}));
  return (i / (C * S) * S + i % S) * C + i / S % C;
}

// Calls f(i, bytes of the element) with the element's type, or with i64.
template <class F>
void for_elements(DType dtype, std::size_t count, const F& f) {
  if (dtype == DType::i64)
    for (std::size_t i = 0; i < count; ++i) f.template operator()<std::int64_t>(i);
  else
    visit(dtype, [&]<class T>(std::type_identity<T>) {
      for (std::size_t i = 0; i < count; ++i) f.template operator()<T>(i);
    });
}

/// The tensors of a call in the device's memory, by name.
class Memory {
 public:
  Memory(const Row& row, DType dtype, Order order, Queue& queue)
      : row_(row), dtype_(dtype), order_(order), queue_(queue) {}

  /// `like`: the name of the tensor whose type and order it has.
  TensorView hold(const std::string& name, const Array& values, std::string_view like) {
    const TensorSpec spec = spec_of(row_, like);
    Held held{{}, type_of(spec, values, dtype_), lies_as_input(spec) ? order_ : Order::channels_first, values.shape};
    std::vector<std::byte> bytes(values.v.size() * size_of(held.type));
    for_elements(held.type, values.v.size(), [&]<class T>(std::size_t i) {
      T value;
      if constexpr (std::is_same_v<T, std::int64_t>)
        value = static_cast<T>(values.v[i]);
      else
        value = store<T>(static_cast<compute_t<T>>(values.v[i]));
      std::memcpy(bytes.data() + place(held.shape, held.order, i) * sizeof value, &value, sizeof value);
    });
    held.memory = to_device(bytes, queue_);
    Held& own = held_.insert_or_assign(name, std::move(held)).first->second;
    return {own.memory.data(), own.type, queue_.device(), Shape(std::span(own.shape)), own.order};
  }

  Array values(std::string_view name) const {
    const Held& own = held_.find(name)->second;
    Array made = reference::zeros(own.shape);
    const std::vector<std::byte> bytes = to_host(own.memory, queue_);
    for_elements(own.type, made.v.size(), [&]<class T>(std::size_t i) {
      T value;
      std::memcpy(&value, bytes.data() + place(own.shape, own.order, i) * sizeof value, sizeof value);
      if constexpr (!std::is_same_v<T, std::int64_t>) made.v[i] = static_cast<double>(load(value));
    });
    return made;
  }

 private:
  struct Held {
    Buffer<std::byte> memory;
    DType type;
    Order order;
    std::vector<std::int64_t> shape;
  };
  const Row& row_;
  DType dtype_;
  Order order_;
  Queue& queue_;
  std::map<std::string, Held, std::less<>> held_{};
};

Array array_of(const StateEntry& entry) {
  Array made{{entry.shape.begin(), entry.shape.end()}, {}};
  made.v.resize(static_cast<std::size_t>(entry.shape.elements()));
  std::int64_t count = 0;
  if (entry.type == StateType::i64) {
    std::memcpy(&count, entry.data.data(), sizeof count);
    made.v.assign(1, static_cast<double>(count));
  } else if (!made.v.empty()) {
    std::memcpy(made.v.data(), entry.data.data(), entry.data.size());
  }
  return made;
}

bool is_of_forward(const Row& row, std::string_view name) {
  return name != "grad_output" && spec_of(row, name).is_of_forward();
}

}  // namespace

Subject::Subject(const Layer& layer, std::int64_t channels, DType dtype, Order order,
                 std::shared_ptr<Communicator> group, Queue& queue)
    : row_(*layer.row),
      dtype_(dtype),
      order_(order),
      queue_(queue),
      operation_(make_operation(layer, channels, std::move(group), queue)) {}

Made Subject::call(const Tensors& given, bool training) {
  operation_->set_training(training);
  Memory memory(row_, dtype_, order_, queue_);
  InputSlots inputs, upstream;
  for (const auto& [name, values] : given)
    (is_of_forward(row_, name) ? inputs : upstream).add(name, memory.hold(name, values, name));
  const Shape made_shape = output_shape(row_, inputs);
  const Array output = reference::zeros({made_shape.begin(), made_shape.end()});
  const auto saved = operation_->forward(inputs, {{"output", memory.hold("output", output, "input")}}, queue_);
  OutputSlots gradients;
  gradients.add("grad_input", memory.hold("grad_input", given.find("input")->second, "input"));
  for (const OutputSpec& spec : row_.outputs)
    if (const TensorSpec* tensor = row_.gradient(spec.name); tensor != nullptr)
      if (const auto of = given.find(tensor->name); of != given.end())
        gradients.add(spec.name, memory.hold(std::string(spec.name), of->second, tensor->name));
  operation_->backward(*saved, upstream, gradients, queue_);
  queue_.wait();
  operation_->check();
  Made made{{"output", memory.values("output")}};
  for (const auto& [name, view] : gradients) made[std::string(name)] = memory.values(name);
  for (const OutputSpec& spec : row_.outputs)
    if (row_.gradient(spec.name) == nullptr && row_.state(spec.name) == nullptr && operation_->layer().has(spec)) {
      const auto values = to_host(saved->statistic(spec.name), queue_);
      made[std::string(spec.name)] = {{static_cast<std::int64_t>(values.size())}, values};
    }
  for (const StateEntry& entry : operation_->state(queue_).entries) made[entry.name] = array_of(entry);
  return made;
}

}  // namespace allnorm::launch::verify
