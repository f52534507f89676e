// One layer object on one rank: edges, replay, inference, in-flight calls, bad input.
#include "allnorm/norm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cases.hpp"
#include "harness.hpp"
#include "launch/reference/reference.hpp"
#include "norm_cases.hpp"

namespace norm_test {
namespace {

using namespace allnorm;
using cases::Random;
using harness::error_of;
using reference::Array;
using reference::Doubles;

Shape shape_of(const std::vector<std::int64_t>& extents) { return Shape(std::span<const std::int64_t>(extents)); }

// A layer with an input of its own, and one call of it.
struct Call {
  explicit Call(std::string_view text, std::vector<std::int64_t> extents = {3, 4, 5}, std::uint64_t seed = 1)
      : random(seed),
        x(cases::channelwise(random, std::move(extents), 0.7, 1.3)),
        dy(cases::normal(random, x.shape)),
        y(x.v.size()),
        dx(x.v.size()),
        norm(parse_layer(text), x.shape.size() > 1 ? x.shape[1] : 1, nullptr, queue) {}

  Shape shape() const { return shape_of(x.shape); }
  ForwardInputs inputs() const {
    ForwardInputs in;
    in.input = view(x.v.data(), shape());
    return in;
  }
  RunningStatistics running() { return norm.running(queue); }
  Saved forward() { return norm.forward(inputs(), view(y.data(), shape()), queue); }
  void backward(const Saved& saved) {
    BackwardOutputs out;
    out.input = view(dx.data(), shape());
    norm.backward(saved, view(dy.v.data(), shape()), out, queue);
  }

  Queue queue = Queue::cpu();
  Random random;
  Array x, dy;
  Doubles y, dx;
  Norm norm;
};

// ---- edges
// -----------------------------------------------------------------------------------------------------------

TEST(BatchNorm, AConstantChannelBecomesItsBias) {
  Call call("batch_norm");
  call.x = cases::constant({3, 4, 5}, 0.1);
  const Doubles bias{1.5, -2, 0, 1e-7};
  ForwardInputs in = call.inputs();
  in.bias = view(bias.data(), Shape{4});
  const Saved saved = call.norm.forward(in, view(call.y.data(), call.shape()), call.queue);
  for (std::size_t i = 0; i < call.y.size(); ++i) EXPECT_EQ(call.y[i], bias[i / 5 % 4]);
  for (const double var : saved.frame().var) EXPECT_EQ(var, 0);
}

TEST(BatchNorm, AConstantChannelHasAGradientWithEpsOutside) {
  Call call("batch_norm:eps=0.5:eps_place=outside", {2, 1});
  call.x.v = {3, 3};
  call.dy.v = {1, 0};
  call.backward(call.forward());
  EXPECT_EQ(call.y, (Doubles{0, 0}));
  EXPECT_EQ(call.dx, (Doubles{1, -1}));  // (dy - mean of dy) / eps: a root of 0 has no derivative
}

TEST(BatchNorm, OneValuePerChannelGivesItsBiasAndNoGradient) {
  Call call("batch_norm", {1, 3});
  const Saved saved = call.forward();
  call.backward(saved);
  EXPECT_EQ(call.y, Doubles(3, 0.0));
  for (std::size_t c = 0; c < 3; ++c)
    EXPECT_LE(std::abs(call.dx[c]), 1e-15 * saved.frame().rstd[c] * std::abs(call.dy.v[c]) * 4);
  for (const double v : call.running().spread) EXPECT_EQ(v, 0.9);  // Bessel's factor of one value is 1: 0.9*1 + 0.1*0
}

TEST(BatchNorm, AnEmptyCallChangesNothing) {
  Call call("batch_norm", {0, 3, 4});
  call.backward(call.forward());
  EXPECT_EQ(call.running().tracked, 0);
  for (const double v : call.running().mean) EXPECT_EQ(v, 0);
  for (const double v : call.running().spread) EXPECT_EQ(v, 1);
}

TEST(BatchNorm, WholeNumbersGiveExactStatistics) {
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
    visit(dtype, [&]<class T>(std::type_identity<T>) {
      Queue queue = Queue::cpu();
      std::vector<T> x(2 * 1 * 4), y(x.size());
      const double values[] = {1, 3, 5, 7, 2, 4, 6, 8};
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = store<T>(static_cast<compute_t<T>>(values[i]));
      Norm norm(Layer("batch_norm"), 1, nullptr, queue);
      ForwardInputs in;
      in.input = view(x.data(), Shape{2, 1, 4});
      const Saved saved = norm.forward(in, view(y.data(), Shape{2, 1, 4}), queue);
      EXPECT_EQ(saved.frame().mean[0], 4.5);
      EXPECT_EQ(saved.frame().var[0], 5.25);
      EXPECT_EQ(norm.running(queue).spread[0], 0.9 + 0.1 * 6.0);
    });
  }
}

TEST(BatchNorm, FarFromZeroTheOutputIsStillRight) {
  // |mean| / std = 1e4 in f32 over 1e6 values: variance to 1e-7, output to 1e-6 of its maximum.
  Random random(5);
  const Array wide = cases::rounded_to_float(cases::normal(random, {16, 1, 62500}, 1e4, 1));
  const std::vector<float> x = cases::as_floats(wide);
  std::vector<float> y(x.size());
  Queue queue = Queue::cpu();
  Norm norm(Layer("batch_norm"), 1, nullptr, queue);
  ForwardInputs in;
  in.input = view(x.data(), Shape{16, 1, 62500});
  const Saved saved = norm.forward(in, view(y.data(), Shape{16, 1, 62500}), queue);
  auto oracle = reference::make_layer(1);
  const auto expected = reference::forward(oracle, {{wide}, {}, {}, {}});
  EXPECT_NEAR(saved.frame().var[0] / expected.var[0], 1, 1e-7);
  EXPECT_LE(cases::relative_error(Doubles(y.begin(), y.end()), expected.y[0].v), 1e-6);
}

TEST(BatchRenorm, UnclippedItIsInferenceWithTheOldState) {
  for (const std::string variant : {"paper", "var"}) {
    Call call("batch_renorm:r_max=1e30:d_max=1e30:variant=" + variant);
    Doubles inferred(call.y.size());
    call.norm.infer(call.inputs(), view(inferred.data(), call.shape()), call.queue);
    call.forward();
    EXPECT_LE(cases::relative_error(call.y, inferred), 1e-13);
  }
}

TEST(BatchRenorm, WithoutRoomItIsBatchNorm) {
  Call renorm("batch_renorm:r_max=1:d_max=0:eps=1e-5"), plain("batch_norm");
  renorm.backward(renorm.forward());
  plain.backward(plain.forward());
  EXPECT_EQ(renorm.y, plain.y);
  EXPECT_EQ(renorm.dx, plain.dx);
}

TEST(BatchRenorm, FollowsItsSchedule) {
  const Layer layer = parse_layer("batch_renorm:r_max=1@1,2@3:d_max=0@0,1@4");
  Call call("batch_norm");
  Norm norm(layer, 4, nullptr, call.queue);
  const double r_max[] = {1, 1, 1.5, 2, 2, 2}, d_max[] = {0, 0.25, 0.5, 0.75, 1, 1};
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(norm.renorm_bounds(call.queue), std::pair(r_max[i], d_max[i]));
    if (i == 3) {  // the schedule and its clock are part of the state
      const State state = norm.save(call.queue);
      norm = Norm(Layer("batch_renorm"), 4, nullptr, call.queue);
      norm.load(state, call.queue);
      EXPECT_EQ(norm.renorm_bounds(call.queue), std::pair(r_max[i], d_max[i]));
    }
    norm.forward(call.inputs(), view(call.y.data(), call.shape()), call.queue);
  }
}

// ---- calls ---------------------------------------------------------------------------------------------------------

TEST(Norm, SeveralCallsMayBeInFlight) {
  Call a("batch_norm"), b("batch_norm", {2, 4, 7}, 2);
  const Saved first = a.forward();
  const Saved second = a.norm.forward(b.inputs(), view(b.y.data(), b.shape()), a.queue);
  BackwardOutputs out;
  out.input = view(b.dx.data(), b.shape());
  a.norm.backward(second, view(b.dy.v.data(), b.shape()), out, a.queue);
  a.backward(first);
  Call alone("batch_norm");
  alone.backward(alone.forward());
  EXPECT_EQ(a.dx, alone.dx);
}

TEST(Norm, ReplayGivesTheSameAndChangesNothing) {
  Call call("batch_renorm:activation=relu:momentum=0.5");
  const Saved saved = call.forward();
  const Doubles y = call.y, running = call.running().mean;
  const Saved again = call.norm.replay(saved, call.inputs(), view(call.y.data(), call.shape()), call.queue);
  EXPECT_EQ(call.y, y);
  EXPECT_EQ(call.running().mean, running);
  EXPECT_EQ(call.running().tracked, 1);
  call.backward(saved);
  const Doubles dx = call.dx;
  call.backward(again);
  EXPECT_EQ(call.dx, dx);
}

TEST(Norm, ReplayKeepsTheResidualsGate) {
  Call call("batch_norm:activation=relu");
  ForwardInputs in = call.inputs();
  in.residual = view(call.dy.v.data(), call.shape());
  const TensorView y = view(call.y.data(), call.shape());
  const Saved saved = call.norm.forward(in, y, call.queue), again = call.norm.replay(saved, in, y, call.queue);
  Doubles first(call.y.size()), second(call.y.size());
  BackwardOutputs out;
  out.residual = view(first.data(), call.shape());
  call.norm.backward(saved, view(call.x.v.data(), call.shape()), out, call.queue);
  out.residual = view(second.data(), call.shape());
  call.norm.backward(again, view(call.x.v.data(), call.shape()), out, call.queue);
  EXPECT_EQ(first, second);
  EXPECT_NE(error_of([&] {
              ForwardInputs other = in;
              other.input.shape = other.residual.shape = Shape{5, 4, 3};
              call.norm.replay(saved, other, view(call.y.data(), Shape{5, 4, 3}), call.queue);
            }).find("the replayed input has shape (5,4,3), must have (3,4,5)"),
            std::string::npos);
}

TEST(Norm, InInferenceOneNanDoesNotSpread) {
  Call call("batch_norm:training=false");
  call.dy.v[7] = std::nan("");
  call.backward(call.forward());
  for (std::size_t i = 0; i < call.dx.size(); ++i) EXPECT_EQ(std::isnan(call.dx[i]), i == 7);
}

TEST(Norm, MayWriteOverItsInput) {
  Call call("batch_norm:activation=relu");
  call.forward();
  const TensorView in_place = view(call.x.v.data(), call.shape());
  call.norm = Norm(Layer("batch_norm").set("activation", "relu"), 4, nullptr, call.queue);
  call.norm.forward(call.inputs(), in_place, call.queue);
  EXPECT_EQ(call.x.v, call.y);
}

TEST(Norm, InferenceUsesTheRunningStatisticsAlone) {
  Call call("batch_norm:momentum=1");
  call.forward();
  const auto expected = [&] {
    auto oracle = reference::make_layer(4);
    oracle.state.running_mean = call.running().mean;
    oracle.state.running_var = call.running().spread;
    return reference::infer(oracle, {{call.x}, {}, {}, {}}).y[0].v;
  }();
  call.norm.infer(call.inputs(), view(call.y.data(), call.shape()), call.queue);
  EXPECT_LE(cases::relative_error(call.y, expected), 1e-14);
  EXPECT_EQ(call.running().tracked, 1);
}

// ---- bad input
// -------------------------------------------------------------------------------------------------------

TEST(BadInput, IsNamed) {
  Call call("batch_norm");
  Doubles three(3);
  ForwardInputs in = call.inputs();
  const auto told = [&](const ForwardInputs& inputs) {
    return error_of([&] { call.norm.forward(inputs, view(call.y.data(), inputs.input.shape), call.queue); });
  };
  in.weight = view(three.data(), Shape{3});
  EXPECT_EQ(told(in), "invalid input: weight has shape (3,), must have (4,)");
  in = call.inputs();
  in.input.shape = Shape{60};
  EXPECT_EQ(told(in), "invalid input: input has shape (60,), must have at least 2 axes (N,C,space...)");
  in.input.shape = Shape{4, 3, 5};
  EXPECT_EQ(told(in), "invalid input: input has 3 channels, must have 4");
  in = call.inputs();
  in.residual = view(call.dy.v.data(), Shape{3, 4, 4});
  EXPECT_EQ(told(in), "invalid input: residual has shape (3,4,4), must have (3,4,5) as input");
  EXPECT_EQ(told(ForwardInputs{}), "invalid argument: input is missing");
  EXPECT_EQ(call.running().tracked, 0);

  Call window("cross_iteration_batch_norm");
  EXPECT_EQ(error_of([&] { window.forward(); }),
            "invalid argument: conv_weight is missing, must be given where window is over 1 and compensate=true");
  Call group("group_norm:groups=3");
  EXPECT_EQ(error_of([&] { group.forward(); }),
            "invalid argument: attribute groups is 3, must divide the number of channels, 4");
  Call rows("layer_norm:normalized_shape=4,4");
  EXPECT_EQ(error_of([&] { rows.forward(); }),
            "invalid argument: attribute normalized_shape is (4,4), must be the trailing "
            "axes of input, whose shape is (3,4,5)");
}

TEST(BadInput, WhatTheRowDoesNotListIsRefused) {
  const auto told = [](std::string_view layer, const auto& change) {
    Call call(layer);
    ForwardInputs in = call.inputs();
    BackwardOutputs out;
    change(call, in, out);
    return error_of([&] {
      const Saved saved = call.norm.forward(in, view(call.y.data(), call.shape()), call.queue);
      call.norm.backward(saved, view(call.dy.v.data(), call.shape()), out, call.queue);
    });
  };
  const auto bias = [](Call& call, ForwardInputs& in, BackwardOutputs&) {
    in.bias = view(call.dy.v.data(), call.shape());
  };
  EXPECT_EQ(told("rms_norm", bias), "invalid argument: bias is given, must not be for rms_norm");
  const auto residual = [](Call& call, ForwardInputs& in, BackwardOutputs&) {
    in.residual = view(call.dy.v.data(), call.shape());
  };
  for (const auto* layer : {"layer_norm", "rms_norm", "group_norm:groups=2"}) EXPECT_EQ(told(layer, residual), "");
  const auto grad_residual = [](Call& call, ForwardInputs&, BackwardOutputs& out) {
    out.residual = view(call.dx.data(), call.shape());
  };
  const auto grad_bias = [](Call& call, ForwardInputs&, BackwardOutputs& out) {
    out.bias = view(call.dx.data(), call.shape());
  };
  EXPECT_EQ(told("rms_norm", grad_bias), "invalid argument: grad_bias is given, must not be for rms_norm");
  EXPECT_EQ(told("group_norm:groups=2", grad_residual),
            "invalid argument: grad_residual is asked for, must not be where forward had no residual");
  for (const auto& [member, name] :
       {std::pair{&ForwardInputs::conv_input, "conv_input"}, {&ForwardInputs::conv_weight, "conv_weight"}}) {
    const auto one = [tensor = member](Call& call, ForwardInputs& in, BackwardOutputs&) {
      in.*tensor = view(call.dy.v.data(), call.shape());
    };
    EXPECT_EQ(told("group_norm:groups=2", one),
              "invalid argument: " + std::string(name) + " is given, must not be for group_norm");
    EXPECT_EQ(told("batch_norm", one), "");
  }
}

TEST(Sync, NeedsTheRanksThatItAsksFor) {
  Queue queue = Queue::cpu();
  const auto told = [&](std::string_view layer, std::shared_ptr<Communicator> group) {
    return error_of([&] { Norm(parse_layer(layer), 4, std::move(group), queue); });
  };
  EXPECT_EQ(told("sync_batch_norm", nullptr),
            "invalid argument: attribute sync is world, must come with a group of ranks (self() where this rank is "
            "alone)");
  EXPECT_EQ(told("batch_norm:sync=2", nullptr),
            "invalid argument: attribute sync is 2, must come with a group of ranks (self() where this rank is alone)");
  EXPECT_EQ(told("batch_norm:sync=1", nullptr), "");
  EXPECT_EQ(told("sync_batch_norm", self()), "");
  EXPECT_EQ(told("batch_norm:sync=2", self()), "");  // the last group may be smaller
  EXPECT_EQ(told("batch_norm:sync=2", threads(3)[0]),
            "invalid argument: the group has 3 ranks, must have at most 2, which attribute sync asks for");
  EXPECT_EQ(told("batch_norm:sync=3", threads(3)[0]), "");
  EXPECT_EQ(told("batch_norm", threads(3)[0]), "");  // the group makes it synchronous
}

TEST(BadInput, ConvolutionsThatDoNotFitAreNamed) {
  Call call("cross_iteration_batch_norm", {2, 4, 5, 5});
  const Array conv_input = cases::normal(call.random, {2, 3, 5, 5}), weight = cases::normal(call.random, {4, 3, 3, 3});
  ForwardInputs in = call.inputs();
  in.conv_input = view(conv_input.v.data(), shape_of(conv_input.shape));
  in.conv_weight = view(weight.v.data(), shape_of(weight.shape));
  const auto told = [&](std::string_view attribute, std::string_view value) {
    Layer layer("cross_iteration_batch_norm");
    layer.set("conv_padding", "1").set(attribute, value);
    Norm norm(layer, 4, nullptr, call.queue);
    return error_of([&] { norm.forward(in, view(call.y.data(), call.shape()), call.queue); });
  };
  EXPECT_EQ(told("conv_padding", "1"), "");
  EXPECT_NE(told("conv_padding", "0").find("make 3 outputs"), std::string::npos);
  EXPECT_NE(told("conv_stride", "2").find("make 3 outputs"), std::string::npos);
  EXPECT_NE(told("conv_dilation", "1,1,1").find("conv_dilation has 3 values, must have 1 or 2"), std::string::npos);
  EXPECT_NE(told("conv_groups", "2").find("conv_groups is 2, must divide"), std::string::npos);
  EXPECT_NE(told("conv_dilation", "9000000000000000000").find("must be less than 2^31"), std::string::npos);
}

TEST(BadInput, WeightsOfAnotherShapeThanBefore) {
  Call call("cross_iteration_batch_norm:conv_padding=1", {2, 4, 5, 5});
  const Array conv_input = cases::normal(call.random, {2, 3, 5, 5}), weight = cases::normal(call.random, {4, 3, 3, 3});
  const Array wider = cases::normal(call.random, {2, 6, 5, 5}), more = cases::normal(call.random, {4, 6, 3, 3});
  ForwardInputs in = call.inputs();
  const auto forward = [&](const Array& a, const Array& w) {
    in.conv_input = view(a.v.data(), shape_of(a.shape));
    in.conv_weight = view(w.v.data(), shape_of(w.shape));
    return error_of([&] { call.norm.forward(in, view(call.y.data(), call.shape()), call.queue); });
  };
  EXPECT_EQ(forward(conv_input, weight), "");
  EXPECT_EQ(forward(wider, more),
            "invalid argument: conv_weight has 4 x 54 weights (channels x fan-in), must have 4 x 27 as in "
            "the window's earlier calls");
}

}  // namespace
}  // namespace norm_test
