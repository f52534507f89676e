// A normalization layer as a libtorch module with autograd.
#include "adapters/torch/norm_module.hpp"

#include <torch/csrc/autograd/custom_function.h>

#include <span>
#include <utility>
#include <vector>

#include "adapters/torch/streams.hpp"
#include "adapters/torch/views.hpp"

namespace allnorm::torch_adapter {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Streams. A call runs on torch's current stream of the module's GPU (current_queue()), and so does every operation of
// torch around it: the copies that in_order() makes and the outputs that empty_like() allocates are made, used and
// freed in the order of that one stream, which is all that torch's allocator asks for, so nothing is recorded with it.
// The library's own buffers are released in the order of the stream they were allocated on. torch runs a backward node
// on a thread of its own, with the stream of the node's forward as the current one and other streams' gradients already
// waited for, so backward asks for the current stream in the same way.

/// The tensors of a call as the library reads them: as they are, or copied. They live until the call is done.
struct Given {
  Given(const NormModule& module, const torch::Tensor& input) : row(module.operation().layer().row) {
    device = module.queue().device();
    expect_on(input, device, "input");
    Dense x = dense(input, module.by_rows());
    order = x.order;
    tensors.push_back(std::move(x.tensor));
    inputs.add("input", view_of(tensors.back(), order));
  }
  void add(std::string_view slot, const torch::Tensor& tensor) {
    expect_on(tensor, device, std::string(slot).c_str());
    const Order own = order_of(*row, slot, order);
    tensors.push_back(in_order(tensor, own));
    inputs.add(slot, view_of(tensors.back(), own));
  }
  /// Room for the output: like the input, but for layers that make another shape.
  torch::Tensor output() const {
    const Shape shape = output_shape(*row, inputs);
    if (shape == shape_of(tensors[0])) return torch::empty_like(tensors[0]);
    return torch::empty(std::vector<std::int64_t>(shape.begin(), shape.end()), tensors[0].options());
  }
  /// What lies as the input does, and what lies in its own way.
  static Order order_of(const Row& row, std::string_view slot, Order of_input) {
    const TensorSpec* spec = row.tensor(slot);
    const bool like_input =
        slot == "input" || (spec && (spec->role == TensorRole::activation || spec->role == TensorRole::conv_input ||
                                     spec->role == TensorRole::style));
    return like_input ? of_input : Order::channels_first;
  }

  const Row* row;
  Device device;
  Order order;
  variable_list tensors;
  InputSlots inputs;
};

/// What a call needs besides the tensors that take gradients.
struct Plan {
  NormModule* module;
  CallHandle call;        // receives what forward leaves
  CallHandle earlier;     // not null: a replay
  SlotTensors constants;  // tensors that take no gradients
};

struct NormFunction : torch::autograd::Function<NormFunction> {
  /// `tensors`: of the call's edges. The output, and the statistics that the call gives out.
  static variable_list forward(AutogradContext* context, at::TensorList tensors, const Plan& plan) {
    NormModule& module = *plan.module;
    Queue& queue = module.queue();
    Call& call = *plan.call;
    Given given(module, tensors[0]);
    for (std::size_t i = 1; i < tensors.size(); ++i) given.add(call.edges[i].slot, tensors[i]);
    for (const auto& [slot, tensor] : plan.constants) given.add(slot, tensor);
    call.order = given.order;
    torch::Tensor output = given.output();
    const OutputSlots outputs{{"output", writable_view_of(output, given.order)}};
    const auto scope = module.begin_call(Direction::forward);
    call.saved = plan.earlier ? module.operation().replay(*plan.earlier->saved, given.inputs, outputs, queue)
                              : module.operation().forward(given.inputs, outputs, queue);
    variable_list results{output};
    for (const auto& [name, gradient] : call.statistics) {
      const Layer& layer = module.operation().layer();
      const Shape shape = layer.shape_of(layer.row->output(name)->axes, shape_of(given.tensors[0]));
      const std::span<const double> values = call.saved->statistic(name);
      results.push_back(torch::from_blob(const_cast<double*>(values.data()),
                                         std::vector<std::int64_t>(shape.begin(), shape.end()),
                                         output.options().dtype(torch::kDouble))
                            .to(output.options(), false, true));
    }
    // The library's record borrows the tensors, labels too; torch keeps them, and notices when they are changed in
    // between.
    context->save_for_backward(std::move(given.tensors));
    context->saved_data["call"] = c10::IValue::make_capsule(plan.call);
    context->saved_data["module"] = reinterpret_cast<std::int64_t>(&module);
    return results;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list kept = context->get_saved_variables();  // the edges first; throws on a second backward
    NormModule& module = *reinterpret_cast<NormModule*>(context->saved_data["module"].toInt());
    const auto call = c10::static_intrusive_pointer_cast<Call>(context->saved_data["call"].toCapsule());
    Queue& queue = module.queue();
    expect_on(gradients[0], queue.device(), "grad_output");
    variable_list upstream{in_order(gradients[0], call->order)};
    InputSlots inputs{{"grad_output", view_of(upstream[0], call->order)}};
    for (std::size_t i = 0; i < call->statistics.size(); ++i) {
      upstream.push_back(gradients[i + 1].contiguous());
      inputs.add(call->statistics[i].gradient, view_of(upstream.back()));
    }

    variable_list results(call->edges.size() + 1);  // and plan
    OutputSlots outputs;
    for (std::size_t i = 0; i < call->edges.size(); ++i) {
      if (!context->needs_input_grad(i)) continue;
      const auto& [slot, gradient] = call->edges[i];
      results[i] = torch::empty_like(kept[i]);
      outputs.add(gradient,
                  writable_view_of(results[i], Given::order_of(*module.operation().layer().row, slot, call->order)));
    }
    const auto scope = module.begin_call(Direction::backward);
    module.operation().backward(*call->saved, inputs, outputs, queue);
    return results;
  }
};

std::unique_ptr<Operation> operation_on(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group,
                                        Queue& queue, const std::string& name) {
  const bool are_threads = group && group->size() > 1 && group->transport() == "threads";
  expect(queue.device().kind == DeviceKind::cpu || !are_threads, Code::unsupported,
         "ranks of modules on GPUs are threads, must be processes: libtorch runs the backward pass of one GPU on one "
         "thread");
  return make_operation(layer, channels, std::move(group), current_queue(queue), name);
}

/// An input for which the layer's parameters have their shapes: one sample without space.
Shape any_input(const Layer& layer, std::int64_t channels) {
  if (!layer.row->by_trailing()) return {1, channels};
  if (layer.row->statistics.has(Axis::row)) return {1};  // what it has per row is given with a call
  std::vector<std::int64_t> extents = layer.options.normalized_shape;
  expect(!extents.empty(), Code::invalid_argument,
         "normalized_shape of a layer with parameters is not given, must be the trailing extents");
  extents.insert(extents.begin(), 1);
  return Shape(extents);
}

/// The same for every input.
bool is_of_module(const TensorSpec& spec) {
  return spec.role == TensorRole::parameter && !spec.axes.has(Axis::sample) && !spec.axes.has(Axis::space) &&
         !spec.axes.has(Axis::leading) && !spec.axes.has(Axis::row);
}

}  // namespace

NormModule::NormModule(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                       const std::string& name)
    : operation_(operation_on(layer, channels, std::move(group), queue, name)), queue_(&queue) {
  const Shape input = any_input(layer, channels);
  for (const TensorSpec& spec : layer.row->tensors) {
    if (!is_of_module(spec)) continue;
    const Shape shape = layer.shape_of(spec.axes, input);
    register_parameter(std::string(spec.name), torch::full(std::vector<std::int64_t>(shape.begin(), shape.end()),
                                                           spec.start.value_or(spec.otherwise), device_for(queue)));
  }
  weight = parameter("weight");
  bias = parameter("bias");
}

torch::Tensor NormModule::forward(const torch::Tensor& input, const SlotTensors& more) {
  if (!is_training() && !torch::GradMode::is_enabled() && operation_->layer().has_state()) {
    Given given(*this, input);
    for (const auto& own : parameters_) given.add(own.key(), own.value());
    for (const auto& [slot, tensor] : more)
      if (tensor.defined()) given.add(slot, tensor);
    torch::Tensor output = given.output();
    operation_->infer(given.inputs, {{"output", writable_view_of(output, given.order)}}, queue());
    return output;
  }
  const auto call = c10::make_intrusive<Call>();
  torch::Tensor output = run(input, more, call, {})[0];
  if (is_training()) last_ = call;
  return output;
}

std::vector<torch::Tensor> NormModule::forward_with_statistics(const torch::Tensor& input, const SlotTensors& more) {
  const auto call = c10::make_intrusive<Call>();
  const Row& row = *operation_->layer().row;
  for (const OutputSpec& output : row.outputs)
    if (const TensorSpec* gradient = row.tensor("grad_" + std::string(output.name)); gradient != nullptr)
      call->statistics.push_back({output.name, gradient->name});
  auto results = run(input, more, call, {});
  if (is_training()) last_ = call;
  return results;
}

torch::Tensor NormModule::replay(const CallHandle& earlier, const torch::Tensor& input, const SlotTensors& more) {
  expect(static_cast<bool>(earlier), Code::invalid_argument,
         "call to replay is null, must be one that last_call() returned");
  return run(input, more, c10::make_intrusive<Call>(), earlier)[0];
}

variable_list NormModule::run(const torch::Tensor& input, const SlotTensors& more, const CallHandle& call,
                              const CallHandle& earlier) {
  const Row& row = *operation_->layer().row;
  Plan plan{this, call, earlier, {}};
  variable_list tensors{input};
  call->edges = {{"input", "grad_input"}};
  const auto add = [&](std::string_view slot, const torch::Tensor& tensor) {
    if (!tensor.defined()) return;
    const TensorSpec* spec = row.tensor(slot);
    const OutputSpec* gradient = row.output("grad_" + std::string(slot));
    if (spec == nullptr || gradient == nullptr) return void(plan.constants.emplace_back(slot, tensor));
    tensors.push_back(tensor);
    call->edges.push_back({spec->name, gradient->name});
  };
  for (const auto& own : parameters_) add(own.key(), own.value());
  for (const auto& [slot, tensor] : more) add(slot, tensor);
  return NormFunction::apply(at::TensorList(tensors), plan);
}

torch::Tensor NormModule::parameter(std::string_view slot) const {
  const torch::Tensor* found = parameters_.find(std::string(slot));
  return found != nullptr ? *found : torch::Tensor();
}

Norm& NormModule::norm() {
  Norm* norm = operation_->norm();
  expect(norm != nullptr, Code::unsupported,
         [&] { return std::string(operation_->layer().row->name) + " is no layer with mean and variance"; });
  return *norm;
}

void NormModule::train(bool on) {
  torch::nn::Module::train(on);
  operation_->set_training(on);
}

}  // namespace allnorm::torch_adapter
