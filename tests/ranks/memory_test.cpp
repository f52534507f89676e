// A lone rank's call on the CPU asks the system for memory once: what a call gives back the next one takes.
#include <gtest/gtest.h>

#include <vector>

#include "allnorm/norm.hpp"
#include "allocations.hpp"

namespace allnorm::memory_test {
namespace {

/// Forward and backward with everything that the layer can be given, in f32.
class Call {
 public:
  Call(const char* layer, const Shape& shape, Order order, Queue& queue)
      : layer_(parse_layer(layer)),
        norm_(layer_, shape[1], nullptr, queue),
        shape_(shape),
        order_(order),
        parameters_(layer_.shape_of(layer_.row->tensor("weight")->axes, shape)),
        values_(static_cast<std::size_t>(shape.elements()), 0.5f),
        results_(values_.size()),
        weight_(static_cast<std::size_t>(parameters_.elements()), 1.5f),
        gradient_(weight_.size()),
        other_(weight_.size()) {}

  void run(Queue& queue) {
    const bool has_tau = layer_.row->tensor("tau") != nullptr;
    ForwardInputs in;
    in.input = view(values_.data(), shape_, order_);
    in.weight = in.bias = view(weight_.data(), parameters_);
    if (has_tau) in.tau = in.eps_learned = in.weight;
    BackwardOutputs out;
    out.input = view(results_.data(), shape_, order_);
    out.weight = view(gradient_.data(), parameters_);
    out.bias = view(other_.data(), parameters_);
    const Saved saved = norm_.forward(in, out.input, queue);
    norm_.backward(saved, in.input, out, queue);
  }

 private:
  Layer layer_;
  Norm norm_;
  Shape shape_;
  Order order_;
  Shape parameters_;
  std::vector<float> values_, results_, weight_, gradient_, other_;
};

TEST(Memory, IsAskedForByTheFirstCallAlone) {
  struct Case {
    const char* layer;
    Shape shape;
    Order order = Order::channels_first;
  };
  for (const Case& c : {Case{"batch_norm", {4, 256}}, Case{"batch_norm:activation=relu", {2, 64, 7, 7}},
                        Case{"batch_norm", {16, 48, 30, 30}, Order::channels_last}, Case{"layer_norm", {2000, 64}},
                        Case{"layer_norm", {512, 768}}, Case{"group_norm:groups=4", {8, 64, 28, 28}},
                        Case{"group_norm:groups=4", {8, 64, 28, 28}, Order::channels_last},
                        Case{"instance_norm", {8, 64, 28, 28}}, Case{"filter_response_norm", {4, 16, 14, 14}}}) {
    Queue queue = Queue::cpu();
    Call call(c.layer, c.shape, c.order, queue);
    call.run(queue);
    const std::int64_t before = allocations::asked();
    call.run(queue);
    EXPECT_EQ(allocations::asked(), before) << c.layer << ' ' << to_string(c.shape);
  }
}

}  // namespace
}  // namespace allnorm::memory_test
