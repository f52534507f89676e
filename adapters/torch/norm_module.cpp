// A normalization layer as a libtorch module with autograd.
#include "adapters/torch/norm_module.hpp"

#include <torch/csrc/autograd/custom_function.h>

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

/// What a call needs besides the tensors that take gradients.
struct Plan {
  NormModule* module;
  CallHandle call;                 // receives what forward leaves
  CallHandle earlier;              // not null: a replay
  ConvolutionTensors convolution;  // undefined where the layer needs none
};

struct NormFunction : torch::autograd::Function<NormFunction> {
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& input, const torch::Tensor& weight,
                               const torch::optional<torch::Tensor>& bias,
                               const torch::optional<torch::Tensor>& residual, const Plan& plan) {
    NormModule& module = *plan.module;
    Queue& queue = module.queue();
    const torch::Tensor beta = bias ? *bias : torch::Tensor();
    module.expect_tensors(input, residual ? *residual : torch::Tensor(), plan.convolution);
    const Dense x = dense(input, module.by_rows());
    ForwardInputs inputs;
    inputs.input = view_of(x.tensor, x.order);
    inputs.weight = view_of(weight);
    inputs.bias = view_of(beta);
    torch::Tensor added;
    if (residual) {
      added = in_order(*residual, x.order);
      inputs.residual = view_of(added, x.order);
    }
    torch::Tensor conv_input, conv_weight;
    if (plan.convolution.weight.defined()) {
      conv_input = in_order(plan.convolution.input, x.order);
      conv_weight = plan.convolution.weight.contiguous();
      inputs.conv_input = view_of(conv_input, x.order);
      inputs.conv_weight = view_of(conv_weight);
    }
    torch::Tensor output = torch::empty_like(x.tensor);
    const TensorView y = writable_view_of(output, x.order);
    plan.call->saved = plan.earlier ? module.norm().replay(plan.earlier->saved, inputs, y, queue)
                                    : module.norm().forward(inputs, y, queue);
    // The library's record borrows the tensors; torch keeps them, and notices when they are changed in between.
    variable_list kept{x.tensor, weight, beta};
    if (residual) kept.push_back(added);
    context->save_for_backward(std::move(kept));
    context->saved_data["call"] = c10::IValue::make_capsule(plan.call);
    context->saved_data["module"] = reinterpret_cast<std::int64_t>(&module);
    context->saved_data["order"] = static_cast<std::int64_t>(x.order);
    return output;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list kept = context->get_saved_variables();  // throws on a second backward
    NormModule& module = *reinterpret_cast<NormModule*>(context->saved_data["module"].toInt());
    const Order order = static_cast<Order>(context->saved_data["order"].toInt());
    const auto call = c10::static_intrusive_pointer_cast<Call>(context->saved_data["call"].toCapsule());
    Queue& queue = module.queue();
    expect_on(gradients[0], queue.device(), "grad_output");
    const torch::Tensor grad_output = in_order(gradients[0], order);

    const bool has_residual = kept.size() > 3;
    variable_list results(5);  // input, weight, bias, residual, plan
    BackwardOutputs outputs;
    const auto want = [&](std::size_t edge, const torch::Tensor& like, Order its_order) {
      if (!context->needs_input_grad(edge)) return TensorView{};
      results[edge] = torch::empty_like(like);
      return writable_view_of(results[edge], its_order);
    };
    outputs.input = want(0, kept[0], order);
    outputs.weight = want(1, kept[1], Order::channels_first);
    if (kept[2].defined()) outputs.bias = want(2, kept[2], Order::channels_first);  // rows without one have no residual
    if (has_residual) outputs.residual = want(3, kept[3], order);
    module.norm().backward(call->saved, view_of(grad_output, order), outputs, queue);
    return results;
  }
};

Norm make_norm(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
               const std::string& name) {
  const bool are_threads = group && group->size() > 1 && group->transport() == "threads";
  expect(queue.device().kind == DeviceKind::cpu || !are_threads, Code::unsupported,
         "ranks of modules on GPUs are threads, must be processes: libtorch runs the backward pass of one GPU on one "
         "thread");
  return Norm(layer, channels, std::move(group), current_queue(queue), name);
}

}  // namespace

NormModule::NormModule(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                       const std::string& name)
    : norm_(make_norm(layer, channels, std::move(group), queue, name)), queue_(&queue) {
  std::vector<std::int64_t> extents{channels};
  if (by_rows()) {
    extents = layer.options.normalized_shape;
    expect(!extents.empty(), Code::invalid_argument,
           "normalized_shape of a layer with parameters is not given, must be the trailing extents");
  }
  const auto add = [&](const char* tensor, double value) {
    if (layer.row->tensor(tensor) == nullptr) return torch::Tensor();
    return register_parameter(tensor, torch::full(extents, value, device_for(queue)));
  };
  weight = add("weight", 1);
  bias = add("bias", 0);
}

torch::Tensor NormModule::forward(const torch::Tensor& input, const torch::Tensor& residual,
                                  const ConvolutionTensors& convolution) {
  const bool gradients = torch::GradMode::is_enabled();
  if (!is_training() && !gradients && norm_.has_running()) {
    expect_tensors(input, residual, {});
    const Dense x = dense(input);
    ForwardInputs inputs;
    inputs.input = view_of(x.tensor, x.order);
    inputs.weight = view_of(weight);
    inputs.bias = view_of(bias);
    torch::Tensor added;
    if (residual.defined()) {
      added = in_order(residual, x.order);
      inputs.residual = view_of(added, x.order);
    }
    torch::Tensor output = torch::empty_like(x.tensor);
    norm_.infer(inputs, writable_view_of(output, x.order), queue());
    return output;
  }
  const Plan plan{this, c10::make_intrusive<Call>(), {}, convolution};
  torch::Tensor output = NormFunction::apply(
      input, weight, bias.defined() ? torch::optional<torch::Tensor>(bias) : torch::optional<torch::Tensor>(),
      residual.defined() ? torch::optional<torch::Tensor>(residual) : torch::optional<torch::Tensor>(), plan);
  if (is_training()) last_ = plan.call;
  return output;
}

torch::Tensor NormModule::replay(const CallHandle& earlier, const torch::Tensor& input, const torch::Tensor& residual) {
  expect(static_cast<bool>(earlier), Code::invalid_argument,
         "call to replay is null, must be one that last_call() returned");
  const Plan plan{this, c10::make_intrusive<Call>(), earlier, {}};
  return NormFunction::apply(
      input, weight, bias.defined() ? torch::optional<torch::Tensor>(bias) : torch::optional<torch::Tensor>(),
      residual.defined() ? torch::optional<torch::Tensor>(residual) : torch::optional<torch::Tensor>(), plan);
}

void NormModule::expect_tensors(const torch::Tensor& input, const torch::Tensor& residual,
                                const ConvolutionTensors& convolution) const {
  const Device device = queue_->device();
  expect_on(input, device, "input");
  expect_on(residual, device, "residual");
  expect_on(weight, device, "weight");
  expect_on(bias, device, "bias");
  expect_on(convolution.input, device, "the convolution's input");
  expect_on(convolution.weight, device, "the convolution's weight");
}

void NormModule::train(bool on) {
  torch::nn::Module::train(on);
  norm_.set_training(on);
}

}  // namespace allnorm::torch_adapter
