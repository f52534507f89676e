// This library's layers, its kernels of batch_norm alone, and a triad of the same size, as a side of
// bench/cpu_vs_peers.
#include <cmath>
#include <cstddef>
#include <memory>
#include <random>

#include "allnorm/norm.hpp"
#include "allnorm/partition.hpp"
#include "bench/peer.hpp"
#include "kernels/ops.hpp"
#include "src/runtime/parallel.hpp"

namespace {

using namespace allnorm;
using bench::Calls, bench::Case;

/// A case's tensors, for all subjects; results have their memory from the start.
struct Data {
  Shape shape;
  Order order;
  DType dtype;
  Buffer<std::byte> x, dy, y, dx;

  Data(const Case& c, Queue& queue)
      : shape(c.shape),
        order(c.channels_last ? Order::channels_last : Order::channels_first),
        dtype(parse_dtype(c.dtype)) {
    for (auto* made : {&x, &dy, &y, &dx})
      *made = Buffer<std::byte>(static_cast<std::size_t>(shape.elements()) * size_of(dtype), queue);
    std::mt19937_64 engine(1);
    std::normal_distribution<float> normal;
    visit(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      for (auto* values : {&x, &dy})
        for (std::int64_t i = 0; i < shape.elements(); ++i)
          reinterpret_cast<T*>(values->data())[i] = store<T>(normal(engine));
    });
  }
  TensorView whole(Buffer<std::byte>& values) const { return {values.data(), dtype, Device{}, shape, order}; }
};

/// A Norm as a program has it: gamma and beta given, all gradients asked for.
class Ours {
 public:
  Ours(const Case& c, Data& data, Queue& queue)
      : queue_(queue), norm_(parse_layer(c.layer), c.shape[1], self(), queue), to_(data.whole(data.y)) {
    const Shape parameters{c.shape[1]};
    for (auto* values : {&weight_, &bias_, &dweight_, &dbias_}) values->assign(static_cast<std::size_t>(c.shape[1]), 1);
    in_.input = data.whole(data.x), dy_ = data.whole(data.dy), out_.input = data.whole(data.dx);
    in_.weight = view(weight_.data(), parameters), in_.bias = view(bias_.data(), parameters);
    out_.weight = view(dweight_.data(), parameters), out_.bias = view(dbias_.data(), parameters);
  }
  void forward() { saved_ = std::make_unique<Saved>(norm_.forward(in_, to_, queue_)); }
  void backward() { norm_.backward(*saved_, dy_, out_, queue_); }

 private:
  Queue& queue_;
  Norm norm_;
  std::vector<float> weight_, bias_, dweight_, dbias_;
  ForwardInputs in_;
  TensorView to_, dy_;
  BackwardOutputs out_;
  std::unique_ptr<Saved> saved_;
};

/// The kernels of batch_norm alone, with the least between them: what a Norm adds is the difference.
class Kernels {
 public:
  Kernels(Data& data, Queue& queue)
      : queue_(queue), data_(data), p_(partition({Axis::channel}, data.shape, data.order)) {
    for (auto* values : {&mean_, &m2_, &scale_, &shift_, &sum_g_, &sum_gx_, &slope_, &offset_})
      *values = Buffer<double>(static_cast<std::size_t>(p_.groups()), queue);
  }
  void forward() {
    queue_.ops().moments({data_.x.data(), data_.dtype, p_, mean_.data(), m2_.data()}, queue_);
    for (std::size_t c = 0; c < mean_.size(); ++c) scale_[c] = 1 / std::sqrt(m2_[c] / count() + 1e-5);
    queue_.ops().apply({.x = data_.x.data(),
                        .y = data_.y.data(),
                        .dtype = data_.dtype,
                        .partition = p_,
                        .center = mean_.data(),
                        .scale = scale_.data(),
                        .shift = shift_.data()},
                       queue_);
  }
  void backward() {
    queue_.ops().moments_grad(
        {data_.x.data(), data_.dy.data(), data_.dtype, p_, mean_.data(), {}, sum_g_.data(), sum_gx_.data()}, queue_);
    for (std::size_t c = 0; c < mean_.size(); ++c) {
      slope_[c] = -scale_[c] * scale_[c] * scale_[c] * sum_gx_[c] / count();
      offset_[c] = -scale_[c] * sum_g_[c] / count();
    }
    queue_.ops().apply_grad({.x = data_.x.data(),
                             .dy = data_.dy.data(),
                             .dx = data_.dx.data(),
                             .dtype = data_.dtype,
                             .partition = p_,
                             .center = mean_.data(),
                             .gain = scale_.data(),
                             .slope = slope_.data(),
                             .offset = offset_.data()},
                            queue_);
  }

 private:
  double count() const { return static_cast<double>(p_.group_size()); }

  Queue& queue_;
  Data& data_;
  Partition p_;
  Buffer<double> mean_, m2_, scale_, shift_, sum_g_, sum_gx_, slope_, offset_;  // (C)
};

[[gnu::target_clones("avx512f", "avx2", "default")]] void add_scaled(const float* a, const float* b, float* c,
                                                                     std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) c[i] = a[i] + 0.5f * b[i];
}

/// dx = x + s * dy over the tensor's bytes, in chunks of the same threads: what the machine moves at this size.
void triad(Data& data, Queue& queue) {
  const auto floats = [](Buffer<std::byte>& values) { return reinterpret_cast<float*>(values.data()); };
  const float *const a = floats(data.x), *const b = floats(data.dy);
  float* const c = floats(data.dx);
  const std::int64_t chunk = 1 << 15, size = static_cast<std::int64_t>(data.x.size() / sizeof(float));
  parallel(queue, (size + chunk - 1) / chunk, [&](std::int64_t i) {
    add_scaled(a + i * chunk, b + i * chunk, c + i * chunk, std::min(chunk, size - i * chunk));
  });
}

/// What is timed of one case; the queue comes first and goes last.
struct Subjects {
  Queue queue;
  Data data;
  Ours ours;
  Kernels kernels;

  explicit Subjects(const Case& c)
      : queue(Queue::cpu(c.threads)), data(c, queue), ours(c, data, queue), kernels(data, queue) {}
};

}  // namespace

int main() {
  std::unique_ptr<Subjects> now;
  return bench::serve(std::string("allnorm, ") + cpu_ops().name, [&](const Case& c) {
    now = std::make_unique<Subjects>(c);
    Subjects& s = *now;
    Calls calls{{"norm forward", [&s] { s.ours.forward(); }},
                {"norm backward", [&s] { s.ours.backward(); }},
                {"triad forward", [&s] { triad(s.data, s.queue); }},
                {"triad backward", [&s] { triad(s.data, s.queue); }}};
    if (c.layer != "batch_norm") return calls;
    calls.push_back({"kernels forward", [&s] { s.kernels.forward(); }});
    calls.push_back({"kernels backward", [&s] { s.kernels.backward(); }});
    return calls;
  });
}
