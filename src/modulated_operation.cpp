#include "src/modulated_operation.hpp"

#include <utility>

#include "src/norm_impl.hpp"

namespace allnorm {

/// The norm's call, and the gamma and beta that it borrows.
struct ModulatedOperation::SavedModulated final : SavedCall {
  bool training() const noexcept override { return norm->training(); }
  std::span<const double> statistic(std::string_view name) const noexcept override { return norm->statistic(name); }

  std::unique_ptr<Modulation> modulation;
  std::unique_ptr<SavedCall> norm;
};

ModulatedOperation::ModulatedOperation(const Layer& layer, Axes statistics, Axes affine, double added,
                                       std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                                       std::string name)
    : layer_(layer), row_(*layer.row) {
  tensors_ = {{"weight", TensorRole::parameter, affine, "", 1}, {"bias", TensorRole::parameter, affine, ""}};
  tensors_.front().added = added;
  for (const TensorSpec& tensor : layer.row->tensors)
    if (tensor.is_state() && layer.has(tensor)) tensors_.push_back(tensor);
  for (const InputSlot& slot : input_slots)
    if (const TensorSpec* tensor = layer.row->tensor(slot.name);
        tensor != nullptr && slot.view != &ForwardInputs::weight && slot.view != &ForwardInputs::bias)
      tensors_.push_back(*tensor);
  outputs_ = {{"grad_weight", affine, ""}, {"grad_bias", affine, ""}, {"grad_residual", every_axis, ""}};
  row_.statistics = statistics;
  row_.tensors = tensors_;
  row_.outputs = outputs_;
  row_.operation = OperationKind::norm;
  Layer of_norm = layer;
  of_norm.row = &row_;
  norm_ = make_norm_operation(of_norm, channels, std::move(group), queue, std::move(name));
}

bool ModulatedOperation::is_affine(std::string_view slot) noexcept { return slot == "weight" || slot == "bias"; }

void ModulatedOperation::set_training(bool training) noexcept {
  layer_.options.training = training;
  norm_->set_training(training);
}

void ModulatedOperation::load(const State& state, Queue& queue, const LoadOptions& options) {
  norm_->load(state, queue, options);
  layer_.options = norm_->layer().options;  // schedules are of the state
}

std::unique_ptr<ModulatedOperation::Modulation> ModulatedOperation::checked(const InputSlots& inputs,
                                                                            Queue& queue) const {
  const ConstTensorView input = inputs["input"];
  expect(input.given(), Code::invalid_argument, "input is missing");
  layer_.shape_of({}, input.shape);  // throws where there are too few axes
  if (input.dtype == DType::i64) refuse_integers("input");
  return modulate(inputs, input, queue);
}

// What the norm's slots take: its own tensors, and gamma and beta of the call.
InputSlots ModulatedOperation::of_norm(const InputSlots& inputs, const Modulation& modulation) const {
  InputSlots made{{"input", inputs["input"]}, {"weight", modulation.weight}, {"bias", modulation.bias}};
  for (const TensorSpec& tensor : tensors_)
    if (!tensor.is_state() && !is_affine(tensor.name)) made.add(tensor.name, inputs[tensor.name]);
  return made;
}

const ModulatedOperation::SavedModulated& ModulatedOperation::own(const SavedCall& call) {
  const auto* found = dynamic_cast<const SavedModulated*>(&call);
  expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
  return *found;
}

std::unique_ptr<SavedCall> ModulatedOperation::run_forward(const InputSlots& inputs, const OutputSlots& outputs,
                                                           Queue& queue) {
  std::unique_ptr<SavedModulated> saved;
  const InputSlots slots = tell_others(exchanges(false), group(), [&] {
    saved = std::make_unique<SavedModulated>();
    saved->modulation = checked(inputs, queue);
    return of_norm(inputs, *saved->modulation);
  });
  saved->norm = norm_->forward(slots, outputs, queue);
  return saved;
}

std::unique_ptr<SavedCall> ModulatedOperation::run_replay(const SavedCall& earlier, const InputSlots& inputs,
                                                          const OutputSlots& outputs, Queue& queue) {
  const SavedModulated& was = own(earlier);
  auto saved = std::make_unique<SavedModulated>();
  saved->modulation = checked(inputs, queue);
  saved->norm = norm_->replay(*was.norm, of_norm(inputs, *saved->modulation), outputs, queue);
  return saved;
}

void ModulatedOperation::run_infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) {
  const auto modulation = checked(inputs, queue);
  norm_->infer(of_norm(inputs, *modulation), outputs, queue);
}

void ModulatedOperation::run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                                      Queue& queue) {
  InputSlots upstream;
  OutputSlots of_norm;
  const auto made = tell_others(saved.training(), group(), [&] {
    auto own_gradients = gradients_of(*own(saved).modulation, gradients, queue);
    upstream = {{"grad_output", inputs["grad_output"]}};
    of_norm = {{"grad_input", gradients["grad_input"]},
               {"grad_residual", gradients["grad_residual"]},
               {"grad_weight", own_gradients->weight},
               {"grad_bias", own_gradients->bias}};
    return own_gradients;
  });
  norm_->backward(*own(saved).norm, upstream, of_norm, queue);
  made->finish(queue);
}

}  // namespace allnorm
