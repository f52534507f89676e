// How a layer is made, and what can be wrong with its calls on one rank alone.
#include <utility>

#include "src/norm_impl.hpp"
#include "src/operations.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

// The ranks that a layer is given, or this one alone where its sync asks for no others.
std::shared_ptr<Communicator> group_for(const Layer& layer, std::shared_ptr<Communicator> group) {
  const std::int64_t ranks = layer.options.sync.ranks;
  const std::string sync = ranks == Sync::world ? "world" : std::to_string(ranks);
  expect(group || ranks == Sync::none || ranks == 1, Code::invalid_argument, [&] {
    return "attribute sync is " + sync + ", must come with a group of ranks (self() where this rank is alone)";
  });
  if (!group) return self();
  expect(ranks <= 0 || group->size() <= ranks, Code::invalid_argument, [&] {
    return "the group has " + std::to_string(group->size()) + " ranks, must have at most " + sync +
           ", which attribute sync asks for";
  });
  return group;
}

}  // namespace

NormImpl::NormImpl(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                   std::string name, bool keeps_state)
    : layer_((layer.check(), layer)),
      channels_((expect(channels >= 0, Code::invalid_argument,
                        [&] { return "channels is " + std::to_string(channels) + ", must be at least 0"; }),
                 channels)),
      group_(group_for(layer, std::move(group))),
      name_(name.empty() ? std::string(layer.row->name) : std::move(name)),
      device_(queue.device()),
      memory_(layer, channels, queue, keeps_state) {
  expect(layer.row->operation == OperationKind::norm, Code::invalid_argument, [&] {
    return std::string(layer.row->name) + " is no layer with mean and variance, must be made with make_operation()";
  });
}

Plan NormImpl::check(const ForwardInputs& in, const ConstTensorView& output, const Queue& queue) const {
  const ConstTensorView& x = in.input;
  expect(queue.device() == device_, Code::device, [&] {
    return "the queue is on " + to_string(queue.device()) + ", must be on the layer's " + to_string(device_);
  });
  expect(x.given(), Code::invalid_argument, "input is missing");
  if (x.dtype == DType::i64) refuse_integers("input");
  expect(x.device == queue.device(), Code::device, [&] {
    return "input is on " + to_string(x.device) + ", must be on the queue's " + to_string(queue.device());
  });
  expect(x.data != nullptr || x.elements() == 0, Code::invalid_argument, "input has no data");
  expect_memory(x.data, queue, "input");
  for (const InputSlot& slot : input_slots)
    expect_known(*layer_.row, !(in.*slot.view).given() || serves(*layer_.row, input_slots, slot), slot.name);
  const Plan plan = plan_for(layer_, x.shape, x.order);
  expect(!has_running() || x.shape[1] == channels_, Code::invalid_input, [&] {
    return "input has " + std::to_string(x.shape[1]) + " channels, must have " + std::to_string(channels_);
  });
  expect_like(output, x, queue, "output");
  for (const auto& [name, view, tensor] : input_slots)
    if (const TensorSpec* spec = layer_.row->tensor(tensor); spec != nullptr && (in.*view).given())
      expect_tensor(layer_, *spec, in.*view, x, queue, name);
  return plan;
}

void NormImpl::check(const ForwardInputs& inputs, const BackwardInputs& in, const BackwardOutputs& out,
                     const Queue& queue) const {
  const ConstTensorView& x = inputs.input;
  expect_like(in.output, x, queue, "grad_output");
  for (const auto& [name, view] : backward_slots) {
    if (!(in.*view).given()) continue;
    const TensorSpec* spec = layer_.row->tensor(name);
    expect_known(*layer_.row, spec != nullptr, name);
    expect_tensor(layer_, *spec, in.*view, x, queue, name);
  }
  for (const GradientSlot& slot : gradient_slots)
    expect_known(*layer_.row, !(out.*slot.view).given() || serves(*layer_.row, gradient_slots, slot), slot.name);
  if (out.input.given()) expect_like(out.input, x, queue, "grad_input");
  for (const auto& [name, view, tensor] : gradient_slots)
    if (const TensorSpec* spec = layer_.row->tensor(tensor); spec != nullptr && (out.*view).given())
      expect_tensor(layer_, *spec, out.*view, x, queue, name);
  const auto expect_forward_had = [&](const TensorView& gradient, const ConstTensorView& tensor, std::string name) {
    expect(!gradient.given() || tensor.given(), Code::invalid_argument,
           [&] { return "grad_" + name + " is asked for, must not be where forward had no " + name; });
  };
  expect_forward_had(out.residual, inputs.residual, "residual");
  expect_forward_had(out.tau, inputs.tau, "tau");
  expect_forward_had(out.eps_learned, inputs.eps_learned, "eps_learned");
}

}  // namespace allnorm
