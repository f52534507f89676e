// Layers in CUDA graphs: a replayed step advances the state as a call does, and nothing on the host waits.
#include <deque>
#include <optional>

#include "allnorm/operation.hpp"
#include "step_support.hpp"

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

/// An operation with everything that its row lists, as Step of a Norm.
struct OperationStep {
  OperationStep(const Layer& layer, Queue& q) : queue(q), operation(make_operation(layer, C, self(), q)) {
    inputs.add("input", fill(x_shape));
    for (const TensorSpec& tensor : layer.row->tensors) {
      if (tensor.is_state() || !layer.has(tensor)) continue;
      const bool has_labels = tensor.role == TensorRole::labels;
      const Shape shape = tensor.role == TensorRole::table        ? Shape{rows, C}
                          : tensor.role == TensorRole::mixture    ? Shape{x_shape[0], rows}
                          : tensor.role == TensorRole::activation ? x_shape
                          : has_labels                            ? x_shape
                                                                  : layer.shape_of(tensor.axes, x_shape);
      inputs.add(tensor.name,
                 has_labels ? ConstTensorView(backend::view(labels.data(), Shape{x_shape[0]})) : fill(shape));
      const std::string_view gradient = *names.emplace(names.end(), "grad_" + std::string(tensor.name));
      if (layer.row->output(gradient) != nullptr) gradients.add(gradient, room(shape));
    }
    gradients.add("grad_input", room(x_shape));
    grad_output = fill(x_shape);
    output = room(x_shape);
  }
  void run() {
    saved = operation->forward(inputs, {{"output", output}}, queue);
    operation->backward(*saved, {{"grad_output", grad_output}}, gradients, queue);
  }
  void refill(std::uint64_t seed) {
    Random fresh(seed);
    for (auto& array : given)
      for (float& value : array) value = static_cast<float>(0.5 + fresh.normal());
    for (auto& label : labels) label = fresh.integer(0, rows - 1);
  }
  std::vector<std::vector<std::byte>> outcome() {
    queue.wait();
    operation->check();
    std::vector<std::vector<std::byte>> all;
    for (const auto& array : made) {
      const auto* from = reinterpret_cast<const std::byte*>(array.data());
      all.emplace_back(from, from + array.size() * sizeof(float));
    }
    for (const StateEntry& entry : operation->save(queue).entries) all.push_back(entry.data);
    return all;
  }
  ConstTensorView fill(const Shape& shape) {
    return backend::view(given.emplace_back(draw(random, shape)).data(), shape);
  }
  TensorView room(const Shape& shape) { return backend::view(made.emplace_back(draw(random, shape)).data(), shape); }

  static constexpr std::int64_t rows = 3;  // of tables
  Queue& queue;
  std::unique_ptr<Operation> operation;
  Random random{5};
  backend::Array<std::int64_t> labels = backend::Array<std::int64_t>(static_cast<std::size_t>(x_shape[0]));
  std::deque<backend::Array<float>> given, made;
  std::deque<std::string> names;
  InputSlots inputs;
  ConstTensorView grad_output;
  OutputSlots gradients;
  TensorView output;
  std::unique_ptr<SavedCall> saved;
};

TEST(Graphs, ReplaysOfOperationsEqualCalls) {
  for (const Row& row : catalogue())
    for (const bool track : {false, true}) {
      if (track ? row.attribute("track") == nullptr : row.operation == OperationKind::norm) continue;
      if (row.operation == OperationKind::switchable) continue;  // on the CPU only
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
