// Backward: moments_grad -> exchange -> apply_grad.
#include <utility>

#include "kernels/ops.hpp"
#include "norm_impl.hpp"
#include "parameters.hpp"

namespace allnorm {

void NormImpl::backward(const Saved& saved, const ConstTensorView& dy, const BackwardOutputs& out, Queue& queue) {
  const ForwardInputs& in = saved.inputs_;
  const ConstTensorView& x = in.input;
  expect(x.given(), Code::invalid_argument, "the Saved of a forward call is empty, must come from forward or replay");
  const Plan plan = plan_for(layer_, x.shape, x.order);
  try {  // everything that can be wrong on this rank alone
    const Shape parameters = parameter_shape(layer_, x.shape);
    expect_like(dy, x, "grad_output");
    if (out.input.given()) expect_like(out.input, x, "grad_input");
    if (out.residual.given()) {
      expect_like(out.residual, x, "grad_residual");
      expect(in.residual.given(), Code::invalid_argument,
             "grad_residual is asked for, must not be where forward had no residual");
    }
    expect_parameter(out.weight, parameters, x.device, "grad_weight");
    expect_parameter(out.bias, parameters, x.device, "grad_bias");
  } catch (const Error& error) {
    if (saved.training_) group_->decline(error);
    throw;
  }

  const Frame& frame = saved.frame_;
  const std::size_t groups = frame.mean.size();
  const Values gamma = read_parameter(in.weight, plan.parameters, 1),
               beta = read_parameter(in.bias, plan.parameters, 0);
  Values sums(2 * groups);  // s1 (G), s2 (G)
  Values dgamma(index(plan.parameters)), dbeta(index(plan.parameters));

  // moments_grad, coarsened to the groups and to gamma and beta
  RowsArgs rows{};
  FineCoefficients fine;
  Gate gate{};
  if (plan.rows) {
    rows.x = x.data;
    rows.dy = dy.data;
    rows.dx = out.input.data;
    rows.dtype = x.dtype;
    rows.rows = plan.norm.groups();
    rows.columns = plan.norm.group_size();
    rows.weight = in.weight.given() ? gamma.data() : nullptr;
    rows.center = frame.mean.data();
    rows.scale = frame.rstd.data();
    rows.sum_g = sums.data();
    rows.sum_gx = sums.data() + groups;
    rows.dweight = dgamma.data();
    rows.dbias = dbeta.data();
    queue.ops().moments_grad_rows(rows, queue);
    if (out.weight.given() || out.bias.given()) queue.ops().affine_grad_rows(rows, queue);
  } else {
    fine = fine_coefficients(plan, frame, gamma, beta);
    gate = {layer_.options.activation, saved.mask_.data(), fine.scale.data(), fine.shift.data()};
    const std::size_t size = fine.center.size();
    Values sum_g(size), sum_gx(size);
    queue.ops().moments_grad(
        {x.data, dy.data, x.dtype, plan.fine, fine.center.data(), gate, sum_g.data(), sum_gx.data()}, queue);
    for (std::size_t f = 0; f < size; ++f) {
      const auto g = index(plan.to_norm(static_cast<std::int64_t>(f)));
      const auto c = index(plan.to_affine(static_cast<std::int64_t>(f)));
      const auto correction = correction_of(frame, g);
      sums[g] += gamma[c] * correction.r * sum_g[f];
      sums[groups + g] += gamma[c] * correction.r * sum_gx[f];
      dgamma[c] += formulas::gamma_grad(frame.rstd[g], correction, sum_g[f], sum_gx[f]);
      dbeta[c] += sum_g[f];
    }
  }

  // exchange: the same call as forward's, two numbers per group
  if (saved.training_ && group_->size() > 1) {
    Message message{header(in, plan, Direction::backward, saved.call_), std::move(sums), 0, {}};
    sums = group_->exchange(std::move(message), queue).payload;
  }

  // apply_grad
  const bool elementwise = out.input.given() || out.residual.given();
  if (elementwise) {
    const std::size_t size = plan.rows ? groups : fine.center.size();
    Values gain(size), slope(size), offset(size);
    for (std::size_t f = 0; f < size; ++f) {
      const auto g = plan.rows ? f : index(plan.to_norm(static_cast<std::int64_t>(f)));
      const double weight = plan.rows ? 1 : gamma[index(plan.to_affine(static_cast<std::int64_t>(f)))];
      const auto k = formulas::apply_grad(frame.rstd[g], correction_of(frame, g).r, weight, frame.share[g], frame.count,
                                          sums[g], sums[groups + g]);
      gain[f] = k.gain;
      slope[f] = k.slope;
      offset[f] = k.offset;
    }
    if (plan.rows) {
      rows.gain = gain.data();
      rows.slope = slope.data();
      rows.offset = offset.data();
      queue.ops().apply_grad_rows(rows, queue);
    } else {
      queue.ops().apply_grad({x.data, dy.data, out.input.data, out.residual.data, x.dtype, plan.fine,
                              fine.center.data(), gate, gain.data(), slope.data(), offset.data()},
                             queue);
    }
  }
  if (out.weight.given()) write_parameter(dgamma, out.weight);
  if (out.bias.given()) write_parameter(dbeta, out.bias);
}

}  // namespace allnorm
