// The modules of layers that torch has not, or with more than gamma and beta, against compositions of its operations:
// in training and in evaluation.
#include <string>
#include <vector>

#include "module_support.hpp"

namespace allnorm::torch_adapter {
namespace {

using torch::Tensor;

constexpr double eps = 1e-5, momentum = 0.3;
const std::string with_momentum = ":momentum=0.3";

Tensor leaf(at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble).requires_grad_(); }
/// Three labels of four, by every second value of a longer tensor: the module has to copy them, and to keep the copy.
Tensor labels() { return torch::tensor({2, 9, 0, 9, 2, 9}, torch::kLong).slice(0, 0, 6, 2); }
/// (N,C), (1,C) or (C) as it meets (N,C,H,W).
Tensor spread(const Tensor& values) { return values.view({-1, 4, 1, 1}); }

/// x - mean over sigma, with a mean and a variance for each index of the axes that are not `over`.
Tensor normalized(const Tensor& x, at::IntArrayRef over, bool unbiased = false) {
  return (x - x.mean(over, true)) * torch::rsqrt(x.var(over, unbiased, true) + eps);
}

/// A batch norm without gamma and beta that keeps its running statistics here.
struct BatchNorm {
  Tensor operator()(const Tensor& x, bool training) {
    return torch::batch_norm(x, {}, {}, mean, var, training, momentum, eps, false);
  }
  Tensor mean = torch::zeros({4}, torch::kDouble), var = torch::ones({4}, torch::kDouble);
};

/// The module's output without gradients, which is another way through it.
void expect_inference(NormModule& norm, const Tensor& x, const SlotTensors& more, const Tensor& theirs) {
  const torch::NoGradGuard no_gradients;
  EXPECT_LE(relative_error(norm.forward(x, more), theirs), rounding);
}

TEST_F(Modules, ConditionalBatchNormByLabelsAndDeltas) {
  const auto norm = module("conditional_batch_norm" + with_momentum, 4);
  EXPECT_TRUE(norm->parameters().empty());  // tables are given with a call
  BatchNorm plain;
  for (const bool training : {true, false})
    for (const bool labelled : {false, true})
      for (const bool deltas : {false, true}) {
        norm->train(training);
        const Tensor x = input(),
                     weight = leaf(labelled ? std::vector<std::int64_t>{4, 4} : std::vector<std::int64_t>{4}),
                     bias = torch::randn_like(weight).requires_grad_(), delta_weight = leaf({3, 4}),
                     delta_bias = leaf({3, 4});
        SlotTensors given{{"weight", weight}, {"bias", bias}};
        std::vector<Tensor> leaves{x, weight, bias};
        Tensor gamma = spread(labelled ? weight.index_select(0, labels()) : weight),
               beta = spread(labelled ? bias.index_select(0, labels()) : bias);
        if (labelled) given.emplace_back("labels", labels());
        if (deltas) {
          given.insert(given.end(), {{"delta_weight", delta_weight}, {"delta_bias", delta_bias}});
          leaves.insert(leaves.end(), {delta_weight, delta_bias});
          gamma = gamma + spread(delta_weight);
          beta = beta + spread(delta_bias);
        }
        const Tensor theirs = plain(x, training) * gamma + beta, ours = norm->forward(x, given);
        given.clear();
        expect_same(ours, theirs, leaves);
      }
  const Tensor x = input(), delta = leaf({3, 4});
  expect_inference(*norm, x, {{"delta_weight", delta}}, plain(x, false) * (1 + spread(delta)));
}

TEST_F(Modules, ConditionalInstanceNormByStylesAndMixtures) {
  const auto norm = module("conditional_instance_norm", 4);
  EXPECT_TRUE(norm->parameters().empty());
  const Tensor mixture = torch::rand({3, 4}, torch::kDouble);
  for (const bool training : {true, false})
    for (const bool mixed : {false, true}) {
      norm->train(training);
      const Tensor x = input(), weight = leaf({4, 4}), bias = leaf({4, 4});
      const auto of_samples = [&](const Tensor& table) {
        return spread(mixed ? mixture.matmul(table) : table.index_select(0, labels()));
      };
      const Tensor theirs = normalized(x, {2, 3}) * of_samples(weight) + of_samples(bias);
      const auto styles = [&] { return mixed ? mixture : labels(); };
      expect_same(norm->forward(x, {{"weight", weight}, {"bias", bias}, {"styles", styles()}}), theirs,
                  {x, weight, bias});
      expect_inference(*norm, x, {{"weight", weight}, {"bias", bias}, {"styles", styles()}}, theirs);
    }
}

TEST_F(Modules, AdaptiveInstanceNormTakesTheMomentsOfAStyle) {
  for (const bool unbiased : {false, true})
    for (const double alpha : {1.0, 0.25})
      for (const bool last : {false, true}) {
        const auto norm = module(
            "adaptive_instance_norm:alpha=" + std::to_string(alpha) + ":unbiased=" + (unbiased ? "true" : "false"), 4);
        const auto laid = [&](const Tensor& tensor) {
          const auto format = last ? torch::MemoryFormat::ChannelsLast : torch::MemoryFormat::Contiguous;
          return tensor.detach().contiguous(format).requires_grad_();
        };
        const Tensor x = laid(input()), style = laid(leaf({3, 4, 3, 3}) * 2 - 1);
        for (const bool training : {true, false}) {
          norm->train(training);
          const Tensor sigma = torch::sqrt(style.var({2, 3}, unbiased, true) + eps), mean = style.mean({2, 3}, true);
          const Tensor theirs = alpha * (normalized(x, {2, 3}, unbiased) * sigma + mean) + (1 - alpha) * x;
          expect_same(norm->forward(x, {{"style", style}}), theirs, {x, style});
          expect_inference(*norm, x, {{"style", style}}, theirs);
        }
      }
}

TEST_F(Modules, SpadeOverBatchNormAndInstanceNorm) {
  for (const bool plus_one : {true, false}) {
    const std::string attributes = std::string(":activation=relu:plus_one=") + (plus_one ? "true" : "false");
    const auto batch = module("spade" + with_momentum + attributes, 4),
               instance = module("spade:base=instance_norm" + attributes, 4);
    BatchNorm plain;
    for (const bool training : {true, true, false}) {
      const Tensor x = input(), gamma = leaf({3, 4, 5, 2}), beta = leaf({3, 4, 5, 2}), residual = leaf({3, 4, 5, 2});
      const SlotTensors given{{"gamma", gamma}, {"beta", beta}, {"residual", residual}};
      for (const auto& [norm, hat] : {std::pair{batch, plain(x, training)}, {instance, normalized(x, {2, 3})}}) {
        norm->train(training);
        const Tensor theirs = torch::relu(hat * (plus_one ? 1 + gamma : gamma) + beta + residual);
        expect_same(norm->forward(x, given), theirs, {x, gamma, beta, residual});
        if (!training) expect_inference(*norm, x, given, theirs);
      }
    }
  }
}

TEST_F(Modules, SwitchableNormMixesStatistics) {
  const auto norm = module("switchable_norm" + with_momentum, 4);
  Tensor running_mean = torch::zeros({1, 4, 1, 1}, torch::kDouble), running_var = torch::ones_like(running_mean);
  for (const bool training : {true, true, false}) {
    norm->train(training);
    const Tensor x = input();
    const auto mixed = [](const Tensor& logits, const std::vector<Tensor>& statistics) {
      const Tensor shares = torch::softmax(logits, 0);
      return shares[0] * statistics[0] + shares[1] * statistics[1] + shares[2] * statistics[2];
    };
    const Tensor batch_mean = x.mean({0, 2, 3}, true), batch_var = x.var({0, 2, 3}, false, true);
    const Tensor mean = mixed(norm->parameter("mean_logits"),
                              {x.mean({2, 3}, true), x.mean({1, 2, 3}, true), training ? batch_mean : running_mean}),
                 var = mixed(norm->parameter("var_logits"), {x.var({2, 3}, false, true), x.var({1, 2, 3}, false, true),
                                                             training ? batch_var : running_var});
    const Tensor theirs = (x - mean) * torch::rsqrt(var + eps) * spread(norm->weight) + spread(norm->bias);
    expect_same(norm->forward(x), theirs,
                {x, norm->weight, norm->bias, norm->parameter("mean_logits"), norm->parameter("var_logits")});
    if (!training) expect_inference(*norm, x, {}, theirs);
    running_mean = (running_mean + momentum * (batch_mean - running_mean)).detach();
    running_var = (running_var + momentum * (batch_var - running_var)).detach();
  }
}

TEST_F(Modules, InstanceNormIsTorchs) {
  const auto without = module("instance_norm", 4), with = module("instance_norm:track=true" + with_momentum, 4);
  auto mean = torch::zeros({4}, torch::kDouble), var = torch::ones({4}, torch::kDouble);
  for (const bool training : {true, true, false}) {
    const Tensor x = input();
    without->train(training);
    with->train(training);
    const Tensor own = torch::instance_norm(x, without->weight, without->bias, {}, {}, true, momentum, eps, false),
                 tracked = torch::instance_norm(x, with->weight, with->bias, mean, var, training, momentum, eps, false);
    expect_same(without->forward(x), own, {x, without->weight, without->bias});
    expect_same(with->forward(x), tracked, {x, with->weight, with->bias});
    if (training) continue;
    expect_inference(*without, x, {}, own);
    expect_inference(*with, x, {}, tracked);
  }
  const auto running = with->norm().running(with->queue());
  for (std::int64_t c = 0; c < 4; ++c) {
    EXPECT_NEAR(running.mean[static_cast<std::size_t>(c)], mean[c].item<double>(), 1e-12);
    EXPECT_NEAR(running.spread[static_cast<std::size_t>(c)], var[c].item<double>(), 1e-11);
  }
}

}  // namespace
}  // namespace allnorm::torch_adapter
