// Batch normalization, forward and backward, by the CPU kernels and by libtorch in one run: a Markdown table.
#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/types.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>

#include "allnorm/device.hpp"
#include "allnorm/partition.hpp"
#include "kernels/ops.hpp"
#include "src/runtime/parallel.hpp"

namespace {

using namespace allnorm;
constexpr double eps = 1e-5;

struct Layer {
  std::int64_t n, c, h, w;
  bool channels_last;
  std::int64_t elements() const { return n * c * h * w; }
};

/// One layer's buffers and the two halves of a training step, as the library composes them from the table.
class Ours {
 public:
  Ours(const Layer& layer, const float* x, const float* dy, int threads)
      : queue_(Queue::cpu(threads)),
        p_(partition({Axis::channel}, Shape{layer.n, layer.c, layer.h, layer.w},
                     layer.channels_last ? Order::channels_last : Order::channels_first)),
        x_(x),
        dy_(dy),
        y_(static_cast<std::size_t>(p_.elements()), queue_),
        dx_(static_cast<std::size_t>(p_.elements()), queue_) {
    for (auto* values : {&mean_, &m2_, &scale_, &shift_, &sum_g_, &sum_gx_, &gain_, &slope_, &offset_})
      *values = Buffer<double>(static_cast<std::size_t>(layer.c), queue_);
  }

  void forward() {
    queue_.ops().moments({x_, DType::f32, p_, mean_.data(), m2_.data()}, queue_);
    for (std::size_t c = 0; c < mean_.size(); ++c) {
      scale_[c] = 1.0 / std::sqrt(m2_[c] / count() + eps);
      shift_[c] = 0.0;
    }
    queue_.ops().apply({.x = x_,
                        .y = y_.data(),
                        .dtype = DType::f32,
                        .partition = p_,
                        .center = mean_.data(),
                        .scale = scale_.data(),
                        .shift = shift_.data()},
                       queue_);
  }
  void backward() {
    queue_.ops().moments_grad({x_, dy_, DType::f32, p_, mean_.data(), {}, sum_g_.data(), sum_gx_.data()}, queue_);
    for (std::size_t c = 0; c < mean_.size(); ++c) {
      gain_[c] = scale_[c];
      slope_[c] = -scale_[c] * scale_[c] * scale_[c] * sum_gx_[c] / count();
      offset_[c] = -scale_[c] * sum_g_[c] / count();
    }
    queue_.ops().apply_grad({.x = x_,
                             .dy = dy_,
                             .dx = dx_.data(),
                             .dtype = DType::f32,
                             .partition = p_,
                             .center = mean_.data(),
                             .gain = gain_.data(),
                             .slope = slope_.data(),
                             .offset = offset_.data()},
                            queue_);
  }
  /// y = x + s * dx, in chunks of the same threads: what the machine moves at this size.
  void triad() {
    const std::int64_t chunk = 1 << 15, elements = p_.elements();
    parallel(queue_, (elements + chunk - 1) / chunk, [&](std::int64_t i) {
      add_scaled(x_ + i * chunk, dy_ + i * chunk, y_.data() + i * chunk, std::min(chunk, elements - i * chunk));
    });
  }
  const Buffer<float>& y() const { return y_; }
  const Buffer<float>& dx() const { return dx_; }

 private:
  [[gnu::target_clones("avx512f", "avx2", "default")]] static void add_scaled(const float* a, const float* b, float* c,
                                                                              std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) c[i] = a[i] + 0.5f * b[i];
  }
  double count() const { return static_cast<double>(p_.group_size()); }

  Queue queue_;
  Partition p_;
  const float* x_;
  const float* dy_;
  Buffer<float> y_, dx_;
  Buffer<double> mean_, m2_, scale_, shift_, sum_g_, sum_gx_, gain_, slope_, offset_;  // (C)
};

class Torch {
 public:
  Torch(const Layer& layer, at::Tensor x, at::Tensor dy)
      : x_(std::move(x)), dy_(std::move(dy)), weight_(at::ones({layer.c})), bias_(at::zeros({layer.c})) {}
  void forward() { std::tie(y_, mean_, invstd_) = at::native_batch_norm(x_, weight_, bias_, {}, {}, true, 0.1, eps); }
  void backward() {
    dx_ = std::get<0>(
        at::native_batch_norm_backward(dy_, x_, weight_, {}, {}, mean_, invstd_, true, eps, {true, true, true}));
  }
  const at::Tensor& y() const { return y_; }
  const at::Tensor& dx() const { return dx_; }

 private:
  at::Tensor x_, dy_, weight_, bias_, y_, dx_, mean_, invstd_;
};

/// Milliseconds per call. One thread: of CPU time, which other jobs on the machine lengthen least. More: of wall time.
double milliseconds(const std::function<void()>& call, int repetitions, int threads) {
  const auto start = std::chrono::steady_clock::now();
  const std::clock_t cpu_start = std::clock();
  for (int i = 0; i < repetitions; ++i) call();
  const double cpu = 1e3 * static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  const double wall = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return (threads == 1 ? cpu : wall) / repetitions;
}

/// How many jobs want a core, over the last minute: above the number of cores, wall times are not the program's own.
double load_average() {
  double load = -1.0;
  getloadavg(&load, 1);
  return load;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

double largest_difference(const Buffer<float>& ours, const at::Tensor& theirs) {
  const float* t = theirs.data_ptr<float>();  // dense in either order, as ours
  double worst = 0.0;
  for (std::size_t i = 0; i < ours.size(); ++i) worst = std::max(worst, std::abs(double{ours[i]} - double{t[i]}));
  return worst;
}

void compare(const Layer& layer, int threads, int samples) {
  at::set_num_threads(threads);
  const auto format = layer.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  at::manual_seed(1);
  const auto x = at::randn({layer.n, layer.c, layer.h, layer.w}).contiguous(format);
  const auto dy = at::randn({layer.n, layer.c, layer.h, layer.w}).contiguous(format);
  Ours ours(layer, x.data_ptr<float>(), dy.data_ptr<float>(), threads);
  Torch torch(layer, x, dy);

  const std::array<std::function<void()>, 5> calls = {[&] { ours.triad(); }, [&] { ours.forward(); },
                                                      [&] { torch.forward(); }, [&] { ours.backward(); },
                                                      [&] { torch.backward(); }};
  std::array<std::vector<double>, 5> times;
  const int repetitions = static_cast<int>(std::max<std::int64_t>(1, 8'000'000 / layer.elements()));
  for (int sample = -1; sample < samples; ++sample)  // sample -1 warms up
    for (std::size_t i = 0; i < calls.size(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(3));  // OpenMP's threads spin a while after a call of torch
      calls[i]();                                                 // the caches as this call leaves them
      const double t = milliseconds(calls[i], repetitions, threads);
      if (sample >= 0) times[i].push_back(t);
    }
  ours.forward();
  const double difference =
      std::max(largest_difference(ours.y(), torch.y()), largest_difference(ours.dx(), torch.dx()));

  const double gigabyte = static_cast<double>(layer.elements()) * 4e-9;
  const double triad = 3 * gigabyte / median(times[0]) * 1e3;
  for (const bool forward : {true, false}) {
    const double mine = median(times[forward ? 1 : 3]), theirs = median(times[forward ? 2 : 4]);
    const double rate = (forward ? 3 : 5) * gigabyte / mine * 1e3;
    std::printf("| (%d,%d,%d,%d) | %s | %d | %s | %.3f | %.3f | %.1f | %.0f %% | %.2f | %.1e |\n", int(layer.n),
                int(layer.c), int(layer.h), int(layer.w), layer.channels_last ? "NHWC" : "NCHW", threads,
                forward ? "forward" : "backward", mine, theirs, rate, 100 * rate / triad, theirs / mine, difference);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int samples = argc > 1 ? std::atoi(argv[1]) : 21;
  if (samples < 1) {
    std::fprintf(stderr, "usage: %s [samples >= 1]\n", argv[0]);
    return 2;
  }
  // torch allocates its outputs in every call: keep their pages, so that kernels are compared and not page faults.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  at::NoGradGuard no_grad;
  const double load = load_average();
  std::printf("%s against libtorch %s, f32, medians of %d interleaved samples\n\n", cpu_ops().name, TORCH_VERSION,
              samples);
  std::printf("| shape | order | threads | pass | ms | torch ms | GB/s | of triad | torch/ours | max difference |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|\n");
  for (const int threads : {1, 2})
    for (const bool channels_last : {false, true})
      for (const auto& [n, c, h] : {std::array<std::int64_t, 3>{32, 64, 56}, {32, 256, 14}, {8, 2048, 7}})
        compare({n, c, h, h, channels_last}, threads, samples);
  std::printf("\n%u cores; load average %.1f before, %.1f after\n", std::thread::hardware_concurrency(), load,
              load_average());
}
