// What a window costs on a GPU: forward of Cross-Iteration BN behind a 3x3 convolution, beside the weight gradient of
// that convolution by torch. Prints a Markdown table. usage: bench_gpu_window [SAMPLES]
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/version.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "adapters/torch/views.hpp"
#include "allnorm/norm.hpp"
#include "bench/gpu_timing.hpp"
#include "kernels/ops.hpp"

namespace {

using namespace allnorm;
using namespace allnorm::bench;

struct Size {
  std::int64_t samples, in, out, space;
};

/// Inputs of one training call: the convolution's and, x, its output.
struct Set {
  at::Tensor input, weight, x, dy;  // (N, Ci, H, W), f32 (C, Ci, 3, 3), (N, C, H, W) twice
};

// Every set has weights of its own, so that they change from call to call as in training.
std::vector<Set> draw(const Size& s, std::size_t sets) {
  const auto f32 = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
  const auto last = [](const at::Tensor& t) { return t.to(at::kBFloat16).contiguous(at::MemoryFormat::ChannelsLast); };
  const at::Tensor weight = 0.05 * at::randn({s.out, s.in, 3, 3}, f32);
  std::vector<Set> all;
  for (std::size_t i = 0; i < sets; ++i)
    all.push_back({last(at::randn({s.samples, s.in, s.space, s.space}, f32)), weight + 1e-3 * at::randn_like(weight),
                   last(at::randn({s.samples, s.out, s.space, s.space}, f32)),
                   last(at::randn({s.samples, s.out, s.space, s.space}, f32))});
  return all;
}

Time forward_time(const Size& s, const std::vector<Set>& sets, int window, std::size_t samples, Queue& queue) {
  Layer layer("cross_iteration_batch_norm");
  layer.set("window", std::to_string(window)).set("conv_padding", "1");
  Norm norm(layer, s.out, self(), queue, "layer");
  std::vector<at::Tensor> y(sets.size());
  std::vector<Saved> saved(sets.size());
  const Call call = [&](std::size_t i) {
    constexpr Order last = Order::channels_last;
    y[i] = at::empty_like(sets[i].x);
    ForwardInputs inputs;
    inputs.input = torch_adapter::view_of(sets[i].x, last);
    inputs.conv_input = torch_adapter::view_of(sets[i].input, last);
    inputs.conv_weight = torch_adapter::view_of(sets[i].weight);
    saved[i] = norm.forward(inputs, torch_adapter::writable_view_of(y[i], last), queue);
  };
  for (int i = 0; i < window; ++i) call(static_cast<std::size_t>(i) % sets.size());  // fill the window
  return replayed(call, sets.size(), samples);
}

Time gradient_time(const std::vector<Set>& sets, std::size_t samples) {
  const std::vector<std::int64_t> one{1, 1}, zero{0, 0};
  std::vector<at::Tensor> weights, gradients(sets.size());
  for (const Set& set : sets)
    weights.push_back(set.weight.to(at::kBFloat16).contiguous(at::MemoryFormat::ChannelsLast));
  return replayed(
      [&](std::size_t i) {
        gradients[i] =
            std::get<1>(at::convolution_backward(sets[i].dy, sets[i].input, weights[i], at::OptionalIntArrayRef(), one,
                                                 one, one, false, zero, 1, {false, true, false}));
      },
      sets.size(), samples);
}

void run(std::size_t samples) {
  const at::NoGradGuard no_grad;
  const auto stream = c10::cuda::getStreamFromPool();  // the default stream cannot be captured
  const c10::cuda::CUDAStreamGuard guard(stream);
  Queue queue = Queue::cuda(stream.device_index(), stream.stream());
  at::manual_seed(1);
  std::printf("%s, libtorch %s, bf16 NHWC, medians of %zu samples, replayed from graphs\n\n", queue.ops().name,
              TORCH_VERSION, samples);
  std::printf("| layer (N, Ci, C, HxW) | window 1, us | window 8, us | weight gradient, us | extra / gradient |\n");
  std::printf("|---|---:|---:|---:|---:|\n");
  const Size sizes[] = {{4, 64, 64, 56}, {4, 128, 128, 28}, {4, 256, 256, 14}, {4, 512, 512, 7}, {32, 256, 256, 14}};
  for (const Size& s : sizes) {
    const std::vector<Set> sets = draw(s, 8);
    const Time plain = forward_time(s, sets, 1, samples, queue), window = forward_time(s, sets, 8, samples, queue),
               gradient = gradient_time(sets, samples);
    for (const Time* time : {&plain, &window, &gradient})
      expect(time->failure.empty(), Code::device, [&] { return time->failure; });
    std::printf("| %lld, %lld, %lld, %lldx%lld | %.2f | %.2f | %.2f | %.2f |\n", static_cast<long long>(s.samples),
                static_cast<long long>(s.in), static_cast<long long>(s.out), static_cast<long long>(s.space),
                static_cast<long long>(s.space), plain.us, window.us, gradient.us,
                (window.us - plain.us) / gradient.us);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int samples = argc > 1 ? std::atoi(argv[1]) : 51;
  if (samples < 1) {
    std::fprintf(stderr, "SAMPLES is '%s', must be at least 1\n", argv[1]);
    return 2;
  }
  try {
    run(static_cast<std::size_t>(samples));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
