// The tensors of its calls against the row, and its state, which a norm keeps.
#include "src/switchable_operation.hpp"

#include <utility>

#include "src/slots.hpp"

namespace allnorm {

std::span<const double> SwitchableOperation::Call::statistic(std::string_view name) const noexcept {
  const auto channels = index(frames.channels);
  if (name == "mean") return {frames.batch_mean, channels};
  if (name == "var") return {frames.batch_var, channels};
  return {};
}

SwitchableOperation::SwitchableOperation(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group,
                                         Queue& queue, std::string name)
    : layer_(layer), row_(row_of_norm(layer)), norm_(of_norm(layer, row_), channels, group, queue, std::move(name)) {
  norm_.tells_channels_ = true;
}

Row SwitchableOperation::row_of_norm(const Layer& layer) {
  Row row = *layer.row;
  row.operation = OperationKind::norm;
  row.statistics = layer.options.shard == Shard::space ? each_instance : each_channel;
  row.statistics_with = nullptr;
  return row;
}

Layer SwitchableOperation::of_norm(Layer layer, const Row& row) {
  layer.row = &row;
  return layer;
}

void SwitchableOperation::set_training(bool training) noexcept {
  layer_.options.training = norm_.layer_.options.training = training;
}

State SwitchableOperation::state(Queue& queue) const { return named_state(layer_, norm_.memory_.running(queue)); }

void SwitchableOperation::set_state(const State& given, Queue& queue) {
  RunningStatistics running = norm_.memory_.running(queue);
  take_named_state(layer_, given, running);
  norm_.memory_.set_running(running, queue);
}

State SwitchableOperation::save(Queue& queue) const { return norm_.save(queue); }

void SwitchableOperation::load(const State& state, Queue& queue, const LoadOptions& options) {
  norm_.load(state, queue, options);
}

void SwitchableOperation::check(const InputSlots& inputs, const ConstTensorView& output, const Queue& queue) const {
  const ConstTensorView input = inputs["input"];
  expect(input.given(), Code::invalid_argument, "input is missing");
  layer_.shape_of({}, input.shape);  // throws where there are too few axes
  if (input.dtype == DType::i64) refuse_integers("input");
  expect_like(input, {input.data, input.dtype, queue.device(), input.shape, input.order}, queue, "input");
  expect(input.channels() == norm_.channels_, Code::invalid_input, [&] {
    return "input has " + std::to_string(input.channels()) + " channels, must have " + std::to_string(norm_.channels_);
  });
  expect_like(output, input, queue, "output");
  for (const TensorSpec& tensor : layer_.row->tensors)
    if (const ConstTensorView view = inputs[tensor.name]; view.given())
      expect_tensor(layer_, tensor, view, input, queue, std::string(tensor.name).c_str());
}

void SwitchableOperation::check_gradients(const ConstTensorView& x, const OutputSlots& gradients,
                                          const Queue& queue) const {
  if (gradients["grad_input"].given()) expect_like(gradients["grad_input"], x, queue, "grad_input");
  for (const OutputSpec& output : layer_.row->outputs)
    if (const TensorSpec* tensor = layer_.row->gradient(output.name);
        tensor != nullptr && gradients[output.name].given())
      expect_tensor(layer_, *tensor, gradients[output.name], x, queue, std::string(output.name).c_str());
}

const SwitchableOperation::Call& SwitchableOperation::own(const SavedCall& call) {
  const auto* found = dynamic_cast<const Call*>(&call);
  expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
  return *found;
}

std::unique_ptr<Operation> make_switchable_operation(const Layer& layer, std::int64_t channels,
                                                     std::shared_ptr<Communicator> group, Queue& queue,
                                                     std::string name) {
  return std::make_unique<SwitchableOperation>(layer, channels, std::move(group), queue, std::move(name));
}

}  // namespace allnorm
