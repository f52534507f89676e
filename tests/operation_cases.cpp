#include "operation_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <vector>

#include "backend.hpp"
#include "norm_cases.hpp"

namespace operation_cases {

using namespace allnorm;
using reference::Array;
using reference::Doubles;

namespace {

Shape shape_of(const Array& array) { return Shape(std::span<const std::int64_t>(array.shape)); }

backend::Array<std::byte> bytes_of(const Doubles& values, DType dtype) {
  backend::Array<std::byte> bytes(values.size() * size_of(dtype));
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const T value = store<T>(static_cast<compute_t<T>>(values[i]));
      std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
    }
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

bool is_activation(const Row& row, std::string_view name) {
  return row.tensor(name) == nullptr || row.tensor(name)->role == TensorRole::activation;
}

}  // namespace

Array rounded(Array values, DType dtype) {
  values.v = doubles_of(bytes_of(values.v, dtype), dtype);
  return values;
}

double unit_of(DType dtype) {
  return dtype == DType::f64 ? 0x1p-53 : dtype == DType::f32 ? 0x1p-24 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
}
double tolerance_of(DType dtype) { return (dtype == DType::f64 ? 1000 : 8) * unit_of(dtype); }
double statistics_tolerance_of(DType dtype) { return 1e-12 + (dtype == DType::f64 ? 0 : backend::statistics_unit); }

Subject::Subject(const Layer& of, std::int64_t channels, DType type, Order layout, std::shared_ptr<Communicator> group)
    : layer(of),
      dtype(type),
      order(layout),
      queue(backend::queue()),
      operation(make_operation(layer, channels, std::move(group), queue)) {}

Arrays Subject::operator()(const Arrays& tensors) {
  const Row& row = *layer.row;
  struct Held {
    backend::Array<std::byte> bytes;
    DType type;
    Order order;
    Array like;
  };
  std::map<std::string, Held, std::less<>> held;
  const auto hold = [&](const std::string& name, const Array& values, bool activation) {
    const Order own = activation ? order : Order::channels_first;
    const DType type = activation ? dtype : parameters;
    const Doubles laid = activation ? norm_cases::to_order(values, own) : values.v;
    Held& made = held.insert_or_assign(name, Held{bytes_of(laid, type), type, own, values}).first->second;
    return TensorView{made.bytes.data(), type, backend::device(), shape_of(values), own};
  };
  InputSlots inputs, upstream;
  for (const auto& [name, values] : tensors) {
    const bool of_backward = name == "grad_output" || (row.tensor(name) && !row.tensor(name)->is_of_forward());
    (of_backward ? upstream : inputs).add(name, hold(name, values, is_activation(row, name)));
  }
  const Array& x = tensors.find("input")->second;
  const auto saved = operation->forward(inputs, {{"output", hold("output", x, true)}}, queue);
  if (upstream.begin() != upstream.end()) {
    OutputSlots gradients{{"grad_input", hold("grad_input", x, true)}};
    for (const OutputSpec& output : row.outputs)
      if (const TensorSpec* tensor = row.gradient(output.name); tensor != nullptr)
        if (const auto given = tensors.find(tensor->name); given != tensors.end())
          gradients.add(output.name, hold(std::string(output.name), given->second, is_activation(row, tensor->name)));
    operation->backward(*saved, upstream, gradients, queue);
  }
  queue.wait();
  operation->check();
  Arrays results;
  for (const auto& [name, made] : held) {
    if (tensors.find(name) != tensors.end()) continue;
    Array values = made.like;
    values.v = doubles_of(made.bytes, made.type);
    if (made.type == dtype && made.order == order &&
        is_activation(row, row.gradient(name) ? row.gradient(name)->name : "input"))
      values = norm_cases::from_order(values.v, values.shape, made.order);
    results[name] = values;
  }
  for (const OutputSpec& output : row.outputs)
    if (row.gradient(output.name) == nullptr && row.state(output.name) == nullptr && layer.has(output)) {
      const Doubles values = to_host(saved->statistic(output.name), queue);
      results[std::string(output.name)] = {{static_cast<std::int64_t>(values.size())}, values};
    }
  return results;
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
