// Operations: which row makes which, and that a call's slots are the row's.
#include "allnorm/operation.hpp"

#include <algorithm>

#include "src/operations.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

constexpr std::pair<OperationKind, OperationMaker*> makers[] = {
    {OperationKind::norm, make_norm_operation},           {OperationKind::conditional, make_conditional_operation},
    {OperationKind::adaptive, make_adaptive_operation},   {OperationKind::maps, make_maps_operation},
    {OperationKind::weight, make_weight_operation},       {OperationKind::switchable, make_switchable_operation},
    {OperationKind::cosine, make_cosine_operation},       {OperationKind::neighbours, make_neighbours_operation},
    {OperationKind::whitening, make_whitening_operation},
};

}  // namespace

std::unique_ptr<Operation> make_operation(const Layer& layer, std::int64_t channels,
                                          std::shared_ptr<Communicator> group, Queue& queue, std::string name) {
  const auto found = std::find_if(std::begin(makers), std::end(makers),
                                  [&](const auto& maker) { return maker.first == layer.row->operation; });
  expect(found != std::end(makers), Code::unsupported,
         [&] { return std::string(layer.row->name) + " makes an operation that this build does not have"; });
  return found->second(layer, channels, std::move(group), queue, std::move(name));
}

Shape output_shape(const Row& row, const InputSlots& inputs) noexcept {
  const Shape input = inputs["input"].shape;
  const TensorSpec* spec = row.vectors();
  const Shape vectors = spec != nullptr ? inputs[spec->name].shape : Shape();
  return input.rank() >= 1 && vectors.rank() >= 1 ? Shape{input[0], vectors[0]} : input;
}

// Of every call but backward.
void Operation::expect_slots(const InputSlots& inputs, const OutputSlots& outputs) const {
  const Row& row = *layer().row;
  for (const auto& [name, view] : inputs)
    expect_known(row, !view.given() || name == "input" || (row.tensor(name) && row.tensor(name)->is_of_forward()),
                 name);
  for (const auto& [name, view] : outputs) expect_known(row, !view.given() || name == "output", name);
}

std::unique_ptr<SavedCall> Operation::forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) {
  tell_others(exchanges(false), group(), [&] { expect_slots(inputs, outputs); });
  return with_named_errors([&] { return run_forward(inputs, outputs, queue); });
}

std::unique_ptr<SavedCall> Operation::replay(const SavedCall& earlier, const InputSlots& inputs,
                                             const OutputSlots& outputs, Queue& queue) {
  expect_slots(inputs, outputs);
  return run_replay(earlier, inputs, outputs, queue);
}

void Operation::infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) {
  tell_others(exchanges(true), group(), [&] { expect_slots(inputs, outputs); });
  run_infer(inputs, outputs, queue);
}

void Operation::backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients, Queue& queue) {
  tell_others(saved.training(), group(), [&] {
    const Row& row = *layer().row;
    for (const auto& [name, view] : inputs)
      expect_known(row, !view.given() || name == "grad_output" || row.tensor(name) != nullptr, name);
    for (const auto& [name, view] : gradients)
      expect_known(row, !view.given() || name == "grad_input" || (row.output(name) && row.gradient(name)), name);
  });
  with_named_errors([&] { run_backward(saved, inputs, gradients, queue); });
}

}  // namespace allnorm
