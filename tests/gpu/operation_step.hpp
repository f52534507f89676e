// An operation with the tensors of its steps, in memory that host and device share.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/operation.hpp"
#include "step_support.hpp"

namespace step_test {

/// An operation with everything that its row lists, as Step of a Norm.
struct OperationStep {
  OperationStep(const Layer& layer, Queue& q, const std::shared_ptr<Communicator>& group = self())
      : queue(q), operation(make_operation(layer, C, group, q)) {
    const bool compares = layer.row->vectors() != nullptr;  // rows, with vectors
    const Shape own = compares ? Shape{x_shape[0], C} : x_shape;
    inputs.add("input", fill(own));
    for (const TensorSpec& tensor : layer.row->tensors) {
      if (tensor.is_state() || !layer.has(tensor)) continue;
      const bool has_labels = tensor.role == TensorRole::labels;
      const Shape shape = tensor.role == TensorRole::table        ? Shape{rows, C}
                          : tensor.role == TensorRole::vectors    ? Shape{rows, C}
                          : tensor.role == TensorRole::mixture    ? Shape{x_shape[0], rows}
                          : tensor.role == TensorRole::activation ? x_shape
                          : has_labels                            ? x_shape
                                                                  : layer.shape_of(tensor.axes, x_shape);
      inputs.add(tensor.name,
                 has_labels ? ConstTensorView(backend::view(labels.data(), Shape{x_shape[0]})) : fill(shape));
      const std::string_view gradient = *names.emplace(names.end(), "grad_" + std::string(tensor.name));
      if (layer.row->output(gradient) != nullptr) gradients.add(gradient, room(shape));
    }
    gradients.add("grad_input", room(own));
    grad_output = fill(output_shape(*layer.row, inputs));
    output = room(output_shape(*layer.row, inputs));
  }
  void run() {
    forward();
    backward();
  }
  void forward() { saved = operation->forward(inputs, {{"output", output}}, queue); }
  void backward() { operation->backward(*saved, {{"grad_output", grad_output}}, gradients, queue); }
  void refill(std::uint64_t seed) {
    Random fresh(seed);
    for (auto& array : given)
      for (float& value : array) value = static_cast<float>(0.5 + fresh.normal());
    for (auto& label : labels) label = fresh.integer(0, rows - 1);
  }
  std::vector<std::vector<std::byte>> outcome() {
    queue.wait();
    operation->check();
    std::vector<std::vector<std::byte>> all;
    for (const auto& array : made) {
      const auto* from = reinterpret_cast<const std::byte*>(array.data());
      all.emplace_back(from, from + array.size() * sizeof(float));
    }
    for (const StateEntry& entry : operation->save(queue).entries) all.push_back(entry.data);
    return all;
  }
  ConstTensorView fill(const Shape& shape) {
    return backend::view(given.emplace_back(draw(random, shape)).data(), shape);
  }
  TensorView room(const Shape& shape) { return backend::view(made.emplace_back(draw(random, shape)).data(), shape); }

  static constexpr std::int64_t rows = 3;  // of tables, and vectors
  Queue& queue;
  std::unique_ptr<Operation> operation;
  Random random{5};
  backend::Array<std::int64_t> labels = backend::Array<std::int64_t>(static_cast<std::size_t>(x_shape[0]));
  std::deque<backend::Array<float>> given, made;
  std::deque<std::string> names;
  InputSlots inputs;
  ConstTensorView grad_output;
  OutputSlots gradients;
  TensorView output;
  std::unique_ptr<SavedCall> saved;
};

}  // namespace step_test
