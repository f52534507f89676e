// Operations: every row of the catalogue with its tensors bound by name, and what is refused.
#include "allnorm/operation.hpp"

#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/norm.hpp"
#include "cases.hpp"
#include "harness.hpp"

namespace operation_test {
namespace {

using namespace allnorm;
using cases::Random;
using harness::error_of;
using reference::Doubles;

constexpr double untouched = 12345;

// A layer of a row, and arrays for all that the row lists: for an input (3, 4, 2, 2), or (3, 4) where its rows are
// compared with vectors, and a convolution of 1 x 1.
struct Call {
  explicit Call(const Row& row, std::string_view attributes = {}, std::shared_ptr<Communicator> group = self())
      : shape(row.vectors() != nullptr ? Shape{3, 4} : Shape{3, 4, 2, 2}),
        layer(parse_layer(std::string(row.name) + std::string(attributes))) {
    if (row.attribute("groups") != nullptr) layer.set("groups", "2");
    if (row.attribute("group_size") != nullptr) layer.set("group_size", "2");
    operation = make_operation(layer, shape[1], std::move(group), queue);
    inputs.add("input", fill(shape));
    for (const TensorSpec& tensor : row.tensors)
      if (tensor.is_of_forward() && layer.has(tensor))
        inputs.add(tensor.name,
                   tensor.role == TensorRole::labels ? view(labels.data(), Shape{shape[0]}) : fill(shape_of(tensor)));
    grad_output = fill(output_shape(row, inputs));
    gradients.add("grad_input", room(shape));
    for (const OutputSpec& wanted : row.outputs)
      if (const TensorSpec* of = row.gradient(wanted.name)) gradients.add(wanted.name, room(shape_of(*of)));
    output = room(output_shape(row, inputs));
  }

  Shape shape_of(const TensorSpec& tensor) const {
    if (tensor.role == TensorRole::conv_weight) return {shape[1], 3, 1, 1};
    if (tensor.role == TensorRole::table || tensor.role == TensorRole::vectors) return {rows, shape[1]};
    if (tensor.role == TensorRole::mixture) return {shape[0], rows};
    if (tensor.role == TensorRole::conv_input) return {shape[0], 3, shape[2], shape[3]};
    return layer.shape_of(tensor.axes, shape);
  }
  ConstTensorView fill(const Shape& of) {
    Doubles& values = arrays.emplace_back(static_cast<std::size_t>(of.elements()));
    for (double& value : values) value = random.normal();
    return view(std::as_const(values).data(), of);
  }
  TensorView room(const Shape& of) {
    return view(arrays.emplace_back(static_cast<std::size_t>(of.elements()), untouched).data(), of);
  }
  static Doubles values(const ConstTensorView& of) {
    const auto* data = static_cast<const double*>(of.data);
    return {data, data + (of.given() ? of.elements() : 0)};
  }

  std::unique_ptr<SavedCall> forward() { return operation->forward(inputs, {{"output", output}}, queue); }
  void backward(const SavedCall& saved) {
    operation->backward(saved, {{"grad_output", grad_output}}, gradients, queue);
  }

  const Shape shape;
  static constexpr std::int64_t rows = 2;  // of tables, and vectors
  const std::vector<std::int64_t> labels{1, 0, 1};
  Queue queue = Queue::cpu();
  Random random{7};
  std::deque<Doubles> arrays;  // they stay where they are
  Layer layer;
  std::unique_ptr<Operation> operation;
  InputSlots inputs;
  ConstTensorView grad_output;
  OutputSlots gradients;
  TensorView output;
};

TEST(Operations, OfEveryRowServeAllItsSlots) {
  for (const Row& row : catalogue()) {
    SCOPED_TRACE(row.name);
    Call call(row);
    const auto saved = call.forward();
    call.backward(*saved);
    for (const double value : Call::values(call.output)) EXPECT_NE(value, untouched);
    for (const auto& [name, gradient] : call.gradients)
      for (const double value : Call::values(gradient)) EXPECT_NE(value, untouched) << name;
    const State state = call.operation->state(call.queue);
    for (const OutputSpec& output : row.outputs) {
      if (!call.layer.has(output) || row.gradient(output.name) != nullptr) continue;
      const auto elements = static_cast<std::size_t>(call.layer.shape_of(output.axes, call.shape).elements());
      if (row.state(output.name) != nullptr) {
        ASSERT_NE(state.find(output.name), nullptr) << output.name;
        EXPECT_EQ(static_cast<std::size_t>(state.find(output.name)->shape.elements()), elements) << output.name;
      } else {
        EXPECT_EQ(saved->statistic(output.name).size(), elements) << output.name;
      }
    }
  }
}

// What a tensor does is what the typed member of the same name does: each alone, so that none stands for another.
TEST(Operations, AreTheTypedLayer) {
  for (const Row& row : catalogue()) {
    if (row.operation != OperationKind::norm) continue;
    Call call(row, row.attribute("compensate") != nullptr ? ":compensate=false:activation=relu" : "");
    for (const auto& [name, of_call] : call.inputs) {
      SCOPED_TRACE(std::string(row.name) + ", " + std::string(name));
      InputSlots given{{"input", call.inputs["input"]}};
      if (name != "input") given.add(name, of_call);
      const auto operation = make_operation(call.layer, call.shape[1], self(), call.queue);
      Norm norm(call.layer, call.shape[1], self(), call.queue);
      ForwardInputs in;
      in.input = given["input"];
      const auto own = [&](std::initializer_list<std::string_view> names) {
        for (const std::string_view known : names)
          if (row.tensor(known) != nullptr) return known;
        return *names.begin();
      };
      const std::string gamma(own({"weight", "gain", "gamma"})), beta(own({"bias", "beta"}));
      in.weight = given[gamma];
      in.bias = given[beta];
      in.residual = given["residual"];
      in.tau = given["tau"];
      in.eps_learned = given["eps_learned"];
      const auto saved = operation->forward(given, {{"output", call.output}}, call.queue);
      const TensorView y = call.room(call.shape), dx = call.room(call.shape);
      const Saved typed = norm.forward(in, y, call.queue);
      EXPECT_EQ(Call::values(call.output), Call::values(y));

      OutputSlots gradients{{"grad_input", call.gradients["grad_input"]}};
      const std::string gradient = "grad_" + std::string(name);
      if (name != "input") gradients.add(gradient, call.gradients[gradient]);
      BackwardOutputs out;
      out.input = dx;
      const auto same_room = [&](std::string_view slot) {
        return gradients[slot].given() ? call.room(gradients[slot].shape) : TensorView{};
      };
      out.weight = same_room("grad_" + gamma);
      out.bias = same_room("grad_" + beta);
      out.residual = same_room("grad_residual");
      out.tau = same_room("grad_tau");
      out.eps_learned = same_room("grad_eps_learned");
      operation->backward(*saved, {{"grad_output", call.grad_output}}, gradients, call.queue);
      norm.backward(typed, call.grad_output, out, call.queue);
      EXPECT_EQ(Call::values(gradients["grad_input"]), Call::values(dx));
      const std::pair<std::string, TensorView> typed_gradients[] = {{gamma, out.weight},
                                                                    {beta, out.bias},
                                                                    {"residual", out.residual},
                                                                    {"tau", out.tau},
                                                                    {"eps_learned", out.eps_learned}};
      for (const auto& [tensor, of_norm] : typed_gradients) {
        const TensorView by_name = gradients["grad_" + tensor];
        EXPECT_EQ(by_name.given(), of_norm.given()) << tensor;
        EXPECT_EQ(Call::values(by_name), Call::values(of_norm)) << tensor;
      }
    }
  }
}

TEST(Operations, ReplayAndInferAreByNameToo) {
  Call call(*Layer("batch_norm").row);
  const auto saved = call.forward();
  const Doubles first = Call::values(call.output);
  const OutputSlots again{{"output", call.room(call.shape)}};
  call.operation->replay(*saved, call.inputs, again, call.queue);
  EXPECT_EQ(Call::values(again["output"]), first);
  call.operation->infer(call.inputs, again, call.queue);
  EXPECT_NE(Call::values(again["output"]), first);
  call.operation->set_training(false);
  EXPECT_FALSE(call.forward()->training());
  EXPECT_EQ(Call::values(call.output), Call::values(again["output"]));
}

struct Foreign final : SavedCall {
  bool training() const noexcept override { return true; }
  std::span<const double> statistic(std::string_view) const noexcept override { return {}; }
};

TEST(Operations, RefuseWhatTheRowDoesNotList) {
  Call call(*Layer("layer_norm").row);
  const auto with = [&](std::string_view name) {
    InputSlots inputs = call.inputs;
    inputs.add(name, call.inputs["input"]);
    return error_of([&] { call.operation->forward(inputs, {{"output", call.output}}, call.queue); });
  };
  EXPECT_EQ(with("running_mean"), "invalid argument: running_mean is given, must not be for layer_norm");
  EXPECT_EQ(with("wieght"), "invalid argument: wieght is given, must not be for layer_norm");
  EXPECT_EQ(error_of([&] {
              call.operation->forward(call.inputs, {{"mean", call.output}}, call.queue);
            }),
            "invalid argument: mean is given, must not be for layer_norm");
  EXPECT_EQ(error_of([&] {
              call.operation->forward({}, {{"output", call.output}}, call.queue);
            }),
            "invalid argument: input is missing");
  const auto saved = call.forward();
  EXPECT_EQ(error_of([&] {
              call.operation->backward(*saved, {{"grad_output", call.grad_output}}, {{"grad_output", call.output}},
                                       call.queue);
            }),
            "invalid argument: grad_output is given, must not be for layer_norm");
  EXPECT_EQ(error_of([&] { call.backward(Foreign{}); }),
            "invalid argument: the saved call is another operation's, must be of one like this");
  Call family(*Layer("batch_norm").row);
  InputSlots inputs = family.inputs;
  inputs.add("running_mean", family.inputs["weight"]);  // a state is set, not given
  EXPECT_EQ(error_of([&] {
              family.operation->forward(inputs, {{"output", family.output}}, family.queue);
            }),
            "invalid argument: running_mean is given, must not be for batch_norm");
}

// As what Norm itself refuses: peers hear of it at once.
TEST(Operations, ThatRefuseTellTheOtherRanks) {
  std::vector<std::string> told(2);
  harness::run(2, [&](const harness::World& world, Queue&) {
    Call call(*Layer("batch_norm").row, "", world);
    if (world->rank() == 1) call.inputs.add("wieght", call.inputs["weight"]);
    told[static_cast<std::size_t>(world->rank())] = error_of([&] { call.forward(); });
  });
  EXPECT_EQ(told[1], "invalid argument: wieght is given, must not be for batch_norm");
  EXPECT_NE(told[0].find("wieght is given"), std::string::npos) << told[0];
}

TEST(Operations, StateIsByName) {
  Call call(*Layer("batch_renorm").row);
  call.forward();
  const State before = call.operation->state(call.queue);
  ASSERT_EQ(before.entries.size(), 3u);
  EXPECT_EQ(before.entries[0].name, "running_mean");
  EXPECT_EQ(before.entries[1].name, "running_std");
  EXPECT_EQ(before.entries[2].name, "num_batches_tracked");

  const Doubles mean{1, 2, 3, 4};
  State some;
  some.add("running_mean", mean.data(), Shape{4});
  call.operation->set_state(some, call.queue);
  const State after = call.operation->state(call.queue);
  EXPECT_EQ(after.find("running_mean")->data, some.entries[0].data);
  for (const std::size_t i : {1u, 2u}) EXPECT_EQ(after.entries[i].data, before.entries[i].data);

  const auto told = [&](const char* name, const Shape& shape) {
    State state;
    state.add(name, mean.data(), shape);
    return error_of([&] { call.operation->set_state(state, call.queue); });
  };
  EXPECT_EQ(told("running_var", Shape{4}), "invalid argument: running_var is given, must not be for batch_renorm");
  EXPECT_EQ(told("weight", Shape{4}), "invalid argument: weight is given, must not be for batch_renorm");
  EXPECT_EQ(told("running_mean", Shape{3}), "invalid input: state running_mean has shape (3,), must have (4,)");
  Call stateless(*Layer("layer_norm").row);
  EXPECT_TRUE(stateless.operation->state(stateless.queue).entries.empty());
  EXPECT_EQ(error_of([&] { stateless.operation->set_state(some, stateless.queue); }),
            "invalid argument: running_mean is given, must not be for layer_norm");
}

}  // namespace
}  // namespace operation_test
