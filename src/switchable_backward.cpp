// Backward: sums over the channels of samples -> exchange -> what all three norms add -> apply_grad.
#include <optional>

#include "kernels/group_steps.hpp"
#include "src/arrays.hpp"
#include "src/parameters.hpp"
#include "src/slots.hpp"
#include "src/switchable_operation.hpp"

namespace allnorm {

/// Arrays of a call: of the channels of samples (N * C), of samples (N) and of channels (C).
struct SwitchableOperation::Gradients {
  Gradients(const Call& call, Queue& queue)
      : of_sets(sets_count, call.frames.sets(), queue),
        of_samples(2, call.frames.samples, queue),
        of_channels(channels_count, call.frames.channels, queue),
        gamma(parameter(call.weight, 1)) {}

  steps::TermArrays terms() { return {of_sets[term_mean], of_sets[term_var]}; }
  steps::TermArrays layers() { return {of_samples[0], of_samples[1]}; }
  steps::TermArrays batches() { return {of_channels[batch_mean], of_channels[batch_var]}; }

  enum : std::int64_t { sum_g, sum_gx, term_mean, term_var, of_input, sets_count = of_input + 4 };
  enum : std::int64_t { batch_mean, batch_var, logits, channels_count = logits + steps::SwitchedLogits::count };
  Arrays of_sets, of_samples, of_channels;
  Parameter gamma;
};

void SwitchableOperation::run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                                       Queue& queue) {
  const Call& call = tell_others(saved.training(), group(), [&]() -> const Call& { return own(saved); });
  if (call.exchanged) group().check();
  const ConstTensorView dy = inputs["grad_output"];
  const std::int64_t C = call.frames.channels;
  const bool in_parts = has_parts_of_samples(), shared = shares_batch(call);
  std::optional<Gradients> made;
  RecordExchange exchange;
  tell_others(call.exchanged, group(), [&] {
    expect_like(dy, call.input, queue, "grad_output");
    check_gradients(call.input, gradients, queue);
    made.emplace(call, queue);
    exchange = take_sums(call, dy, *made, gradients, queue);
  });
  const Gathered gathered = in_parts || shared ? exchange.gather(queue) : Gathered{};
  if (in_parts) make_terms(call, gathered, *made, made->batches(), gradients, queue);
  if (shared) queue.ops().each({steps::SumRanks{gathered, made->of_channels[Gradients::batch_mean]}}, 2 * C, queue);
  if (gradients["grad_input"].given()) write_input(call, dy, *made, exchange.fails(), gradients["grad_input"], queue);
}

RecordExchange SwitchableOperation::take_sums(const Call& call, const ConstTensorView& dy, Gradients& made,
                                              const OutputSlots& gradients, Queue& queue) const {
  const steps::SwitchedFrames& frames = call.frames;
  const std::int64_t sets = frames.sets(), C = frames.channels;
  double* const sums = made.of_sets[Gradients::sum_g];  // and those of sum_gx behind them
  queue.ops().moments_grad({.x = call.input.data,
                            .dy = dy.data,
                            .dtype = dy.dtype,
                            .partition = call.partition,
                            .center = frames.mean,
                            .sum_g = sums,
                            .sum_gx = sums + sets},
                           queue);
  RecordExchange exchange;
  if (has_parts_of_samples()) {
    exchange = backward_exchange(call, sets, queue);
    copy_on_device(exchange.payload(), sums, index(2 * sets) * sizeof(double), queue);
    exchange.open_backward(&frames.scalars->turn.call, queue);
    return exchange;
  }
  const Gathered own{nullptr, 0, 0, sums};
  if (!shares_batch(call)) {
    make_terms(call, own, made, made.batches(), gradients, queue);
    return exchange;
  }
  exchange = backward_exchange(call, C, queue);
  make_terms(call, own, made, {exchange.payload(), exchange.payload() + C}, gradients, queue);
  exchange.open_backward(&frames.scalars->turn.call, queue);
  return exchange;
}

RecordExchange SwitchableOperation::backward_exchange(const Call& call, std::int64_t groups, Queue& queue) const {
  Header header = norm_.header(call.input.dtype, groups, Direction::backward);
  header.set(Field::inference, std::uint64_t{!call.live});
  return {norm_, header, 2 * groups, queue};
}

void SwitchableOperation::make_terms(const Call& call, const Gathered& sums, Gradients& made,
                                     const steps::TermArrays& batches, const OutputSlots& gradients,
                                     Queue& queue) const {
  using G = Gradients;
  const steps::SwitchedFrames& frames = call.frames;
  queue.ops().each({steps::SwitchedTerms{frames, made.gamma, sums, made.terms()}}, frames.sets(), queue);
  queue.ops().each(
      {steps::SwitchedShares{frames, made.gamma, made.of_sets[G::sum_g], made.of_sets[G::sum_gx], made.terms(),
                             made.layers(), batches, call.live, parameter_grad(gradients["grad_weight"]),
                             parameter_grad(gradients["grad_bias"]), made.of_channels[G::logits]}},
      frames.samples + frames.channels, queue);
  const TensorView of_means = gradients["grad_mean_logits"], of_vars = gradients["grad_var_logits"];
  if (!of_means.given() && !of_vars.given()) return;
  queue.ops().each({steps::SwitchedLogits{frames.channels, made.of_channels[G::logits], parameter_grad(of_means),
                                          parameter_grad(of_vars)}},
                   steps::SwitchedLogits::count, queue);
}

void SwitchableOperation::write_input(const Call& call, const ConstTensorView& dy, Gradients& made,
                                      const std::uint64_t* fails, const TensorView& dx, Queue& queue) const {
  const GradArrays k = made.of_sets.grad(Gradients::of_input);
  queue.ops().each({steps::SwitchedInput{call.frames, made.gamma, made.terms(), made.layers(), made.batches(),
                                         call.live, layer_.options.unbiased_instance_var, fails, k}},
                   call.frames.sets(), queue);
  queue.ops().apply_grad({.x = call.input.data,
                          .dy = dy.data,
                          .dx = dx.data,
                          .dtype = dy.dtype,
                          .partition = call.partition,
                          .center = call.frames.mean,
                          .gain = k.gain,
                          .slope = k.slope,
                          .offset = k.offset,
                          .power = k.power},
                         queue);
}

}  // namespace allnorm
