// Layers on a GPU: few launches, no waiting, and what is said of wrong pointers and of missing memory.
#include "step_support.hpp"

namespace gpu_layer_test {
namespace {

using namespace step_test;

#if ALLNORM_CUDA_EMULATED

TEST(Launches, AreTwoPerDirectionAndNothingWaits) {
  Queue queue = backend::queue();
  for (const char* text : {"batch_norm", "batch_norm:activation=relu", "batch_renorm", "cross_mini_batch_norm"}) {
    SCOPED_TRACE(text);
    Step step(parse_layer(text), queue);
    step.run();
    queue.wait();
    cuda_emulation::reset();
    step.run();
    EXPECT_LE(cuda_emulation::launches(), 4u);
    EXPECT_EQ(cuda_emulation::copies(), 0u);
    EXPECT_EQ(cuda_emulation::host_waits(), 0u);
    queue.wait();
  }
  Step step(every_state(), queue);
  step.run();
  queue.wait();
  cuda_emulation::reset();
  step.run();
  EXPECT_EQ(cuda_emulation::host_waits(), 0u);
  queue.wait();
}

/// Lets every allocation of a call fail once, until it comes through; `after` is called after each failure. Returns how
/// many there were.
template <class Call, class After>
int strike_every_allocation(const Call& call, const After& after) {
  for (int place = 0;; ++place) {
    for (int i = 0; i < place; ++i) cuda_emulation::fail_next("cudaMallocAsync", cudaSuccess);
    cuda_emulation::fail_next("cudaMallocAsync", cudaErrorMemoryAllocation);
    const std::string said = harness::error_of(call);
    cuda_emulation::reset();
    if (said.empty()) return place;
    EXPECT_EQ(said.find("device: cuda:0 has "), 0u) << said;
    after();
  }
}

TEST(WantOfMemory, IsNamedAndChangesNothing) {
  Queue queue = backend::queue();
  for (const char* text : {"", "batch_norm", "batch_norm:activation=relu", "batch_renorm", "group_norm:groups=5"}) {
    SCOPED_TRACE(text);
    const Layer layer = *text == 0 ? every_state() : parse_layer(text);
    Step spared(layer, queue), struck(layer, queue);
    for (int step = 0; step < 12; ++step) {
      for (Step* s : {&spared, &struck}) s->refill(static_cast<std::uint64_t>(step), step % 2 == 0);
      spared.run();
      const auto before = struck.norm.save(queue).entries;
      const auto expect_state = [&] {
        const auto now = struck.norm.save(queue).entries;
        ASSERT_EQ(now.size(), before.size());
        for (std::size_t e = 0; e < now.size(); ++e) EXPECT_EQ(now[e].data, before[e].data) << now[e].name;
      };
      EXPECT_GE(strike_every_allocation([&] { struck.forward(); }, expect_state), 2);
      EXPECT_GE(strike_every_allocation([&] { struck.backward(); }, [] {}), 1);
      EXPECT_EQ(struck.outcome(), spared.outcome()) << "step " << step;
    }
  }
}

#endif

TEST(BadPointers, AreNamed) {
  Queue gpu = backend::queue(), cpu = Queue::cpu();
  Step step(Layer("batch_norm"), gpu);
  std::vector<float> host(step.x.size());
  float* device = nullptr;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&device), host.size() * sizeof(float)), cudaSuccess);
  const auto told = [](Norm& norm, const ForwardInputs& in, const TensorView& out, Queue& queue) {
    return harness::error_of([&] { norm.forward(in, out, queue); });
  };
  ForwardInputs in;
  in.input = backend::view(host.data(), x_shape);
  EXPECT_EQ(told(step.norm, in, backend::view(step.y.data(), x_shape), gpu),
            "device: input is in host memory, must be on cuda:0");
  in.input = backend::view(device, x_shape);
  EXPECT_EQ(told(step.norm, in, backend::view(host.data(), x_shape), gpu),
            "device: output is in host memory, must be on cuda:0");
  in.weight = view(host.data(), parameter_shape);
  EXPECT_EQ(told(step.norm, in, backend::view(device, x_shape), gpu), "device: weight is on cpu, must be on cuda:0");

  Norm on_cpu(Layer("batch_norm"), C, nullptr, cpu);
  in.weight = {};
  EXPECT_EQ(told(on_cpu, in, backend::view(device, x_shape), cpu),
            "device: input is on cuda:0, must be on the queue's cpu");
  in.input = view(device, x_shape);
  EXPECT_EQ(told(on_cpu, in, view(host.data(), x_shape), cpu), "device: input is on cuda:0, must be in host memory");
  EXPECT_EQ(told(step.norm, in, view(host.data(), x_shape), cpu),
            "device: the queue is on cpu, must be on the layer's cuda:0");
  EXPECT_EQ(step.norm.running(gpu).tracked, 0);
  ASSERT_EQ(cudaFree(device), cudaSuccess);
}

}  // namespace
}  // namespace gpu_layer_test
