// Layers in CUDA graphs: a replayed step advances the state as a call does, and nothing on the host waits.
#include <optional>

#include "allnorm/halves.hpp"
#include "operation_step.hpp"

namespace gpu_graph_test {
namespace {

using namespace step_test;

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
    if (layer.row->by_trailing()) continue;  // its parameters have another shape
    expect_replays_equal_calls(layer);
  }
}

TEST(Graphs, ReplaysOfOperationsEqualCalls) {
  for (const Row& row : catalogue())
    for (const bool track : {false, true}) {
      if (track ? row.attribute("track") == nullptr : row.operation == OperationKind::norm) continue;
      if (row.operation == OperationKind::whitening) continue;  // its calls wait on the host
      SCOPED_TRACE(row.name);
      Layer layer(row);
      if (track) layer.set("track", "true");
      Queue queue = backend::queue();
      OperationStep eager(layer, queue), captured(layer, queue);
      Graph graph(queue, [&captured] { captured.run(); });
      for (std::uint64_t step = 0; step < 3; ++step) {
        for (OperationStep* s : {&eager, &captured}) s->refill(step);
        eager.run();
        graph.launch();
        EXPECT_EQ(captured.outcome(), eager.outcome()) << "step " << step;
      }
    }
}

/// A rank whose calls are made in halves, in memory of the test's.
struct HalvesStep {
  HalvesStep(const Layer& layer, Queue& q) : queue(q), halves(layer, C, 0, 1, q) {
    inputs.input = backend::view(x.data(), x_shape);
    history.resize(halves.history_bytes());
    halves.start_history(history, q);
    work.resize(halves.work_bytes(inputs) / sizeof(double) + 1);
    frame.resize(static_cast<std::size_t>(halves.frame_size(C)));
    queue.wait();
  }
  void run() {
    const KeptState state{backend::view(mean.data(), {C}), backend::view(var.data(), {C}),
                          backend::view(tracked.data(), {1}), history};
    auto* const scratch = reinterpret_cast<std::byte*>(work.data());
    halves.forward_finish(inputs, backend::view(y.data(), x_shape), state, {frame.data()}, scratch, nullptr, queue);
  }
  void refill(std::uint64_t seed) {
    Random fresh(seed);
    x.assign(x.size(), 0);
    for (float& value : x) value = static_cast<float>(0.5 + fresh.normal());
  }
  std::vector<double> outcome() {
    queue.wait();
    std::vector<double> all(y.begin(), y.end());
    for (const auto* part : {&mean, &var, &frame}) all.insert(all.end(), part->begin(), part->end());
    for (const std::byte b : history) all.push_back(std::to_integer<int>(b));
    all.push_back(static_cast<double>(tracked[0]));
    return all;
  }

  static constexpr std::size_t values = 3 * C * 4 * 6;
  Queue& queue;
  Halves halves;
  ForwardInputs inputs;
  backend::Array<float> x = backend::Array<float>(values), y = backend::Array<float>(values);
  backend::Array<double> mean = backend::Array<double>(C), var = backend::Array<double>(C, 1.0), work, frame;
  backend::Array<std::int64_t> tracked = backend::Array<std::int64_t>(1);
  backend::Array<std::byte> history;
};

TEST(Graphs, ReplaysOfHalvesWithAHistoryEqualCalls) {
  for (const char* text :
       {"cross_mini_batch_norm:minibatches=2", "cross_iteration_batch_norm:window=3:compensate=false",
        "cross_iteration_batch_norm:training=false"}) {
    SCOPED_TRACE(text);
    Queue queue = backend::queue();
    HalvesStep eager(parse_layer(text), queue), captured(parse_layer(text), queue);
    Graph graph(queue, [&captured] { captured.run(); });
    for (std::uint64_t step = 0; step < 5; ++step) {
      for (HalvesStep* s : {&eager, &captured}) s->refill(step);
      eager.run();
      graph.launch();
      EXPECT_EQ(captured.outcome(), eager.outcome()) << "step " << step;
    }
  }
}

TEST(Graphs, HalvesRefuseToFailForValuesThatTheyDoNotWaitFor) {
  Queue queue = backend::queue();
  EXPECT_EQ(harness::error_of([&] { Halves(parse_layer("batch_norm:nonfinite=fail"), C, 0, 1, queue); }),
            "unsupported: attribute nonfinite is fail, must be propagate or skip_update for halves of calls on a GPU");
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

}  // namespace
}  // namespace gpu_graph_test
