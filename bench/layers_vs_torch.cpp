// What layers other than Batch Normalization cost beside libtorch on one thread, forward and backward with autograd on
// both sides: libtorch's own layer where it has one, otherwise the authors' code as compositions of its operations. The
// calls of a layer run in shuffled order; CPU time, medians. Prints a table in Markdown.
// usage: bench_layers_vs_torch [SAMPLES] [LAYER]
#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "adapters/torch/norm_module.hpp"

namespace {

using namespace allnorm;
using torch::Tensor;
using torch_adapter::NormModule;
using torch_adapter::SlotTensors;

constexpr double eps = 1e-5;

/// A layer on both sides, over the same tensors; `leaves` take gradients.
struct Subject {
  std::string name;
  std::function<Tensor()> ours, theirs;
  std::vector<Tensor> leaves;
};

// ---- the authors' code, as far as libtorch has no layer ------------------------------------------------------------

// Switchable Normalization: moments of instances, and the others from them.
Tensor switchable(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& means, const Tensor& vars) {
  const Tensor flat = x.flatten(2), mean_in = flat.mean(2, true), var_in = flat.var(2, false, true);
  const Tensor squares = var_in + mean_in.square();
  const Tensor mean_ln = mean_in.mean(1, true), var_ln = squares.mean(1, true) - mean_ln.square();
  const Tensor mean_bn = mean_in.mean(0, true), var_bn = squares.mean(0, true) - mean_bn.square();
  const Tensor m = means.softmax(0), v = vars.softmax(0);
  const Tensor mean = m[0] * mean_in + m[1] * mean_ln + m[2] * mean_bn;
  const Tensor var = v[0] * var_in + v[1] * var_ln + v[2] * var_bn;
  const Tensor y = ((flat - mean) / (var + eps).sqrt()).view_as(x);
  return y * weight.view({1, -1, 1, 1}) + bias.view({1, -1, 1, 1});
}

Tensor filter_response(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& tau, const Tensor& e) {
  const auto each = [](const Tensor& t) { return t.view({1, -1, 1, 1}); };
  const Tensor scaled = x * torch::rsqrt(x.square().mean({2, 3}, true) + 1e-6 + each(e).abs());
  return torch::max(each(weight) * scaled + each(bias), each(tau));
}

Tensor positional(const Tensor& x) { return (x - x.mean({1}, true)) / (x.var(1, false, true) + eps).sqrt(); }

Tensor adaptive(const Tensor& x, const Tensor& style) {
  const auto mean = [](const Tensor& t) { return t.flatten(2).mean(2).view({t.size(0), t.size(1), 1, 1}); };
  const auto std = [](const Tensor& t) {
    return (t.flatten(2).var(2, false) + eps).sqrt().view({t.size(0), t.size(1), 1, 1});
  };
  return (x - mean(x)) / std(x) * std(style) + mean(style);
}

Tensor spatially_adaptive(const Tensor& x, const Tensor& gamma, const Tensor& beta) {
  return torch::batch_norm(x, {}, {}, {}, {}, true, 0.1, eps, false) * (1 + gamma) + beta;
}

Tensor standardized(const Tensor& w) {
  const Tensor rows = w.flatten(1);
  return ((rows - rows.mean(1, true)) / (rows.var(1, false, true) + eps).sqrt()).view_as(w);
}

Tensor cosines(const Tensor& x, const Tensor& w) {
  const auto unit = [](const Tensor& rows) { return rows / rows.norm(2, {1}, true); };
  return unit(x).matmul(unit(w).t());
}

// ---- the subjects --------------------------------------------------------------------------------------------------

class Bench {
 public:
  Bench(std::array<std::int64_t, 4> shape, bool channels_last) : shape_(shape), last_(channels_last) {}

  std::vector<Subject> subjects() {
    const Tensor x = drawn(), style = drawn(), gamma = drawn(), beta = drawn();
    const std::int64_t C = shape_[1];
    const Tensor weight = each(C), bias = each(C), tau = each(C), e = each(C), means = each(3), vars = each(3);
    std::vector<Subject> made;
    const auto add = [&](const char* text, SlotTensors more, std::vector<Tensor> leaves, auto theirs, Tensor input) {
      made.push_back({text, call(text, std::move(input), std::move(more)), theirs, std::move(leaves)});
    };
    add(
        "instance_norm", {{"weight", weight}, {"bias", bias}}, {x, weight, bias},
        [=] { return torch::instance_norm(x, weight, bias, {}, {}, true, 0.1, eps, false); }, x);
    add(
        "switchable_norm", {{"weight", weight}, {"bias", bias}, {"mean_logits", means}, {"var_logits", vars}},
        {x, weight, bias, means, vars}, [=] { return switchable(x, weight, bias, means, vars); }, x);
    add(
        "filter_response_norm", {{"weight", weight}, {"bias", bias}, {"tau", tau}, {"eps_learned", e}},
        {x, weight, bias, tau, e}, [=] { return filter_response(x, weight, bias, tau, e); }, x);
    add(
        "positional_norm", {}, {x}, [=] { return positional(x); }, x);
    add(
        "adaptive_instance_norm", {{"style", style}}, {x, style}, [=] { return adaptive(x, style); }, x);
    add(
        "spade", {{"gamma", gamma}, {"beta", beta}}, {x, gamma, beta},
        [=] { return spatially_adaptive(x, gamma, beta); }, x);
    add(
        "local_response_norm", {}, {x},
        [=] { return torch::nn::functional::local_response_norm(x, torch::nn::LocalResponseNormOptions(5)); }, x);
    if (!last_) {
      const Tensor w = torch::randn({C, C, 3, 3}).requires_grad_();
      add(
          "weight_standardization", {}, {w}, [=] { return standardized(w); }, w);
      const Tensor rows = torch::randn({shape_[0] * 8, shape_[1] * 8}).requires_grad_(),
                   vectors = torch::randn({1000, shape_[1] * 8}).requires_grad_();
      add(
          "cosine_norm", {{"weight", vectors}}, {rows, vectors}, [=] { return cosines(rows, vectors); }, rows);
    }
    return made;
  }

 private:
  Tensor drawn() const {
    const auto format = last_ ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    return torch::randn({shape_[0], shape_[1], shape_[2], shape_[3]}).contiguous(format).requires_grad_();
  }
  static Tensor each(std::int64_t size) { return (1 + 0.1 * torch::randn({size})).requires_grad_(); }

  // Parameters that the module has itself are replaced by those of the other side.
  std::function<Tensor()> call(const char* text, Tensor input, SlotTensors more) {
    auto norm = std::make_shared<NormModule>(parse_layer(text), shape_[1], nullptr, queue_, text);
    SlotTensors rest;
    for (auto& [slot, tensor] : more) {
      if (Tensor own = norm->parameter(slot); own.defined())
        own.set_data(tensor.detach());
      else
        rest.emplace_back(slot, tensor);
    }
    modules_.push_back(norm);
    return [norm, input = std::move(input), rest] { return norm->forward(input, rest); };
  }

  std::array<std::int64_t, 4> shape_;
  bool last_;
  Queue queue_ = Queue::cpu();
  std::vector<std::shared_ptr<NormModule>> modules_;
};

double milliseconds(const std::function<void()>& call) {
  const std::clock_t start = std::clock();
  call();
  return 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void compare(const Subject& subject, const char* order, const std::string& shape, int samples, std::mt19937& engine) {
  const Tensor probe = subject.ours(), gradient = torch::randn_like(probe);
  const double difference = (probe - subject.theirs()).abs().max().item<double>();
  // What takes gradients differs by the module's own parameters, which are as many on both sides.
  std::array<std::vector<double>, 4> times;  // ours, theirs: forward, backward
  for (int sample = -1; sample < samples; ++sample) {
    std::array<int, 2> turns{0, 1};
    std::shuffle(turns.begin(), turns.end(), engine);
    for (const int side : turns) {
      Tensor y;
      const double forward = milliseconds([&] { y = side == 0 ? subject.ours() : subject.theirs(); });
      const double backward = milliseconds([&] { y.backward(gradient); });
      for (const Tensor& leaf : subject.leaves) leaf.mutable_grad().reset();
      if (sample < 0) continue;
      times[static_cast<std::size_t>(side)].push_back(forward);
      times[static_cast<std::size_t>(2 + side)].push_back(backward);
    }
  }
  for (const std::size_t pass : {0u, 2u}) {
    const double ours = median(times[pass]), theirs = median(times[pass + 1]);
    std::printf("| %s | %s | %s | %s | %.2f | %.2f | %.2f | %.0e |\n", subject.name.c_str(), shape.c_str(), order,
                pass == 0 ? "forward" : "backward", ours, theirs, theirs / ours, difference);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int samples = argc > 1 ? std::atoi(argv[1]) : 21;
  const std::string only = argc > 2 ? argv[2] : "";
  if (samples < 1) {
    std::fprintf(stderr, "usage: %s [samples >= 1] [LAYER]\n", argv[0]);
    return 2;
  }
  // Outputs are allocated in every call: keep their pages, so that layers are compared and not page faults.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  at::set_num_threads(1);
  torch::manual_seed(1);
  std::mt19937 engine(1);
  std::printf("libtorch %s, f32, one thread, medians of %d\n\n", TORCH_VERSION, samples);
  std::printf("| layer | shape | order | pass | ms | libtorch ms | libtorch/ours | max difference |\n");
  std::printf("|---|---|---|---|---|---|---|---|\n");
  for (const auto& shape : {std::array<std::int64_t, 4>{32, 64, 56, 56}, {8, 256, 28, 28}})
    for (const bool channels_last : {false, true}) {
      Bench bench(shape, channels_last);
      for (const Subject& subject : bench.subjects()) {
        const Tensor& first = subject.leaves[0];
        std::string text;
        for (const std::int64_t extent : first.sizes()) text += (text.empty() ? "" : ",") + std::to_string(extent);
        if (only.empty() || only == subject.name)
          compare(subject, channels_last ? "NHWC" : "NCHW", "(" + text + ")", samples, engine);
      }
    }
}
