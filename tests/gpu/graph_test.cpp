// Layers in CUDA graphs: a replayed step advances the state as a call does, and nothing on the host waits.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "harness.hpp"

#if ALLNORM_CUDA_EMULATED
#include "cuda_emulation.hpp"
#endif

namespace {

using namespace allnorm;
using cases::Random;
using reference::Array;

constexpr std::int64_t C = 5;
const Shape x_shape{3, C, 4, 6}, conv_shape{3, 2, 4, 6}, weight_shape{C, 2, 1, 1}, parameter_shape{C};

backend::Array<float> draw(Random& random, const Shape& shape, double mean = 0, double std = 1) {
  backend::Array<float> made(static_cast<std::size_t>(shape.elements()));
  for (float& v : made) v = static_cast<float>(mean + std * random.normal());
  return made;
}

/// A layer and the tensors of its steps, in memory that host and device share.
struct Step {
  explicit Step(const Layer& layer, Queue& q, std::shared_ptr<Communicator> group = nullptr)
      : queue(q), norm(layer, C, std::move(group), q) {}

  void run() {
    ForwardInputs in;
    in.input = backend::view(x.data(), x_shape);
    in.weight = backend::view(gamma.data(), parameter_shape);
    in.bias = backend::view(beta.data(), parameter_shape);
    if (norm.layer().options.activation.kind != ActivationKind::identity)
      in.residual = backend::view(residual.data(), x_shape);
    if (norm.layer().options.window > 1) {
      in.conv_input = backend::view(conv_input.data(), conv_shape);
      in.conv_weight = backend::view(theta.data(), weight_shape);
    }
    saved = norm.forward(in, backend::view(y.data(), x_shape), queue);
    BackwardOutputs out;
    out.input = backend::view(dx.data(), x_shape);
    if (in.residual.given()) out.residual = backend::view(dresidual.data(), x_shape);
    out.weight = backend::view(dgamma.data(), parameter_shape);
    out.bias = backend::view(dbeta.data(), parameter_shape);
    norm.backward(saved, backend::view(dy.data(), x_shape), out, queue);
  }
  /// New data in the same memory.
  void refill(std::uint64_t seed, bool new_weights) {
    Random fresh(seed);
    const auto into = [&fresh](backend::Array<float>& to, double mean) {
      for (float& v : to) v = static_cast<float>(mean + fresh.normal());
    };
    into(x, 0.5);
    into(conv_input, 0.2);
    into(dy, 0);
    into(residual, 0);
    if (new_weights) into(theta, 0);
  }
  /// Everything that a step leaves.
  std::vector<std::vector<std::byte>> outcome() {
    queue.wait();
    std::vector<std::vector<std::byte>> all;
    const auto add = [&all](const auto& array) {
      const auto* from = reinterpret_cast<const std::byte*>(array.data());
      all.emplace_back(from, from + array.size() * sizeof(array[0]));
    };
    for (const auto* array : {&y, &dx, &dgamma, &dbeta, &dresidual}) add(*array);
    for (const StateEntry& entry : norm.save(queue).entries) add(entry.data);
    return all;
  }

  Queue& queue;
  Norm norm;
  Random random{3};
  backend::Array<float> x = draw(random, x_shape), dy = draw(random, x_shape), residual = draw(random, x_shape),
                        conv_input = draw(random, conv_shape), theta = draw(random, weight_shape),
                        gamma = draw(random, parameter_shape, 1, 0.2), beta = draw(random, parameter_shape),
                        y = draw(random, x_shape), dx = draw(random, x_shape), dresidual = draw(random, x_shape),
                        dgamma = draw(random, parameter_shape), dbeta = draw(random, parameter_shape);
  Saved saved;
};

Layer every_state() {
  Layer layer = parse_layer(
      "cross_iteration_batch_norm:minibatches=2:window=3:renorm=true:burn_in=1:momentum=cumulative:activation=relu");
  layer.options.r_max_ramp = {{1, 1.0}, {4, 2.0}};
  layer.options.d_max_ramp = {{0, 0.0}, {5, 1.0}};
  return layer;
}

class Graph {
 public:
  template <class Body>
  Graph(Queue& queue, const Body& body) : stream_(static_cast<cudaStream_t>(queue.stream())) {
    EXPECT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
    body();
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&executable_, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(executable_); }
  void launch() { EXPECT_EQ(cudaGraphLaunch(executable_, stream_), cudaSuccess); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

void expect_replays_equal_calls(const Layer& layer) {
  Queue queue = backend::queue();
  Step eager(layer, queue), captured(layer, queue);
  Graph graph(queue, [&captured] { captured.run(); });
  const std::int64_t T = layer.options.minibatches;
  for (std::int64_t step = 0; step < 6 * T + 1; ++step) {  // window and ramps come to their ends
    for (Step* s : {&eager, &captured}) s->refill(static_cast<std::uint64_t>(100 + step), step % T == 0);
    eager.run();
    graph.launch();
    EXPECT_EQ(captured.outcome(), eager.outcome()) << "step " << step;
  }
}

TEST(Graphs, ReplaysOfAStepWithEveryStateEqualCalls) { expect_replays_equal_calls(every_state()); }
TEST(Graphs, ReplaysOfPlainLayersEqualCalls) {
  for (const char* text :
       {"batch_norm", "batch_norm:activation=relu", "batch_renorm", "batch_norm:momentum=cumulative",
        "cross_mini_batch_norm", "cross_iteration_batch_norm", "layer_norm", "group_norm:groups=5"}) {
    SCOPED_TRACE(text);
    Layer layer = parse_layer(text);
    if (layer.row->reduction == Reduction::trailing_axes) continue;  // its parameters have another shape
    expect_replays_equal_calls(layer);
  }
}

TEST(Graphs, CallsGoOnFromWhereReplaysEnded) {
  Queue queue = backend::queue();
  const Layer layer = every_state();
  Step eager(layer, queue), mixed(layer, queue);
  std::optional<Graph> graph;
  for (int step = 0; step < 12; ++step) {
    for (Step* s : {&eager, &mixed}) s->refill(static_cast<std::uint64_t>(step), step % 2 == 0);
    eager.run();
    if (step == 3) graph.emplace(queue, [&mixed] { mixed.run(); });
    if (step >= 3 && step % 3 != 1)
      graph->launch();
    else
      mixed.run();
    EXPECT_EQ(mixed.outcome(), eager.outcome()) << "step " << step;
  }
}

TEST(Graphs, AStateMayBeSavedAndLoadedBetweenReplays) {
  Queue queue = backend::queue();
  const Layer layer = every_state();
  Step whole(layer, queue), resumed(layer, queue);
  Graph graph(queue, [&resumed] { resumed.run(); });
  for (int step = 0; step < 12; ++step) {
    for (Step* s : {&whole, &resumed}) s->refill(static_cast<std::uint64_t>(step), step % 2 == 0);
    whole.run();
    graph.launch();
    const State state = resumed.norm.save(queue);
    resumed.norm.load(state, queue);
    EXPECT_EQ(resumed.outcome(), whole.outcome()) << "step " << step;
  }
}

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
  EXPECT_EQ(step.norm.running(gpu).tracked, 0);
  ASSERT_EQ(cudaFree(device), cudaSuccess);
}

}  // namespace
