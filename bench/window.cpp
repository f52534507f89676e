// What a window costs: time and memory of Cross-Iteration BN over plain BN, beside the convolution before the layer.
// Prints a markdown table. usage: bench_window [REPEATS]
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"

namespace {

using namespace allnorm;
using Clock = std::chrono::steady_clock;

struct Size {
  std::int64_t samples, in, out, space;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

template <class F>
double milliseconds(const F& f) {
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// A layer behind a 3x3 convolution, with tensors of its own.
struct Subject {
  Subject(const Size& s, std::int64_t window, std::uint64_t seed)
      : shape{s.samples, s.out, s.space, s.space},
        in_shape{s.samples, s.in, s.space, s.space},
        weight_shape{s.out, s.in, 3, 3},
        norm(Layer("cross_iteration_batch_norm").set("window", std::to_string(window)).set("conv_padding", "1"), s.out,
             nullptr, queue) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<float> normal;
    for (auto* values : {&x, &dy, &dx, &y}) values->resize(static_cast<std::size_t>(shape.elements()));
    input.resize(static_cast<std::size_t>(in_shape.elements()));
    weight.resize(static_cast<std::size_t>(weight_shape.elements()));
    for (auto* values : {&x, &dy, &input, &weight})
      for (float& v : *values) v = normal(engine);
  }
  void step() {
    ForwardInputs in;
    in.input = view(x.data(), shape);
    in.conv_input = view(input.data(), in_shape);
    in.conv_weight = view(weight.data(), weight_shape);
    const Saved saved = norm.forward(in, view(y.data(), shape), queue);
    BackwardOutputs out;
    out.input = view(dx.data(), shape);
    norm.backward(saved, view(dy.data(), shape), out, queue);
    weight[0] += 0.001f;
  }

  Queue queue = Queue::cpu();
  Shape shape, in_shape, weight_shape;
  std::vector<float> x, dy, dx, y, input, weight;
  Norm norm;
};

}  // namespace

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 15;
  if (repeats < 1) {
    std::fprintf(stderr, "REPEATS is '%s', must be at least 1\n", argv[1]);
    return 2;
  }
  at::set_num_threads(1);
  const Size sizes[] = {{4, 64, 64, 56}, {4, 128, 128, 28}, {4, 256, 256, 14}, {4, 512, 512, 7}};
  std::printf(
      "| layer (N, Ci, C, HxW) | window | state, KiB | layer, ms | conv, ms | layer / plain BN | extra / (conv + BN) "
      "|\n");
  std::printf("|---|---:|---:|---:|---:|---:|---:|\n");
  for (const Size& s : sizes) {
    auto a = torch::randn({s.samples, s.in, s.space, s.space}, torch::requires_grad());
    auto w = torch::randn({s.out, s.in, 3, 3}, torch::requires_grad());
    const auto g = torch::randn({s.samples, s.out, s.space, s.space});
    const auto conv = [&] {
      torch::conv2d(a, w, {}, 1, 1).backward(g);
      a.mutable_grad().reset();
      w.mutable_grad().reset();
    };
    std::vector<Subject> subjects;
    const std::int64_t windows[] = {1, 2, 4, 8};
    for (const std::int64_t window : windows) {
      subjects.emplace_back(s, window, 1);
      for (std::int64_t i = 0; i < window; ++i) subjects.back().step();  // fill the window
    }
    conv();
    std::vector<double> times[4], conv_times;  // interleaved, so that a slow moment meets all
    for (int i = 0; i < repeats; ++i) {
      conv_times.push_back(milliseconds(conv));
      for (std::size_t j = 0; j < 4; ++j) times[j].push_back(milliseconds([&] { subjects[j].step(); }));
    }
    const double conv_ms = median(conv_times), plain = median(times[0]);
    for (std::size_t j = 0; j < 4; ++j) {
      const double ms = median(times[j]);
      std::printf("| %lld, %lld, %lld, %lldx%lld | %lld | %.0f | %.2f | %.2f | %.2f | %.2f |\n",
                  static_cast<long long>(s.samples), static_cast<long long>(s.in), static_cast<long long>(s.out),
                  static_cast<long long>(s.space), static_cast<long long>(s.space), static_cast<long long>(windows[j]),
                  static_cast<double>(subjects[j].norm.state_bytes()) / 1024, ms, conv_ms, ms / plain,
                  (ms - plain) / (conv_ms + plain));
    }
  }
}
