#include "src/cross_iteration.hpp"

namespace allnorm {

namespace {

constexpr std::int64_t hash_size = 2;  // doubles for the hash of the weights, and whether they changed within a batch

}  // namespace

CrossIteration::CrossIteration(const ForwardInputs& in, const Convolution& convolution, const Rules& rules,
                               const Queue& queue) {
  if (rules.compensates()) source_ = derivative_source(in, convolution, queue);
}

// A captured graph is the same for every call; where the host can see the counters, messages grow with the window.
std::int64_t CrossIteration::take_room(LayerMemory& memory, Queue& queue) const {
  if (!source_) return 0;
  memory.make_window(source_->shape, source_->wide, queue);
  const Rules& rules = memory.rules();
  if (queue.device().kind != DeviceKind::cpu) return rules.window - 1;
  const Counters now = memory.counters(queue);
  return now.batches < rules.burn_in ? 0 : now.entries;
}

void CrossIteration::join(ForwardArgs& args, std::int64_t entries) {
  if (!source_) return;
  source_->args.rules = args.rules;
  source_->args.state = args.state;
  source_->args.given = args.derives = true;
  args.entries = entries;
}

std::int64_t CrossIteration::scratch(const WeightShape& shape) noexcept {
  return hash_size + (shape.mean_rows + shape.channels) * shape.fan_in;
}

void CrossIteration::lay_out(ForwardArgs& args, double* scratch) {
  if (!source_) return;
  DerivativesArgs& derivatives = source_->args;
  args.weights = reinterpret_cast<std::uint64_t*>(scratch);
  derivatives.patch_sum = scratch + hash_size;
  derivatives.product = derivatives.patch_sum + source_->shape.mean_rows * source_->shape.fan_in;
}

void CrossIteration::before(const ForwardArgs& args, double* payload, Queue& queue) const {
  if (!source_) return;
  auto* const weights = const_cast<std::uint64_t*>(args.weights);
  queue.ops().products({args.rules, args.state, source_->args.theta, args.entries, payload, weights}, queue);
  expect(queue.device().kind != DeviceKind::cpu || weights[1] == 0, Code::invalid_argument,
         "conv_weight has changed within a batch of mini-batches, must be the same until the batch ends");
}

void CrossIteration::after(Queue& queue) const {
  if (source_) queue.ops().derivatives(source_->args, queue);
}

}  // namespace allnorm
