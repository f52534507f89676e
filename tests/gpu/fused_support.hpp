// A layer of a lone rank with all that fused calls and the separate kernels read and write, and how far the two may
// differ.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../kernels_support.hpp"
#include "finish_support.hpp"
#include "kernels/cuda/fused.hpp"
#include "kernels/cuda/kernels.hpp"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::kernel_test {

using cuda::FusedPath;
using finish_test::FrameMemory;
using finish_test::LayerMemory;

/// The process's choice, until the end of a scope.
struct Choose {
  explicit Choose(FusedPath path) { cuda::set_fused_path(path); }
  Choose(const Choose&) = delete;
  Choose& operator=(const Choose&) = delete;
  ~Choose() { cuda::set_fused_path(FusedPath::automatic); }
};

/// Leaves all multiprocessors but 4 to others, so that on any GPU a tensor of a million bytes is more than is kept on
/// chip.
inline void use_few_multiprocessors(Queue& queue) {
  queue.leave_multiprocessors(cuda::properties_of(queue).multiProcessorCount - 4);
}

inline Rules batch_norm() {
  Rules rules;
  rules.persists = true;
  rules.compensate = false;
  return rules;
}

constexpr std::int64_t bytes_of(std::int64_t bits) { return (bits + 7) / 8; }

/// A layer with everything that a call of it reads and writes. T: of its tensors.
template <class T>
struct Layer {
  Partition p;
  Rules rules;
  LayerMemory memory;
  FrameMemory frame;
  Walled<T> x, residual, y, dy, dx, dresidual;
  Walled<float> weight, bias;
  Walled<double> mean, m2, dweight, dbias, sums;
  backend::Array<double> scratch;
  backend::Array<std::uint8_t> mask;
  Activation activation{ActivationKind::relu, 0.0};
  bool with_residual = true, with_mask = false;

  Layer(const Partition& partition, const Rules& r)
      : p(partition),
        rules(r),
        memory(r, p.groups()),
        frame(p.groups()),
        x(normal<T>(p.elements(), 1, 1.5, 2.0)),
        residual(normal<T>(p.elements(), 2)),
        y(p.elements()),
        dy(normal<T>(p.elements(), 3)),
        dx(p.elements()),
        dresidual(p.elements()),
        weight(normal<float>(p.groups(), 4, 1.0, 0.2)),
        bias(normal<float>(p.groups(), 5)),
        mean(p.groups()),
        m2(p.groups()),
        dweight(p.groups()),
        dbias(p.groups()),
        sums(2 * p.groups()),
        scratch(static_cast<std::size_t>(8 * p.groups())),
        mask(static_cast<std::size_t>(bytes_of(p.elements())), std::uint8_t{0}) {}

  ForwardArgs forward() {
    ForwardArgs a;
    describe(a);
    a.residual = with_residual ? residual.data() : nullptr;
    a.y = y.data();
    a.mask = with_mask ? mask.data() : nullptr;
    a.rules = rules;
    a.state = memory.view();
    a.mean = mean.data();
    a.m2 = m2.data();
    return a;
  }
  BackwardArgs backward() {
    BackwardArgs a;
    describe(a);
    a.dy = dy.data();
    a.dx = dx.data();
    a.dresidual = with_residual ? dresidual.data() : nullptr;
    a.mask = with_mask ? mask.data() : nullptr;
    a.dweight = {dweight.data(), DType::f64};
    a.dbias = {dbias.data(), DType::f64};
    a.wants_weight = true;
    a.sums = sums.data();
    a.scratch = scratch.data();
    return a;
  }
  bool intact() const {
    return y.intact() && dx.intact() && dresidual.intact() && mean.intact() && m2.intact() && dweight.intact() &&
           dbias.intact() && sums.intact();
  }

 private:
  void describe(LayerCall& call) {
    call.x = x.data();
    call.dtype = dtype_of<T>();
    call.norm = call.fine = call.affine = p;
    call.to_norm = call.to_affine = {1, p.groups()};
    call.activation = activation;
    call.weight = {weight.data(), DType::f32, 1};
    call.bias = {bias.data(), DType::f32, 0};
    call.frame = frame.view();
  }
};

inline void call(ForwardArgs args, Queue& queue, FusedPath path) {
  const Choose choice(path);
  EXPECT_EQ(cuda::fused_fits(args, queue), path == FusedPath::always);
  cuda::forward_local(args, queue);
  cuda::forward_finish(args, {}, queue);
  queue.wait();
}
/// A table of functions would prefer the group-wise kernels for the small ones.
inline void fused_backward(const BackwardArgs& args, Queue& queue) {
  const Choose choice(FusedPath::always);
  EXPECT_TRUE(cuda::fused_fits(args, queue));
  cuda::fused_backward(args, queue);
  queue.wait();
}

/// How far two orders of summation may leave the mean and the variance of a group apart: every value's difference from
/// a pivot among the group's values, its square, and the additions to sums of `chain` values are rounded in C.
struct SumModel {
  double mean = 0, var = 0;

  template <class T>
  static SumModel of(const Walled<T>& x, const Partition& p) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (std::int64_t i = 0; i < x.size(); ++i) {
      low = std::min(low, x[i]);
      high = std::max(high, x[i]);
    }
    const auto n = static_cast<double>(p.group_size());
    const double chain = std::is_same_v<T, double> ? n : 8;  // beyond it sums are double
    const double unit = compute_unit<T> * (chain + 2) + eps64 * n, range = high - low;
    return {2 * unit * range, 4 * unit * range * range};
  }
};

inline void expect_close(double actual, double expected, double bound, const char* what, std::int64_t i) {
  EXPECT_NEAR(actual, expected, bound + 16 * eps64 * std::abs(expected)) << what << " " << i;
}

/// The frames, counters and running statistics of two layers that saw the same values.
template <class T>
void expect_same_state(Layer<T>& actual, Layer<T>& expected, const SumModel& model) {
  const auto a = actual.frame.view(), b = expected.frame.view();
  EXPECT_EQ(a.scalars->count, b.scalars->count);
  EXPECT_EQ(a.scalars->call, b.scalars->call);
  for (std::int64_t g = 0; g < actual.p.groups(); ++g) {
    expect_close(a.mean[g], b.mean[g], model.mean, "mean", g);
    expect_close(a.var[g], b.var[g], model.var, "var", g);
    // 1/sqrt(var + eps) has the slope -1/2 (var + eps)^(-3/2)
    expect_close(a.rstd[g], b.rstd[g], model.var * std::pow(b.rstd[g], 3), "rstd", g);
    EXPECT_EQ(a.share[g], b.share[g]);
  }
  const LayerState s = actual.memory.view(), t = expected.memory.view();
  EXPECT_EQ(*s.parity, *t.parity);
  EXPECT_EQ(s.now().calls, t.now().calls);
  EXPECT_EQ(s.now().counted, t.now().counted);
  EXPECT_EQ(s.now().tracked, t.now().tracked);
  EXPECT_EQ(s.now().batches, t.now().batches);
  EXPECT_EQ(s.now().done, t.now().done);
  EXPECT_EQ(s.now().entries, t.now().entries);
  EXPECT_EQ(s.now().newest, t.now().newest);
  EXPECT_EQ(s.now().count, t.now().count);
  EXPECT_EQ(s.last->call, t.last->call);
  EXPECT_EQ(s.last->count, t.last->count);
  const double bound = 2 * std::max(model.mean, model.var);  // Bessel's factor is at most 2
  for (std::size_t i = 0; i < actual.memory.values.size(); ++i)
    expect_close(actual.memory.values[i], expected.memory.values[i], bound, "state", static_cast<std::int64_t>(i));
  for (std::size_t i = 0; i < actual.memory.ring_mean.size(); ++i) {
    expect_close(actual.memory.ring_mean[i], expected.memory.ring_mean[i], bound, "window", 0);
    expect_close(actual.memory.ring_var[i], expected.memory.ring_var[i], bound, "window", 1);
  }
}

}  // namespace allnorm::kernel_test
