// The network of the experiment, on libtorch's convolutions and the library's normalizations.
#include "launch/train/network.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <utility>

#include "adapters/torch/conv_norm.hpp"
#include "adapters/torch/streams.hpp"
#include "launch/random.hpp"
#include "launch/train/unit.hpp"
#include "launch/watch/rank_watch.hpp"

namespace allnorm::launch::train {
namespace {

using torch_adapter::Conv;
using torch_adapter::ConvNorm;
using torch_adapter::NormModule;

struct Block {
  std::int64_t channels, stride;
};
constexpr std::array<Block, 5> blocks{{{8, 1}, {16, 2}, {16, 1}, {32, 2}, {32, 1}}};
constexpr std::int64_t kernel = 3;
constexpr std::size_t alignment = 16;  // floats: one cache line

/// What a layer of a past call normalized with, as (1,C,1,1) tensors: xhat = x * factor + offset.
struct PastFrame {
  torch::Tensor factor, offset;
};
/// One past batch: its mini-batches' images and the frames of all layers.
struct PastBatch {
  std::vector<torch::Tensor> images;
  std::vector<std::vector<PastFrame>> frames;  // [mini-batch][layer]
};

/// What the arrays of a past mini-batch begin with: "0.1." and, of a layer, "0.1.norm2.".
std::string past_name(std::size_t batch, std::size_t minibatch) {
  return std::to_string(batch) + "." + std::to_string(minibatch) + ".";
}
std::string past_name(std::size_t batch, std::size_t minibatch, std::size_t layer) {
  return past_name(batch, minibatch) + "norm" + std::to_string(layer + 1) + ".";
}

torch::Tensor per_channel(const std::vector<float>& values, const c10::Device& device) {
  return torch::tensor(values).reshape({1, static_cast<std::int64_t>(values.size()), 1, 1}).to(device);
}

PastFrame past_frame(const SavedCall& call, Queue& queue, const c10::Device& device) {
  const auto values = [&](const char* name) { return to_host(call.statistic(name), queue); };
  const std::vector<double> mean = values("mean"), rstd = values("rstd"), r = values("r"), d = values("d");
  std::vector<float> factor(mean.size()), offset(mean.size());
  for (std::size_t c = 0; c < mean.size(); ++c) {
    const double a = rstd[c] * (r.empty() ? 1 : r[c]);
    factor[c] = static_cast<float>(a);
    offset[c] = static_cast<float>((d.empty() ? 0 : d[c]) - mean[c] * a);
  }
  return {per_channel(factor, device), per_channel(offset, device)};
}

}  // namespace

class Network::Impl {
 public:
  Impl(const ImageShape& input, int classes, const Layers& layers, std::uint64_t seed,
       const std::shared_ptr<Communicator>& group, Queue& queue)
      : input_(input),
        classes_(classes),
        window_(layers.options().window),
        minibatches_(layers.options().minibatches),
        rectifier_(rectifier_of(layers.norm)),
        starts_from_data_(layers.weights && !(layers.norm && layers.norm->row->scaled)),
        queue_(&queue),
        device_(torch_adapter::device_for(queue)) {
    std::int64_t in = input.channels, height = input.height, width = input.width;
    for (const Block& block : blocks) {
      height = (height - 1) / block.stride + 1;
      width = (width - 1) / block.stride + 1;
      const torch_adapter::ConvolutionShape shape{in, block.channels, {kernel, kernel}, {{block.stride}, {1}, {1}, 1}};
      const std::string name = "norm" + std::to_string(blocks_.size() + 1);
      if (layers.norm) {
        Layer own = *layers.norm;
        if (rectifier_ == Rectifier::norm) own.options.activation.kind = ActivationKind::relu;
        if (own.row->by_trailing()) own.options.normalized_shape = {block.channels, height, width};
        blocks_.emplace_back(std::make_unique<ConvNorm>(shape, own, group, queue, name, layers.weights));
      } else {
        blocks_.emplace_back(std::make_unique<Conv>(shape, layers.weights, queue, name));
      }
      in = block.channels;
    }
    linear_weight_ = torch::zeros({classes, in}, device_).requires_grad_();
    linear_bias_ = torch::zeros({classes}, device_).requires_grad_();
    draw_weights(seed);
    make_flat();
  }

  std::span<float> parameters() noexcept { return {parameters_.data(), parameters_.size()}; }
  std::span<float> gradients() noexcept { return {gradients_.data(), gradients_.size()}; }
  const std::vector<Range>& decayed() const noexcept { return decayed_; }
  std::int64_t parameter_count() const noexcept { return parameter_count_; }

  double learn(float* pixels, const std::int64_t* labels, std::int64_t batch, double scale, PastDistances* distances) {
    set_training(true);
    to_device();
    const torch::Tensor images = wrap(pixels, batch);
    const torch::Tensor logits = forward(images);
    const torch::Tensor scores = logits.detach().cpu();
    torch::Tensor gradient = torch::empty_like(scores);
    const double loss = cross_entropy(scores, labels, scale, gradient);
    if (window_ > 1) {
      if (distances) *distances = measure_past();
      remember(images);
    }
    logits.backward(gradient.to(device_));
    from_device();
    for (std::size_t l = 0; l < layers(); ++l)
      if (Operation* own = operation(l)) own->check();
    return loss;
  }

  std::int64_t count_errors(float* pixels, const std::int64_t* labels, std::int64_t batch) {
    const torch::NoGradGuard no_gradients;
    set_training(false);
    to_device();
    return wrong(forward(wrap(pixels, batch)), labels);
  }

  std::int64_t count_errors_by_own_statistics(float* pixels, const std::int64_t* labels, std::int64_t batch) {
    const torch::NoGradGuard no_gradients;
    to_device();
    torch::Tensor x = wrap(pixels, batch);
    for (const Unit& block : blocks_) {
      x = block.conv().convolve(x);
      const torch::Tensor centred = x - x.mean({2, 3}, true);
      const torch::Tensor var = centred.square().mean({2, 3}, true);
      torch::Tensor sigma = var.to(torch::kCPU, torch::kDouble).contiguous();
      for (double& value : std::span(sigma.data_ptr<double>(), static_cast<std::size_t>(sigma.numel())))
        value = deviation(block.norm()->operation().layer(), value);
      x = activate(centred / sigma.to(var.options()), *block.norm());
    }
    return wrong(classify(x), labels);
  }

  void start(float* pixels, std::int64_t batch, const std::shared_ptr<Communicator>& world) {
    if (!starts_from_data_) return;
    constexpr double eps = 1e-5;  // for channels that are the same everywhere
    const torch::NoGradGuard no_gradients;
    to_device();
    torch::Tensor x = wrap(pixels, batch);
    for (const Unit& block : blocks_) {
      block.conv().start(x, world, eps);
      x = rectified(block.forward(x));
    }
    if (!device_.is_cpu()) host(parameters_).copy_(flat_parameters_);
  }

  void forget() { past_.clear(); }

  State past() const {
    State state;
    const auto add = [&](const std::string& name, const torch::Tensor& values) {
      const torch::Tensor own = values.detach().cpu().contiguous();
      state.add(name, own.data_ptr<float>(), Shape(std::vector<std::int64_t>(own.sizes().begin(), own.sizes().end())));
    };
    for (std::size_t b = 0; b < past_.size(); ++b)
      for (std::size_t t = 0; t < past_[b].images.size(); ++t) {
        add(past_name(b, t) + "images", past_[b].images[t]);
        for (std::size_t l = 0; l < layers(); ++l) {
          add(past_name(b, t, l) + "factor", past_[b].frames[t][l].factor);
          add(past_name(b, t, l) + "offset", past_[b].frames[t][l].offset);
        }
      }
    return state;
  }

  void set_past(const State& given) {
    std::deque<PastBatch> made;
    std::size_t used = 0;
    const auto take = [&](const std::string& name, std::vector<std::int64_t> extents) {
      const StateEntry* const entry = given.find(name);
      expect(entry != nullptr, Code::invalid_input, [&] { return name + " is missing, must be there"; });
      if (extents[0] == 0 && entry->shape.rank() > 0) extents[0] = entry->shape[0];  // any number of images
      expect(entry->type == StateType::f32 && entry->shape == Shape(extents), Code::invalid_input, [&] {
        return name + " is of shape " + to_string(entry->shape) + ", must be f32 of shape " + to_string(Shape(extents));
      });
      ++used;
      torch::Tensor values = torch::empty(extents);
      if (!entry->data.empty()) std::memcpy(values.data_ptr<float>(), entry->data.data(), entry->data.size());
      return values.to(device_);
    };
    for (std::size_t b = 0; given.find(past_name(b, 0) + "images") != nullptr; ++b) {
      PastBatch& batch = made.emplace_back();
      for (std::size_t t = 0; given.find(past_name(b, t) + "images") != nullptr; ++t) {
        batch.images.push_back(take(past_name(b, t) + "images", {0, input_.channels, input_.height, input_.width}));
        std::vector<PastFrame>& frames = batch.frames.emplace_back();
        for (std::size_t l = 0; l < layers(); ++l) {
          const std::vector<std::int64_t> shape{1, blocks_[l].conv().shape().out, 1, 1};
          torch::Tensor factor = take(past_name(b, t, l) + "factor", shape);
          frames.push_back({std::move(factor), take(past_name(b, t, l) + "offset", shape)});
        }
      }
    }
    expect(used == given.entries.size() && (used == 0 || window_ > 1), Code::invalid_input, [&] {
      return "has " + std::to_string(given.entries.size()) + " arrays of past images, must have " +
             std::to_string(window_ > 1 ? used : 0);
    });
    past_ = std::move(made);
  }
  void watch_calls(RankWatch& watch) {
    for (const Unit& block : blocks_)
      if (block.norm() != nullptr)
        block.norm()->watch_calls([&watch](const Operation& operation, Direction direction) {
          return std::make_shared<WatchCall>(&watch, operation.name(), direction);
        });
  }
  std::size_t layers() const noexcept { return blocks_.size(); }
  Operation* operation(std::size_t layer) noexcept {
    NormModule* const own = blocks_[layer].norm();
    return own ? &own->operation() : nullptr;
  }
  Norm* norm(std::size_t layer) noexcept {
    Operation* const own = operation(layer);
    return own ? own->norm() : nullptr;
  }
  Queue& queue() noexcept { return torch_adapter::current_queue(*queue_); }
  const SavedCall& last_call(std::size_t layer) const noexcept { return *blocks_[layer].norm()->last_call()->saved; }

 private:
  void draw_weights(std::uint64_t seed) {
    const torch::NoGradGuard no_gradients;
    std::uint64_t which = 0;
    const auto draw = [&](torch::Tensor& weight, double variance) {
      Random random(Purpose::weights, {seed, which++});
      const torch::Tensor drawn = torch::empty(weight.sizes());
      float* values = drawn.data_ptr<float>();
      for (std::int64_t i = 0; i < drawn.numel(); ++i)
        values[i] = static_cast<float>(std::sqrt(variance) * random.normal());
      weight.copy_(drawn);
    };
    for (const Unit& block : blocks_)
      draw(block.conv().weight, 2.0 / static_cast<double>(kernel * kernel * block.conv().shape().in));
    draw(linear_weight_, 1.0 / static_cast<double>(linear_weight_.size(1)));
  }

  /// Moves all parameters into one array and their gradients into another, so that the exchange and the optimizer see
  /// two arrays, on the host. On a GPU the tensors lie in copies there.
  void make_flat() {
    std::vector<std::pair<torch::Tensor, bool>> all;  // with weight decay or without
    for (const Unit& block : blocks_) {
      all.emplace_back(block.conv().weight, true);
      for (const torch::Tensor& parameter : block.parameters()) all.emplace_back(parameter, false);
    }
    all.emplace_back(linear_weight_, true);
    all.emplace_back(linear_bias_, false);
    std::size_t size = 0;
    const auto padded = [](const torch::Tensor& t) {
      return (static_cast<std::size_t>(t.numel()) + alignment - 1) / alignment * alignment;
    };
    for (const auto& [tensor, decays] : all) size += padded(tensor);
    Queue host = Queue::cpu();
    parameters_ = Buffer<float>(size, host);
    gradients_ = Buffer<float>(size, host);
    const torch::NoGradGuard no_gradients;
    flat_parameters_ = torch::from_blob(parameters_.data(), {static_cast<std::int64_t>(size)}).to(device_);
    flat_gradients_ = torch::from_blob(gradients_.data(), {static_cast<std::int64_t>(size)}).to(device_);
    std::size_t at = 0;
    for (const auto& [tensor, decays] : all) {
      const auto part = [&, &t = tensor](const torch::Tensor& flat) {
        return flat.narrow(0, static_cast<std::int64_t>(at), t.numel()).view(t.sizes());
      };
      const torch::Tensor place = part(flat_parameters_);
      place.copy_(tensor);
      tensor.set_data(place);
      tensor.mutable_grad() = part(flat_gradients_);
      if (decays) decayed_.push_back({at, at + static_cast<std::size_t>(tensor.numel())});
      parameter_count_ += tensor.numel();
      at += padded(tensor);
    }
  }

  /// Before and after the work of a GPU: the arrays that the optimizer sees are on the host.
  void to_device() {
    if (device_.is_cpu()) return;
    const torch::NoGradGuard no_gradients;
    flat_parameters_.copy_(host(parameters_));
    flat_gradients_.copy_(host(gradients_));
  }
  void from_device() {
    if (!device_.is_cpu()) host(gradients_).copy_(flat_gradients_);
  }
  static torch::Tensor host(Buffer<float>& array) {
    return torch::from_blob(array.data(), {static_cast<std::int64_t>(array.size())});
  }

  void set_training(bool on) {
    if (on == training_) return;
    training_ = on;
    for (const Unit& block : blocks_) block.conv().train(on);
  }

  torch::Tensor wrap(float* pixels, std::int64_t batch) const {
    return torch::from_blob(pixels, {batch, input_.channels, input_.height, input_.width}).to(device_);
  }

  torch::Tensor forward(torch::Tensor x) {
    for (const Unit& block : blocks_) x = rectified(block.forward(x));
    return classify(x);
  }
  torch::Tensor rectified(const torch::Tensor& x) const { return rectifier_ == Rectifier::network ? x.relu() : x; }
  torch::Tensor classify(const torch::Tensor& x) { return at::linear(x.mean({2, 3}), linear_weight_, linear_bias_); }
  /// relu(gamma * xhat + beta), xhat (N,C,H,W).
  static torch::Tensor activate(const torch::Tensor& xhat, const NormModule& norm) {
    const std::vector<std::int64_t> shape{1, xhat.size(1), 1, 1};
    const torch::Tensor scaled = norm.weight.defined() ? xhat * norm.weight.reshape(shape) : xhat;
    return (scaled + norm.bias.reshape(shape)).relu_();
  }

  static std::int64_t wrong(const torch::Tensor& logits, const std::int64_t* labels) {
    const torch::Tensor best = logits.argmax(1).cpu();
    const std::int64_t* found = best.data_ptr<std::int64_t>();
    std::int64_t errors = 0;
    for (std::int64_t i = 0; i < best.numel(); ++i) errors += found[i] != labels[i];
    return errors;
  }

  /// The sum of -log softmax(logits)[label]; `gradient` = scale * its gradient. logits (batch, classes).
  double cross_entropy(const torch::Tensor& logits, const std::int64_t* labels, double scale, torch::Tensor& gradient) {
    const auto classes = static_cast<std::size_t>(classes_);
    const float* z = logits.data_ptr<float>();
    float* g = gradient.data_ptr<float>();
    double loss = 0;
    for (std::int64_t i = 0; i < logits.size(0); ++i, z += classes, g += classes) {
      const double largest = *std::max_element(z, z + classes);
      double sum = 0;
      for (std::size_t k = 0; k < classes; ++k) sum += std::exp(z[k] - largest);
      for (std::size_t k = 0; k < classes; ++k) {
        const double share = std::exp(z[k] - largest) / sum;
        g[k] = static_cast<float>(scale * (share - (static_cast<std::int64_t>(k) == labels[i] ? 1 : 0)));
      }
      loss += std::log(sum) + largest - z[labels[i]];
    }
    return loss;
  }

  /// Keeps this call's images and frames for later measurements: as many batches as the window has.
  void remember(const torch::Tensor& images) {
    if (past_.empty() || static_cast<std::int64_t>(past_.front().images.size()) >= minibatches_) past_.emplace_front();
    if (past_.size() > static_cast<std::size_t>(window_)) past_.pop_back();
    past_.front().images.push_back(images.clone());
    std::vector<PastFrame>& frames = past_.front().frames.emplace_back();
    for (std::size_t l = 0; l < layers(); ++l) frames.push_back(past_frame(last_call(l), queue(), device_));
  }

  /// The truth is the past batch, sent again through the network with the present weights. Every layer normalizes it
  /// with the statistics that it used then: only the weights have changed, as in the question that compensation
  /// answers.
  PastDistances measure_past() {
    const torch::NoGradGuard no_gradients;
    // The batch under way, if it has had mini-batches before this one, is not past.
    const std::size_t first =
        !past_.empty() && static_cast<std::int64_t>(past_.front().images.size()) < minibatches_ ? 1 : 0;
    PastDistances distances(layers());
    std::size_t lags = past_.size() - std::min(first, past_.size());
    std::vector<Norm::PastStatistics> kept;  // [layer]
    for (std::size_t l = 0; l < layers(); ++l) {
      kept.push_back(norm(l)->past(queue()));
      lags = std::min(lags, static_cast<std::size_t>(kept.back().entries));
    }
    for (std::size_t lag = 0; lag < lags; ++lag) {
      const PastBatch& batch = past_[first + lag];
      std::vector<std::vector<double>> moments(layers());  // [layer]: sums over mini-batches of means, then of E[x^2]
      for (std::size_t t = 0; t < batch.images.size(); ++t) {
        torch::Tensor x = batch.images[t];
        for (std::size_t l = 0; l < layers(); ++l) {
          x = blocks_[l].conv().convolve(x);
          add_moments(x, moments[l]);
          const PastFrame& frame = batch.frames[t][l];
          x = activate(x * frame.factor + frame.offset, *blocks_[l].norm());
        }
      }
      for (std::size_t l = 0; l < layers(); ++l)
        distances[l].push_back(
            distance(l, kept[l], lag, average_over_group(l, std::move(moments[l]), batch.images.size())));
    }
    return distances;
  }

  static void add_moments(const torch::Tensor& x, std::vector<double>& moments) {
    const torch::Tensor wide = x.to(torch::kDouble);
    const torch::Tensor both = torch::cat({wide.mean({0, 2, 3}), wide.square().mean({0, 2, 3})}).cpu();
    moments.resize(static_cast<std::size_t>(both.numel()));
    for (std::size_t i = 0; i < moments.size(); ++i) moments[i] += both.data_ptr<double>()[i];
  }

  std::vector<double> average_over_group(std::size_t layer, std::vector<double> moments, std::size_t minibatches) {
    Communicator& group = norm(layer)->group();
    Message message{Header("past statistics of " + norm(layer)->name(), Direction::agreement, probes_++), {}, 0, {}};
    message.payload = std::move(moments);
    if (group.size() > 1) message = group.exchange(std::move(message), *queue_);
    for (double& m : message.payload) m /= static_cast<double>(minibatches) * group.size();
    return message.payload;
  }

  PastDistance distance(std::size_t layer, const Norm::PastStatistics& past, std::size_t lag,
                        const std::vector<double>& truth) {
    const std::size_t channels = truth.size() / 2;
    const double eps = norm(layer)->layer().options.eps;
    PastDistance sum;
    for (std::size_t c = 0; c < channels; ++c) {
      const double mean = truth[c], var = std::max(truth[channels + c] - mean * mean, 0.0) + eps;
      const std::size_t i = lag * channels + c;
      sum.stale_mean += std::abs(past.stale_mean[i] - mean) / std::sqrt(var);
      sum.mean += std::abs(past.mean[i] - mean) / std::sqrt(var);
      sum.stale_var += std::abs(past.stale_var[i] + eps - var) / var;
      sum.var += std::abs(past.var[i] + eps - var) / var;
    }
    for (double* value : {&sum.stale_mean, &sum.mean, &sum.stale_var, &sum.var})
      *value /= static_cast<double>(channels);
    return sum;
  }

  ImageShape input_;
  int classes_;
  std::int64_t window_, minibatches_;
  Rectifier rectifier_;
  bool starts_from_data_;
  Queue* queue_;
  c10::Device device_;
  std::vector<Unit> blocks_;
  torch::Tensor linear_weight_, linear_bias_;  // (classes, C), (classes)
  Buffer<float> parameters_, gradients_;
  torch::Tensor flat_parameters_, flat_gradients_;  // the same values on the network's device
  std::vector<Range> decayed_;
  std::int64_t parameter_count_ = 0;
  bool training_ = true;
  std::deque<PastBatch> past_;  // the newest first
  std::uint64_t probes_ = 0;
};

Network::Network(const ImageShape& input, int classes, const Layers& layers, std::uint64_t seed,
                 const std::shared_ptr<Communicator>& group, Queue& queue)
    : impl_(std::make_unique<Impl>(input, classes, layers, seed, group, queue)) {}
Network::~Network() = default;
std::span<float> Network::parameters() noexcept { return impl_->parameters(); }
std::span<float> Network::gradients() noexcept { return impl_->gradients(); }
const std::vector<Network::Range>& Network::decayed() const noexcept { return impl_->decayed(); }
std::int64_t Network::parameter_count() const noexcept { return impl_->parameter_count(); }
double Network::learn(float* pixels, const std::int64_t* labels, std::int64_t batch, double scale,
                      PastDistances* distances) {
  return impl_->learn(pixels, labels, batch, scale, distances);
}
std::int64_t Network::count_errors(float* pixels, const std::int64_t* labels, std::int64_t batch) {
  return impl_->count_errors(pixels, labels, batch);
}
void Network::start(float* pixels, std::int64_t batch, const std::shared_ptr<Communicator>& world) {
  impl_->start(pixels, batch, world);
}
void Network::forget() { impl_->forget(); }
State Network::past() const { return impl_->past(); }
void Network::set_past(const State& past) { impl_->set_past(past); }
std::int64_t Network::count_errors_by_own_statistics(float* pixels, const std::int64_t* labels, std::int64_t batch) {
  return impl_->count_errors_by_own_statistics(pixels, labels, batch);
}
void Network::watch_calls(RankWatch& watch) { impl_->watch_calls(watch); }
std::size_t Network::layers() const noexcept { return impl_->layers(); }
Queue& Network::queue() noexcept { return impl_->queue(); }
Operation* Network::operation(std::size_t layer) noexcept { return impl_->operation(layer); }
Norm* Network::norm(std::size_t layer) noexcept { return impl_->norm(layer); }
const SavedCall& Network::last_call(std::size_t layer) const noexcept { return impl_->last_call(layer); }

void use_one_thread() { at::set_num_threads(1); }  // OpenMP's, a setting of each thread

}  // namespace allnorm::launch::train
