// The libtorch modules against torch's own layers, central differences and the oracle.
#include <vector>

#include "adapters/torch/conv_norm.hpp"
#include "adapters/torch/dynamic_shortcut.hpp"
#include "adapters/torch/views.hpp"
#include "launch/reference/reference.hpp"
#include "module_support.hpp"

namespace allnorm::torch_adapter {
namespace {

TEST_F(Modules, BatchNormIsTorchs) {
  const auto norm = module("batch_norm:momentum=0.3", 4);
  auto mean = torch::zeros({4}, torch::kDouble), var = torch::ones({4}, torch::kDouble);
  for (int step = 0; step < 3; ++step) {
    const auto x = input();
    expect_same(norm->forward(x), torch::batch_norm(x, norm->weight, norm->bias, mean, var, true, 0.3, 1e-5, false),
                {x, norm->weight, norm->bias});
  }
  for (std::int64_t c = 0; c < 4; ++c) {
    EXPECT_NEAR(norm->norm().running(norm->queue()).mean[static_cast<std::size_t>(c)], mean[c].item<double>(), 1e-12);
    EXPECT_NEAR(norm->norm().running(norm->queue()).spread[static_cast<std::size_t>(c)], var[c].item<double>(), 1e-11);
  }
  norm->eval();
  const auto x = input();
  expect_same(norm->forward(x), torch::batch_norm(x, norm->weight, norm->bias, mean, var, false, 0.3, 1e-5, false),
              {x, norm->weight, norm->bias});
  const torch::NoGradGuard no_gradients;
  EXPECT_LE(relative_error(norm->forward(x),
                           torch::batch_norm(x, norm->weight, norm->bias, mean, var, false, 0.3, 1e-5, false)),
            rounding);
}

TEST_F(Modules, GroupNormAndLayerNormAreTorchs) {
  const auto group = module("group_norm:groups=2", 4);
  const auto x = input();
  expect_same(group->forward(x), torch::group_norm(x, 2, group->weight, group->bias, 1e-5, false),
              {x, group->weight, group->bias});
  const auto layer = module("layer_norm:normalized_shape=4,5,2", 4);
  expect_same(layer->forward(x), torch::layer_norm(x, {4, 5, 2}, layer->weight, layer->bias, 1e-5, false),
              {x, layer->weight, layer->bias});
}

TEST_F(Modules, ResidualAndActivationAreFused) {
  for (const char* text : {"batch_norm:activation=relu", "batch_norm:activation=leaky_relu:slope=0.2", "batch_norm"}) {
    const auto norm = module(text, 4);
    const auto x = input();
    const auto residual = torch::randn({3, 4, 5, 2}, torch::kDouble).requires_grad_();
    for (const bool with_residual : {false, true}) {
      auto y = torch::batch_norm(x, norm->weight, norm->bias, {}, {}, true, 0.1, 1e-5, false);
      if (with_residual) y = y + residual;
      const Activation activation = norm->norm().layer().options.activation;
      if (activation.kind == ActivationKind::relu) y = torch::relu(y);
      if (activation.kind == ActivationKind::leaky_relu) y = torch::leaky_relu(y, activation.slope);
      std::vector<torch::Tensor> leaves{x, norm->weight, norm->bias};
      if (with_residual) leaves.push_back(residual);
      expect_same(with_residual ? norm->forward(x, {{"residual", residual}}) : norm->forward(x), y, leaves);
    }
  }
}

TEST_F(Modules, ChannelsLastStaysChannelsLast) {
  const auto norm = module("batch_norm:activation=relu", 4);
  const auto x = input();
  const auto last = x.detach().contiguous(torch::MemoryFormat::ChannelsLast).requires_grad_();
  const auto y = norm->forward(x), z = norm->forward(last);
  EXPECT_TRUE(z.is_contiguous(torch::MemoryFormat::ChannelsLast));
  EXPECT_LE(relative_error(z, y), rounding);
  const auto gradient = torch::randn_like(y);
  const auto dx = torch::autograd::grad({y}, {x}, {gradient})[0];
  const auto dz = torch::autograd::grad({z}, {last}, {gradient})[0];
  EXPECT_TRUE(dz.is_contiguous(torch::MemoryFormat::ChannelsLast));
  EXPECT_LE(relative_error(dz, dx), rounding);
  // A dense tensor is passed on as it is; others are copied.
  EXPECT_EQ(dense(last).tensor.data_ptr(), last.data_ptr());
  EXPECT_EQ(dense(x).tensor.data_ptr(), x.data_ptr());
  const auto slice = torch::randn({3, 8, 5, 2}, torch::kDouble).slice(1, 0, 8, 2);
  EXPECT_LE(relative_error(norm->forward(slice), norm->forward(slice.contiguous())), rounding);
}

TEST_F(Modules, NarrowTypesKeepTheirType) {
  for (const auto type : {torch::kFloat, torch::kHalf, torch::kBFloat16}) {
    const auto norm = module("batch_norm", 4, false);
    const auto x = torch::randn({3, 4, 5, 2}).to(type).requires_grad_();
    const auto y = norm->forward(x);
    EXPECT_EQ(y.scalar_type(), type);
    const auto wide = torch::batch_norm(x.detach().to(torch::kDouble), norm->weight.to(torch::kDouble),
                                        norm->bias.to(torch::kDouble), {}, {}, true, 0.1, 1e-5, false);
    const double eps = type == torch::kFloat  ? 6e-8
                       : type == torch::kHalf ? 4.9e-4
                                              : 3.9e-3;  // half a unit of the type
    EXPECT_LE(relative_error(y.detach().to(torch::kDouble), wide), 2 * eps + 4 * 6e-8);
    const auto gradients = torch::autograd::grad({y}, {x, norm->weight}, {torch::ones_like(y)});
    EXPECT_EQ(gradients[0].scalar_type(), type);
    EXPECT_EQ(gradients[1].scalar_type(), torch::kFloat);
  }
  EXPECT_THROW(module("batch_norm", 4)->forward(torch::ones({3, 4, 5, 2}, torch::kInt)), Error);
}

TEST_F(Modules, SeveralForwardsMayBeInFlight) {
  const auto norm = module("batch_norm", 4);
  const auto a = input(), b = input();
  const auto ya = norm->forward(a), yb = norm->forward(b);
  const auto gradient = torch::randn_like(ya);
  const auto plain = [&](const torch::Tensor& x) {
    return torch::batch_norm(x, norm->weight, norm->bias, {}, {}, true, 0.1, 1e-5, false);
  };
  for (const auto& [y, x] : {std::pair{ya, a}, std::pair{yb, b}})
    EXPECT_LE(relative_error(torch::autograd::grad({y}, {x}, {gradient})[0],
                             torch::autograd::grad({plain(x)}, {x}, {gradient})[0]),
              rounding);
}

TEST_F(Modules, SecondBackwardIsAnError) {
  const auto norm = module("batch_norm", 4);
  const auto x = input();
  const auto y = norm->forward(x).sum();
  y.backward();
  try {
    y.backward();
    FAIL() << "a second backward passed";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("second time"), std::string::npos);
  }
}

TEST_F(Modules, ReplayRepeatsAnEarlierCall) {
  const auto norm = module("batch_norm:window=3:compensate=false", 4);
  norm->forward(input());
  const auto x = input();
  const auto y = norm->forward(x);
  const CallHandle call = norm->last_call();
  norm->forward(input());  // moves the state on
  const State before = norm->state();
  const auto again = norm->replay(call, x);
  EXPECT_TRUE(again.equal(y));
  const auto gradient = torch::randn_like(y);
  EXPECT_TRUE(torch::autograd::grad({again}, {x}, {gradient})[0].equal(torch::autograd::grad({y}, {x}, {gradient})[0]));
  const State after = norm->state();
  ASSERT_EQ(before.entries.size(), after.entries.size());
  for (std::size_t i = 0; i < before.entries.size(); ++i) EXPECT_EQ(before.entries[i].data, after.entries[i].data);
}

/// The gradient of a layer with a past, by central differences of fourth order from the same state each time.
TEST_F(Modules, GradientsAreThoseOfTheForwardPass) {
  for (const char* text : {"batch_norm:window=3:compensate=false", "cross_mini_batch_norm:minibatches=3", "batch_norm",
                           "batch_norm:window=2:compensate=false:minibatches=2:weighting=count"}) {
    const auto norm = module(text, 4);
    for (int i = 0; i < 4; ++i) norm->forward(input());
    const State state = norm->state();
    const auto x = input();
    const auto gradient = torch::randn_like(x);
    const auto dx = torch::autograd::grad({norm->forward(x)}, {x}, {gradient})[0].contiguous();
    const torch::NoGradGuard no_gradients;
    const auto loss = [&](std::int64_t i, double shift) {
      auto moved = x.detach().clone();
      moved.view(-1)[i] += shift;
      norm->load_state(state);
      return (norm->forward(moved) * gradient).sum().item<double>();
    };
    constexpr double h = 1e-3;
    auto numeric = torch::zeros_like(dx);
    for (std::int64_t i = 0; i < x.numel(); ++i)
      numeric.view(-1)[i] = (8 * (loss(i, h) - loss(i, -h)) - (loss(i, 2 * h) - loss(i, -2 * h))) / (12 * h);
    // h^4 of the method, and 2^-52 of a loss of some hundred divided by h.
    EXPECT_LE(relative_error(numeric, dx), 1e-10) << text;
  }
}

TEST_F(Modules, StateComesBack) {
  const auto a = module("batch_renorm", 4), b = module("batch_renorm", 4);
  for (int i = 0; i < 3; ++i) a->forward(input());
  b->load_state(a->state());
  {
    const torch::NoGradGuard no_gradients;
    b->weight.copy_(a->weight);
    b->bias.copy_(a->bias);
  }
  const auto x = input();
  EXPECT_TRUE(a->forward(x).equal(b->forward(x)));
}

/// The convolution's weights change between the calls, as in training; the oracle compensates from the definition.
TEST_F(Modules, ConvNormHandsOverWhatCompensationNeeds) {
  const Convolution geometry{{2, 1}, {1}, {1}, 2};
  ConvNorm block({4, 6, {3, 3}, geometry}, parse_layer("cross_iteration_batch_norm:window=3"), self(), queue_, "layer");
  block.to(torch::kDouble);
  reference::BatchOptions options;
  options.window = 3;
  options.convolution = {geometry.stride, geometry.padding, geometry.dilation, geometry.groups};
  reference::Layer oracle = reference::make_layer(6, options);
  const auto array = [](const torch::Tensor& tensor) {
    const auto flat = tensor.contiguous();
    const double* data = flat.data_ptr<double>();
    return reference::Array{tensor.sizes().vec(), {data, data + flat.numel()}};
  };
  for (int step = 0; step < 5; ++step) {
    {
      const torch::NoGradGuard no_gradients;
      block.weight.add_(0.1 * torch::randn_like(block.weight));
    }
    const auto x = torch::randn({2, 4, 5, 6}, torch::kDouble).requires_grad_();
    const auto y = block.forward(x);
    const reference::Inputs inputs{
        {array(block.convolve(x).detach())}, {}, {array(x.detach())}, array(block.weight.detach())};
    const reference::Result truth = reference::forward(oracle, inputs);
    const auto expected = torch::from_blob(const_cast<double*>(truth.y[0].v.data()), y.sizes(), torch::kDouble);
    EXPECT_LE(relative_error(y.detach(), expected), rounding) << "step " << step;
    EXPECT_EQ(block.norm().norm().past(block.norm().queue()).entries, std::min(step, 2)) << "step " << step;
  }
  block.eval();  // needs no convolution's tensors
  EXPECT_EQ(block.forward(torch::randn({2, 4, 5, 6}, torch::kDouble)).dim(), 4);
}

/// w = g v / |v| over all axes but the first.
torch::Tensor scaled_to(const torch::Tensor& v, const torch::Tensor& length) {
  return v * (length / v.flatten(1).norm(2, 1)).view({-1, 1, 1, 1});
}

TEST_F(Modules, ConvolvesWithAWeightOfItsLengths) {
  const Convolution geometry{{2}, {1}, {1}, 1};
  Conv conv({3, 5, {3, 3}, geometry}, parse_layer("weight_norm"), queue_, "layer");
  conv.to(torch::kDouble);
  const torch::NoGradGuard no_gradients;
  conv.weight.copy_(torch::randn_like(conv.weight));
  conv.length.copy_(torch::rand_like(conv.length) + 0.5);
  conv.bias.copy_(torch::randn_like(conv.bias));
  const auto x = (torch::randn({2, 3, 6, 7}, torch::kDouble) + 1).requires_grad_();
  const at::AutoGradMode gradients(true);
  expect_same(conv.convolve(x), torch::conv2d(x, scaled_to(conv.weight, conv.length), conv.bias, 2, 1),
              {x, conv.weight, conv.length, conv.bias});
}

TEST_F(Modules, AFirstBatchGivesLengthsAndBiases) {
  Conv conv({3, 5, {3, 3}, {}}, parse_layer("weight_norm"), queue_, "layer");
  conv.to(torch::kDouble);
  {
    const torch::NoGradGuard no_gradients;
    conv.weight.copy_(torch::randn_like(conv.weight));
  }
  const auto x = torch::randn({4, 3, 6, 7}, torch::kDouble) + 1;
  conv.start(x);
  const auto y = conv.convolve(x).detach().transpose(0, 1).flatten(1);
  EXPECT_LE(y.mean(1).abs().max().item<double>(), 1e-14);
  EXPECT_LE((y.var(1, false) - 1).abs().max().item<double>(), 1e-13);
}

TEST_F(Modules, AStandardizedWeightBeforeANorm) {
  ConvNorm block({4, 6, {3, 3}, {}}, parse_layer("group_norm:groups=3"), self(), queue_, "layer",
                 parse_layer("weight_standardization:eps=1e-6"));
  block.to(torch::kDouble);
  {
    const torch::NoGradGuard no_gradients;
    block.weight.copy_(torch::randn_like(block.weight) + 2);
    block.length.copy_(torch::rand_like(block.length) + 0.5);
  }
  const auto x = torch::randn({2, 4, 5, 6}, torch::kDouble).requires_grad_();
  const auto rows = block.weight.flatten(1);
  const auto standard = (rows - rows.mean(1, true)) / torch::sqrt(rows.var(1, false, true) + 1e-6);
  const auto w = (standard * block.length.unsqueeze(1)).view_as(block.weight);
  expect_same(block.forward(x),
              torch::group_norm(torch::conv2d(x, w), 3, block.norm().weight, block.norm().bias, 1e-5, false),
              {x, block.weight, block.length, block.norm().weight, block.norm().bias});
}

TEST_F(Modules, RmsNormHasNoBias) {
  NormModule norm(parse_layer("rms_norm:normalized_shape=5,2"), 4, self(), queue_, "layer");
  norm.to(torch::kDouble);
  EXPECT_FALSE(norm.bias.defined());
  const auto x = input();
  expect_same(norm.forward(x), x * torch::rsqrt(x.square().mean({2, 3}, true) + 1e-5) * norm.weight, {x, norm.weight});
}

/// Mean and deviation of each position over the channels.
std::pair<torch::Tensor, torch::Tensor> moments_of(const torch::Tensor& x) {
  return {x.mean({1}, true), torch::sqrt(x.var(1, false, true) + 1e-5)};
}

TEST_F(Modules, GradientsFlowIntoTheMomentsOfPositions) {
  NormModule positional(parse_layer("positional_norm"), 4, self(), queue_, "positional");
  NormModule shortcut(parse_layer("moment_shortcut"), 4, self(), queue_, "shortcut");
  const auto x = input();
  const auto weight = torch::randn({1, 1, 5, 2}, torch::kDouble).requires_grad_();
  const auto [mean, std] = moments_of(x);
  const auto y = (x - mean) / std * weight;
  const auto call = [&] { return positional.forward_with_statistics(x, {{"weight", weight}}); };
  ASSERT_EQ(call().size(), 3u);
  expect_same(call()[1], x.mean({1}, true), {x});
  expect_same(call()[2], moments_of(x).second, {x});
  const auto ours = call();
  const auto other = torch::randn({3, 4, 5, 2}, torch::kDouble).requires_grad_();
  const auto given_back = shortcut.forward(torch::tanh(ours[0]) * other, {{"gamma", ours[2]}, {"beta", ours[1]}});
  expect_same(given_back, torch::tanh(y) * other * std + mean, {x, weight, other});
}

TEST_F(Modules, ADynamicShortcutLearnsFromTheMoments) {
  NormModule positional(parse_layer("positional_norm"), 4, self(), queue_, "positional");
  DynamicMomentShortcut shortcut(6, 8, 3, queue_);
  shortcut.to(torch::kDouble);
  const auto x = input(), z = torch::randn({3, 6, 5, 2}, torch::kDouble);
  const auto ours = positional.forward_with_statistics(x);
  EXPECT_TRUE(shortcut.forward(z, ours[1], ours[2]).equal(z));
  const torch::NoGradGuard no_gradients;
  for (auto& parameter : shortcut.parameters()) parameter.copy_(torch::randn_like(parameter));
  const at::AutoGradMode gradients(true);
  const auto [mean, std] = moments_of(x);
  const auto hidden =
      torch::relu(torch::conv2d(torch::cat({mean, std}, 1), shortcut.first_weight, shortcut.first_bias, 1, 1));
  const auto maps = torch::conv2d(hidden, shortcut.second_weight, shortcut.second_bias, 1, 1).chunk(2, 1);
  expect_same(shortcut.forward(z, ours[1], ours[2]), maps[1] * z + maps[0],
              {x, shortcut.first_weight, shortcut.second_weight, shortcut.second_bias});
}

/// x (N, C, space) with the channels of each group whitened: root() makes (groups, g, g) of covariances.
template <class Root>
torch::Tensor whitened(const torch::Tensor& x, std::int64_t g, const Root& root) {
  const auto rows = x.transpose(0, 1).flatten(1).view({x.size(1) / g, g, -1});
  const auto centred = rows - rows.mean(2, true);
  const auto sigma = centred.matmul(centred.transpose(1, 2)) / rows.size(2) + 1e-3 * torch::eye(g, torch::kDouble);
  const auto y = root(sigma).matmul(centred);
  return y.view({x.size(1), x.size(0), x.size(2), x.size(3)}).transpose(0, 1);
}

TEST_F(Modules, WhiteningIsTheRootByEigenvectors) {
  NormModule norm(parse_layer("decorrelated_batch_norm:group_size=2:eps=1e-3"), 4, self(), queue_, "layer");
  const auto x = input();
  expect_same(norm.forward(x),
              whitened(x, 2,
                       [](const torch::Tensor& sigma) {
                         const auto [values, vectors] = torch::linalg_eigh(sigma);
                         return vectors.matmul(values.rsqrt().unsqueeze(2) * vectors.transpose(1, 2));
                       }),
              {x});
  norm.eval();
  const auto fixed = norm.forward(x);
  const torch::NoGradGuard no_gradients;
  EXPECT_TRUE(norm.forward(x).equal(fixed));
}

TEST_F(Modules, WhiteningByIterationsIsTheRecursion) {
  NormModule norm(parse_layer("iterative_norm:group_size=4:eps=1e-3"), 4, self(), queue_, "layer");
  const auto x = input();
  expect_same(norm.forward(x),
              whitened(x, 4,
                       [](const torch::Tensor& sigma) {
                         const auto trace = sigma.diagonal(0, 1, 2).sum(1).view({-1, 1, 1});
                         auto p = torch::eye(4, torch::kDouble).expand_as(sigma);
                         for (int k = 0; k < 5; ++k) p = 1.5 * p - 0.5 * p.matmul(p).matmul(p).matmul(sigma / trace);
                         return p / trace.sqrt();
                       }),
              {x});
}

TEST_F(Modules, FilterResponseNormWithThresholds) {
  const auto norm = module("filter_response_norm", 4);
  const auto shaped = [&](const char* name) { return norm->parameter(name).view({1, 4, 1, 1}); };
  const auto x = (torch::randn({3, 4, 5, 2}, torch::kDouble)).requires_grad_();
  const auto scale = torch::rsqrt(x.square().mean({2, 3}, true) + 1e-6 + shaped("eps_learned").abs());
  expect_same(norm->forward(x), torch::max(x * scale * shaped("weight") + shaped("bias"), shaped("tau")),
              {x, norm->weight, norm->bias, norm->parameter("tau"), norm->parameter("eps_learned")});
}

TEST_F(Modules, ParametersStartWhereTheirRowSays) {
  NormModule norm(parse_layer("filter_response_norm"), 4, self(), queue_, "layer");
  EXPECT_TRUE(norm.weight.equal(torch::ones({4})));
  EXPECT_TRUE(norm.parameter("tau").equal(torch::zeros({4})));
  const torch::Tensor eps = norm.parameter("eps_learned");
  EXPECT_TRUE(eps.equal(torch::full({4}, 1e-4)));
  // of 0 its gradient would be 0 for ever
  const auto y = norm.forward(torch::full({3, 4, 1, 1}, 1e-2));
  EXPECT_TRUE((torch::autograd::grad({y.sum()}, {eps})[0] < 0).all().item<bool>());
}

}  // namespace
}  // namespace allnorm::torch_adapter
