#include "src/cross_iteration.hpp"

namespace allnorm {

namespace {

constexpr std::int64_t hash_size = 2;  // doubles for the hash of the weights, and whether they changed within a batch

}  // namespace

CrossIteration::CrossIteration(const ForwardInputs& in, const Convolution& convolution, LayerMemory& memory,
                               ForwardArgs& args, Queue& queue) {
  const Rules& rules = memory.rules();
  if (!rules.compensates()) return;
  source_ = derivative_source(in, convolution, queue);
  memory.expect_shape(source_->shape);
  memory.make_window(source_->shape, source_->wide, queue);
  source_->args.rules = rules;
  source_->args.state = args.state = memory.view();
  source_->args.given = args.derives = true;
  // A captured graph is the same for every call; where the host can see the counters, messages grow with the window.
  args.entries = rules.window - 1;
  if (queue.device().kind == DeviceKind::cpu) {
    const Counters now = memory.counters(queue);
    args.entries = now.batches < rules.burn_in ? 0 : now.entries;
  }
}

std::int64_t CrossIteration::scratch() const noexcept {
  if (!source_) return 0;
  const WeightShape& shape = source_->shape;
  return hash_size + (shape.mean_rows + shape.channels) * shape.fan_in;
}

void CrossIteration::before(ForwardArgs& args, double* scratch, double* payload, Queue& queue) {
  if (!source_) return;
  DerivativesArgs& derivatives = source_->args;
  auto* weights = reinterpret_cast<std::uint64_t*>(scratch);
  derivatives.patch_sum = scratch + hash_size;
  derivatives.product = derivatives.patch_sum + source_->shape.mean_rows * source_->shape.fan_in;
  args.weights = weights;
  queue.ops().products({args.rules, args.state, derivatives.theta, args.entries, payload, weights}, queue);
  expect(queue.device().kind != DeviceKind::cpu || weights[1] == 0, Code::invalid_argument,
         "conv_weight has changed within a batch of mini-batches, must be the same until the batch ends");
}

void CrossIteration::after(Queue& queue) const {
  if (source_) queue.ops().derivatives(source_->args, queue);
}

}  // namespace allnorm
