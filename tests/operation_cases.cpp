#include "operation_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "launch/reference/definitions.hpp"
#include "norm_cases.hpp"

namespace operation_cases {

namespace {

Shape shape_of(const Array& array) { return Shape(std::span<const std::int64_t>(array.shape)); }

backend::Array<std::byte> bytes_of(const Doubles& values, DType dtype) {
  backend::Array<std::byte> bytes(values.size() * size_of(dtype));
  const auto put = [&](std::size_t i, const auto& value) {
    std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
  };
  if (dtype == DType::i64) {
    for (std::size_t i = 0; i < values.size(); ++i) put(i, static_cast<std::int64_t>(values[i]));
    return bytes;
  }
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    for (std::size_t i = 0; i < values.size(); ++i) put(i, store<T>(static_cast<compute_t<T>>(values[i])));
  });
  return bytes;
}

template <class Bytes>
Doubles doubles_of(const Bytes& bytes, DType dtype) {
  Doubles values(bytes.size() / size_of(dtype));
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      T value;
      std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
      values[i] = static_cast<double>(load(value));
    }
  });
  return values;
}

/// The tensors of a call in the device's memory, by name: as the subject has those of their role, and as it is told.
class Tensors {
 public:
  explicit Tensors(const Subject& of) : subject_(of) {}

  /// `like`: the tensor, or input, whose role it has.
  TensorView hold(const std::string& name, const Array& values, std::string_view like) {
    const TensorSpec* spec = subject_.layer.row->tensor(like);
    const TensorRole role = spec != nullptr ? spec->role : TensorRole::activation;
    const bool lies_as_input = role == TensorRole::activation || role == TensorRole::style;
    const bool labels = role == TensorRole::labels || (role == TensorRole::mixture && values.shape.size() == 1);
    Held made{{},
              lies_as_input ? subject_.dtype
              : labels      ? DType::i64
                            : subject_.parameters,
              lies_as_input ? subject_.order : Order::channels_first,
              values.shape};
    made.bytes = bytes_of(norm_cases::to_order(values, made.order), made.type);
    Held& own = held_.insert_or_assign(name, std::move(made)).first->second;
    return {own.bytes.data(), own.type, backend::device(), shape_of(values), own.order};
  }

  Array values(std::string_view name) const {
    const Held& own = held_.find(name)->second;
    return norm_cases::from_order(doubles_of(own.bytes, own.type), own.shape, own.order);
  }

 private:
  struct Held {
    backend::Array<std::byte> bytes;
    DType type;
    Order order;
    Extents shape;
  };
  const Subject& subject_;
  std::map<std::string, Held, std::less<>> held_{};
};

bool is_of_forward(const Row& row, std::string_view name) {
  return name != "grad_output" && (row.tensor(name) == nullptr || row.tensor(name)->is_of_forward());
}

/// Those of forward, or of backward.
InputSlots slots_of(const Arrays& tensors, bool forward, const Row& row, Tensors& held) {
  InputSlots slots;
  for (const auto& [name, values] : tensors)
    if (is_of_forward(row, name) == forward) slots.add(name, held.hold(name, values, name));
  return slots;
}

}  // namespace

Array rounded(Array values, DType dtype) {
  values.v = doubles_of(bytes_of(values.v, dtype), dtype);
  return values;
}

Array drawn(Random& random, const Extents& shape, DType dtype, double mean, double std) {
  return rounded(cases::normal(random, shape, mean, std), dtype);
}

Array part_of(const Array& whole, int axis, std::int64_t begin, std::int64_t end) {
  Array part{whole.shape, {}};
  std::int64_t& extent = part.shape[static_cast<std::size_t>(axis)];
  const std::int64_t inner = reference::elements({whole.shape.begin() + axis + 1, whole.shape.end()});
  for (std::size_t i = 0; i < whole.v.size(); ++i)
    if (const std::int64_t at = static_cast<std::int64_t>(i) / inner % extent; at >= begin && at < end)
      part.v.push_back(whole.v[i]);
  extent = end - begin;
  return part;
}

double unit_of(DType dtype) { return reference::unit_of(dtype); }
// Of the variances of these cases, whose values lie within a few deviations of each other.
constexpr double statistics_in_double = 4 * reference::statistics_in_double;
// In f64 what rounding does to the statistics shows in the values.
double tolerance_of(DType dtype) {
  return reference::value_tolerance(dtype) + (dtype == DType::f64 ? statistics_in_double : 0);
}
double statistics_tolerance_of(DType dtype) { return statistics_in_double + backend::statistics_unit(dtype); }

Subject::Subject(const Layer& of, std::int64_t channels, DType type, Order layout, std::shared_ptr<Communicator> group)
    : layer(of),
      dtype(type),
      order(layout),
      queue(backend::queue()),
      operation(make_operation(layer, channels, std::move(group), queue)) {}

Arrays Subject::operator()(const Arrays& tensors) {
  const Row& row = *layer.row;
  Tensors held(*this);
  const InputSlots inputs = slots_of(tensors, true, row, held), upstream = slots_of(tensors, false, row, held);
  const Array& x = tensors.find("input")->second;
  const Shape made_shape = output_shape(row, inputs);
  const Array y{{made_shape.begin(), made_shape.end()}, Doubles(static_cast<std::size_t>(made_shape.elements()))};
  const auto saved = operation->forward(inputs, {{"output", held.hold("output", y, "input")}}, queue);
  OutputSlots gradients;
  if (upstream.begin() != upstream.end()) {
    gradients.add("grad_input", held.hold("grad_input", x, "input"));
    for (const OutputSpec& output : row.outputs)
      if (const TensorSpec* tensor = row.gradient(output.name); tensor != nullptr)
        if (const auto given = tensors.find(tensor->name); given != tensors.end())
          gradients.add(output.name, held.hold(std::string(output.name), given->second, tensor->name));
    operation->backward(*saved, upstream, gradients, queue);
  }
  queue.wait();
  operation->check();
  Arrays results{{"output", held.values("output")}};
  for (const auto& [name, gradient] : gradients) results[std::string(name)] = held.values(name);
  for (const OutputSpec& output : row.outputs)
    if (row.gradient(output.name) == nullptr && row.state(output.name) == nullptr && layer.has(output)) {
      const Doubles values = to_host(saved->statistic(output.name), queue);
      results[std::string(output.name)] = {{static_cast<std::int64_t>(values.size())}, values};
    }
  return results;
}

Doubles Subject::replayed(const Arrays& tensors) {
  Tensors held(*this);
  const InputSlots inputs = slots_of(tensors, true, *layer.row, held);
  const Array& x = tensors.find("input")->second;
  const auto saved = operation->forward(inputs, {{"output", held.hold("output", x, "input")}}, queue);
  operation->replay(*saved, inputs, {{"output", held.hold("again", x, "input")}}, queue);
  queue.wait();
  return held.values("again").v;
}

Doubles Subject::inferred(const Arrays& tensors) {
  Tensors held(*this);
  const InputSlots inputs = slots_of(tensors, true, *layer.row, held);
  operation->infer(inputs, {{"output", held.hold("output", tensors.find("input")->second, "input")}}, queue);
  queue.wait();
  return held.values("output").v;
}

Doubles Subject::state(const std::string& name) {
  const State all = operation->state(queue);
  const StateEntry* entry = all.find(name);
  if (entry == nullptr) return {};
  if (entry->type == StateType::f64) return doubles_of(entry->data, DType::f64);
  std::int64_t count = 0;
  std::memcpy(&count, entry->data.data(), sizeof count);
  return {static_cast<double>(count)};
}

void expect_gradients(const std::function<Subject()>& make, const Arrays& tensors, double tolerance) {
  const Arrays results = make()(tensors);
  Arrays upstream;  // by the name of what they are gradients by
  for (const auto& [name, values] : tensors)
    if (name.starts_with("grad_")) upstream[name.substr(5)] = values;
  const auto loss = [&](const Arrays& at) {
    Arrays forward = at;
    for (const auto& [name, values] : upstream) forward.erase("grad_" + name);
    Arrays made = make()(forward);
    double sum = 0;
    for (const auto& [name, values] : upstream)
      for (std::size_t i = 0; i < values.v.size(); ++i) sum += made[name].v[i] * values.v[i];
    return sum;
  };
  for (const auto& [name, values] : tensors) {
    const auto found = results.find("grad_" + name);
    if (found == results.end()) continue;
    Doubles differences;
    for (std::size_t i = 0; i < values.v.size(); ++i) {
      const double h = 1e-3;
      const auto at = [&](double step) {
        Arrays moved = tensors;
        moved[name].v[i] += step;
        return loss(moved);
      };
      differences.push_back((8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h));
    }
    expect_near(("grad_" + name).c_str(), found->second.v, differences, tolerance);
  }
}

void expect_near(const char* what, const Doubles& got, const Doubles& want, double bound, double least) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = least, error = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(want[i]));
    error = std::max(error, std::isfinite(got[i]) ? std::abs(got[i] - want[i]) : HUGE_VAL);
  }
  EXPECT_LE(error, bound * largest) << what;
}

}  // namespace operation_cases
