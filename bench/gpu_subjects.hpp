// The layers that the GPU benchmarks time: the library's, and torch's operations as its modules call them.
#pragma once

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraphsUtils.cuh>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "adapters/torch/views.hpp"
#include "allnorm/norm.hpp"
#include "kernels/cuda/fused.hpp"

namespace allnorm::bench {

constexpr double eps = 1e-5, momentum = 0.1;
constexpr std::int64_t norm_groups = 32;  // of group_norm

enum class Kind : std::uint8_t { batch_norm, layer_norm, rms_norm, group_norm };

/// Several sets of random data of one shape, and parameters for them. x has mean 0.5 and standard deviation 2.
struct Data {
  Kind kind{};
  Order order{};
  std::vector<at::Tensor> x, dy;  // (N, C, space...) or (rows, columns)
  at::Tensor weight, bias;        // f32 (C), or (columns); values that bf16 holds, so that no cast changes them.
                                  // rms_norm takes no bias.

  std::int64_t channels() const { return x[0].size(1); }
  at::IntArrayRef row_shape() const { return x[0].sizes().slice(1); }
  std::int64_t space() const { return x[0].numel() / (x[0].size(0) * x[0].size(1)); }
};

/// A training step's two halves for one set of data. Outputs and what backward needs are kept for each set until its
/// next call, so that outputs rotate through memory as inputs do.
class Subject {
 public:
  explicit Subject(const Data& data) : data_(data), kept_(data.x.size()) {}
  virtual ~Subject() = default;
  virtual std::string_view name() const = 0;
  virtual bool is_ours() const { return false; }
  virtual void forward(std::size_t set) = 0;
  virtual void backward(std::size_t set) = 0;

  const at::Tensor& y(std::size_t set) const { return kept_[set].y; }
  const at::Tensor& dx(std::size_t set) const { return kept_[set].dx; }

 protected:
  struct Kept {
    at::Tensor y, dx, dweight, dbias;
    at::Tensor x, mean, invstd, reserve, count;  // torch's notes for backward
    Saved saved{};                               // ours
  };
  const at::Tensor& x(std::size_t set) const { return data_.x[set]; }
  const at::Tensor& dy(std::size_t set) const { return data_.dy[set]; }
  Kept& kept(std::size_t set) { return kept_[set]; }
  const Data& data_;

 private:
  std::vector<Kept> kept_;
};

class Ours final : public Subject {
 public:
  Ours(const Data& data, Queue& queue, cuda::FusedPath path = cuda::FusedPath::automatic)
      : Subject(data), queue_(queue), path_(path), norm_(layer(data.kind), data.channels(), self(), queue, "layer") {}
  std::string_view name() const override {
    if (path_ == cuda::FusedPath::automatic) return "allnorm";
    return path_ == cuda::FusedPath::never ? "allnorm, two launches" : "allnorm, fused";
  }
  bool is_ours() const override { return true; }
  void forward(std::size_t set) override {
    cuda::set_fused_path(path_);
    Kept& k = kept(set);
    k.y = at::empty_like(x(set));
    ForwardInputs inputs;
    inputs.input = torch_adapter::view_of(x(set), data_.order);
    inputs.weight = torch_adapter::view_of(data_.weight);
    if (has_bias()) inputs.bias = torch_adapter::view_of(data_.bias);
    k.saved = norm_.forward(inputs, torch_adapter::writable_view_of(k.y, data_.order), queue_);
  }
  void backward(std::size_t set) override {
    cuda::set_fused_path(path_);
    Kept& k = kept(set);
    k.dx = at::empty_like(x(set));
    k.dweight = at::empty_like(data_.weight);
    k.dbias = at::empty_like(data_.bias);
    BackwardOutputs outputs;
    outputs.input = torch_adapter::writable_view_of(k.dx, data_.order);
    outputs.weight = torch_adapter::writable_view_of(k.dweight);
    if (has_bias()) outputs.bias = torch_adapter::writable_view_of(k.dbias);
    norm_.backward(k.saved, torch_adapter::view_of(dy(set), data_.order), outputs, queue_);
  }

 private:
  bool has_bias() const { return data_.kind != Kind::rms_norm; }
  static Layer layer(Kind kind) {
    if (kind == Kind::batch_norm) return Layer("batch_norm");
    if (kind == Kind::layer_norm) return Layer("layer_norm");
    if (kind == Kind::rms_norm) return Layer("rms_norm").set("eps", "1e-05");
    return Layer("group_norm").set("groups", std::to_string(norm_groups));
  }
  Queue& queue_;
  cuda::FusedPath path_;
  Norm norm_;
};

/// What torch.nn.functional.batch_norm runs in training with cuDNN off.
class TorchBatchNorm final : public Subject {
 public:
  explicit TorchBatchNorm(const Data& data)
      : Subject(data), running_mean_(at::zeros_like(data.weight)), running_var_(at::ones_like(data.weight)) {}
  std::string_view name() const override { return "torch native"; }
  void forward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.y, k.mean, k.invstd) =
        at::native_batch_norm(x(set), data_.weight, data_.bias, running_mean_, running_var_, true, momentum, eps);
  }
  void backward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.dx, k.dweight, k.dbias) = at::native_batch_norm_backward(
        dy(set), x(set), data_.weight, running_mean_, running_var_, k.mean, k.invstd, true, eps, {true, true, true});
  }

 private:
  at::Tensor running_mean_, running_var_;
};

/// The same with cuDNN on.
class CudnnBatchNorm final : public Subject {
 public:
  explicit CudnnBatchNorm(const Data& data)
      : Subject(data), running_mean_(at::zeros_like(data.weight)), running_var_(at::ones_like(data.weight)) {}
  std::string_view name() const override { return "torch cuDNN"; }
  void forward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.y, k.mean, k.invstd, k.reserve) =
        at::cudnn_batch_norm(x(set), data_.weight, data_.bias, running_mean_, running_var_, true, momentum, eps);
  }
  void backward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.dx, k.dweight, k.dbias) = at::cudnn_batch_norm_backward(x(set), dy(set), data_.weight, running_mean_,
                                                                       running_var_, k.mean, k.invstd, eps, k.reserve);
  }

 private:
  at::Tensor running_mean_, running_var_;
};

/// The operations of torch.nn.SyncBatchNorm on one rank, with a copy in place of the all-gather and nothing in place of
/// the all-reduce: what the layer costs before any traffic.
class TorchSyncBatchNorm final : public Subject {
 public:
  explicit TorchSyncBatchNorm(const Data& data)
      : Subject(data), running_mean_(at::zeros_like(data.weight)), running_var_(at::ones_like(data.weight)) {}
  std::string_view name() const override { return "torch SyncBatchNorm"; }
  void forward(std::size_t set) override {
    Kept& k = kept(set);
    const std::int64_t channels = data_.channels();
    const auto [local_mean, local_invstd] = at::batch_norm_stats(x(set), eps);
    const at::Tensor count = at::full({1}, static_cast<double>(x(set).numel() / channels), local_mean.options());
    const at::Tensor gathered = at::cat({local_mean, local_invstd, count}).clone().reshape({1, 2 * channels + 1});
    std::vector<at::Tensor> parts = gathered.split_with_sizes({channels, channels, 1}, 1);
    // Outside of a capture the layer drops the ranks without data, which makes the host wait for the GPU.
    if (at::cuda::currentStreamCaptureStatus() == at::cuda::CaptureStatus::None) {
      const at::Tensor has_data = parts[2].squeeze(-1) >= 1;
      for (at::Tensor& part : parts) part = part.index({has_data});
    }
    std::tie(k.mean, k.invstd) = at::batch_norm_gather_stats_with_counts(
        x(set), parts[0], parts[1], running_mean_, running_var_, momentum, eps, parts[2].view(-1));
    k.count = parts[2].to(at::kInt);
    k.y = at::batch_norm_elemt(x(set), data_.weight, data_.bias, k.mean, k.invstd, eps);
  }
  void backward(std::size_t set) override {
    Kept& k = kept(set);
    const std::int64_t channels = data_.channels();
    at::Tensor sum_dy, sum_dy_xmu;
    std::tie(sum_dy, sum_dy_xmu, k.dweight, k.dbias) =
        at::batch_norm_backward_reduce(dy(set), x(set), k.mean, k.invstd, data_.weight, true, true, true);
    const auto parts = at::cat({sum_dy, sum_dy_xmu}).split(channels);
    k.dx = at::batch_norm_backward_elemt(dy(set), x(set), k.mean, k.invstd, data_.weight, parts[0], parts[1], k.count);
  }

 private:
  at::Tensor running_mean_, running_var_;
};

/// Parameters are in the type of x, as in a model that was converted to it.
class TorchLayerNorm final : public Subject {
 public:
  explicit TorchLayerNorm(const Data& data)
      : Subject(data), weight_(data.weight.to(data.x[0].scalar_type())), bias_(data.bias.to(weight_.scalar_type())) {}
  std::string_view name() const override { return "torch layer_norm"; }
  void forward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.y, k.mean, k.invstd) = at::native_layer_norm(x(set), data_.row_shape(), weight_, bias_, eps);
  }
  void backward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.dx, k.dweight, k.dbias) = at::native_layer_norm_backward(dy(set), x(set), data_.row_shape(), k.mean,
                                                                        k.invstd, weight_, bias_, {true, true, true});
  }

 private:
  at::Tensor weight_, bias_;
};

class TorchRmsNorm final : public Subject {
 public:
  explicit TorchRmsNorm(const Data& data) : Subject(data), weight_(data.weight.to(data.x[0].scalar_type())) {}
  std::string_view name() const override { return "torch rms_norm"; }
  void forward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.y, k.invstd) = at::_fused_rms_norm(x(set), data_.row_shape(), weight_, eps);
  }
  void backward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.dx, k.dweight) =
        at::_fused_rms_norm_backward(dy(set), x(set), data_.row_shape(), k.invstd, weight_, {true, true});
  }

 private:
  at::Tensor weight_;
};

/// As torch.nn.functional.group_norm: on GPUs it copies channels-last tensors to channels-first, both ways.
class TorchGroupNorm final : public Subject {
 public:
  explicit TorchGroupNorm(const Data& data)
      : Subject(data), weight_(data.weight.to(data.x[0].scalar_type())), bias_(data.bias.to(weight_.scalar_type())) {}
  std::string_view name() const override { return "torch group_norm"; }
  void forward(std::size_t set) override {
    Kept& k = kept(set);
    k.x = x(set).contiguous();
    std::tie(k.y, k.mean, k.invstd) =
        at::native_group_norm(k.x, weight_, bias_, x(set).size(0), data_.channels(), data_.space(), norm_groups, eps);
  }
  void backward(std::size_t set) override {
    Kept& k = kept(set);
    std::tie(k.dx, k.dweight, k.dbias) =
        at::native_group_norm_backward(dy(set).contiguous(), k.x, k.mean, k.invstd, weight_, x(set).size(0),
                                       data_.channels(), data_.space(), norm_groups, {true, true, true});
  }

 private:
  at::Tensor weight_, bias_;
};

/// The subjects to compare on `data`, ours first.
inline std::vector<std::unique_ptr<Subject>> subjects(const Data& data, Queue& queue) {
  std::vector<std::unique_ptr<Subject>> all;
  all.push_back(std::make_unique<Ours>(data, queue));
  if (data.kind == Kind::batch_norm) {
    all.push_back(std::make_unique<Ours>(data, queue, cuda::FusedPath::never));
    all.push_back(std::make_unique<Ours>(data, queue, cuda::FusedPath::always));
    all.push_back(std::make_unique<TorchBatchNorm>(data));
    all.push_back(std::make_unique<CudnnBatchNorm>(data));
    all.push_back(std::make_unique<TorchSyncBatchNorm>(data));
  } else if (data.kind == Kind::layer_norm) {
    all.push_back(std::make_unique<TorchLayerNorm>(data));
  } else if (data.kind == Kind::rms_norm) {
    all.push_back(std::make_unique<TorchRmsNorm>(data));
  } else {
    all.push_back(std::make_unique<TorchGroupNorm>(data));
  }
  return all;
}

}  // namespace allnorm::bench
