// The libtorch modules of layers that read whole axes against torch's own operations.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "adapters/torch/cosine_conv.hpp"
#include "allnorm/error.hpp"

namespace allnorm::torch_adapter {
namespace {

namespace F = torch::nn::functional;
using torch::Tensor;

constexpr double rounding = 1e-12;

double relative_error(const Tensor& a, const Tensor& b) {
  return (a - b).abs().max().item<double>() / b.abs().max().item<double>();
}

/// Output and gradients for the same random gradient.
void expect_same(const Tensor& ours, const Tensor& theirs, const std::vector<Tensor>& leaves) {
  ASSERT_EQ(ours.sizes(), theirs.sizes());
  EXPECT_LE(relative_error(ours, theirs), rounding);
  const Tensor gradient = torch::randn_like(theirs);
  const auto a = torch::autograd::grad({ours}, leaves, {gradient});
  const auto b = torch::autograd::grad({theirs}, leaves, {gradient});
  for (std::size_t i = 0; i < leaves.size(); ++i) EXPECT_LE(relative_error(a[i], b[i]), rounding) << "leaf " << i;
}

Tensor drawn(at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble).requires_grad_(); }

class WholeAxes : public testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(1); }
  Queue queue_ = Queue::cpu();
};

TEST_F(WholeAxes, LocalResponseNormIsTorchs) {
  for (const int n : {1, 2, 3, 4, 5, 7, 20})
    for (const bool last : {false, true}) {
      SCOPED_TRACE("n " + std::to_string(n) + (last ? ", channels last" : ""));
      NormModule norm(parse_layer("local_response_norm:alpha=0.3:k=2:size=" + std::to_string(n)), 8, nullptr, queue_,
                      "layer");
      const Tensor x = last ? drawn({2, 8, 5, 3}).detach().contiguous(at::MemoryFormat::ChannelsLast).requires_grad_()
                            : drawn({2, 8, 5, 3});
      const auto options = F::LocalResponseNormFuncOptions(n).alpha(0.3).beta(0.75).k(2);
      expect_same(norm.forward(x), F::local_response_norm(x, options), {x});
    }
  NormModule norm(Layer("local_response_norm"), 8, nullptr, queue_, "layer");
  const Tensor x = drawn({2, 8, 5});
  expect_same(norm.forward(x), F::local_response_norm(x, F::LocalResponseNormFuncOptions(5)), {x});
  EXPECT_TRUE(norm.parameters().empty());
}

TEST_F(WholeAxes, CosinesAreTorchs) {
  const Tensor x = drawn({6, 9}), w = drawn({4, 9});
  const auto unit = [](const Tensor& rows) { return rows / rows.norm(2, {1}, true); };
  const auto centred = [](const Tensor& rows) { return rows - rows.mean(1, true); };
  NormModule cosine(Layer("cosine_norm"), 1, nullptr, queue_, "layer");
  expect_same(cosine.forward(x, {{"weight", w}}), unit(x).matmul(unit(w).t()), {x, w});
  NormModule correlation(parse_layer("cosine_norm:centred=true"), 1, nullptr, queue_, "layer");
  expect_same(correlation.forward(x, {{"weight", w}}), unit(centred(x)).matmul(unit(centred(w)).t()), {x, w});
  NormModule clamped(parse_layer("cosine_norm:eps=2.5:eps_mode=max"), 1, nullptr, queue_, "layer");
  const auto options = F::NormalizeFuncOptions().p(2).dim(1).eps(2.5);
  expect_same(clamped.forward(x, {{"weight", w}}), F::normalize(x, options).matmul(F::normalize(w, options).t()),
              {x, w});
}

/// The same from convolutions: products with the kernels, and with ones for lengths and means.
Tensor cosine_convolution(const Tensor& x, const Tensor& weight, const Convolution& g, bool centred) {
  const auto convolved = [&g](const Tensor& input, const Tensor& kernel) {
    const std::vector<std::int64_t> none(static_cast<std::size_t>(input.dim() - 2));
    return at::convolution(input, kernel, {}, g.stride, g.padding, g.dilation, false, none, g.groups);
  };
  const auto K = static_cast<double>(weight[0].numel());
  Tensor rows = weight.flatten(1);
  if (centred) rows = rows - rows.mean(1, true);
  const Tensor ones = torch::ones_like(weight), sums = convolved(x, ones);
  Tensor squares = convolved(x.square(), ones);
  if (centred) squares = squares - sums.square() / K;
  std::vector<std::int64_t> each(static_cast<std::size_t>(x.dim()), 1);
  each[1] = -1;
  return convolved(x, rows.view_as(weight)) / squares.sqrt() / rows.norm(2, {1}).view(each);
}

TEST_F(WholeAxes, ConvolutionsOfCosinesAreCompositions) {
  const ConvolutionShape shapes[] = {
      {4, 6, {3, 2}, {{2, 1}, {1}, {1, 2}, 2}}, {3, 5, {3}, {{1}, {1}, {1}, 1}}, {2, 3, {2, 2, 3}, {{1}, {0}, {1}, 1}}};
  for (const ConvolutionShape& shape : shapes)
    for (const bool centred : {false, true}) {
      SCOPED_TRACE(std::to_string(shape.kernel.size()) + "-D" + (centred ? ", centred" : ""));
      CosineConv conv(shape, parse_layer(centred ? "cosine_norm:centred=true" : "cosine_norm"), queue_, "layer");
      conv.to(torch::kDouble);
      {
        const torch::NoGradGuard no_gradients;
        conv.weight.copy_(torch::randn_like(conv.weight));
      }
      std::vector<std::int64_t> extents{2, shape.in};
      extents.resize(2 + shape.kernel.size(), 6);
      const Tensor x = drawn(extents);
      expect_same(conv.forward(x), cosine_convolution(x, conv.weight, shape.geometry, centred), {x, conv.weight});
    }
}

TEST_F(WholeAxes, ConvolutionsOfCosinesSayWhatIsWrong) {
  const auto told = [](const auto& body) -> std::string {
    try {
      body();
    } catch (const Error& error) {
      return error.message();
    }
    return "";
  };
  EXPECT_EQ(told([&] {
              CosineConv({3, 4, {3}, {}}, Layer("batch_norm"), queue_, "layer");
            }),
            "layer of the convolution is batch_norm, must be one that compares rows with vectors");
  EXPECT_EQ(told([&] {
              CosineConv({3, 4, {3}, {{1}, {0}, {1}, 2}}, Layer("cosine_norm"), queue_, "layer");
            }),
            "groups of the convolution is 2, must divide 3 and 4");
  const CosineConv conv({3, 4, {3}, {}}, Layer("cosine_norm"), queue_, "layer");
  EXPECT_EQ(told([&] {
              conv.forward(torch::randn({2, 3, 6, 6}));
            }),
            "input has shape (2,3,6,6), must have 3 channels and 1 space axes");
}

}  // namespace
}  // namespace allnorm::torch_adapter
