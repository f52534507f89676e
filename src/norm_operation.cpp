// The operation of rows that normalize with a mean and a variance: a Norm behind slots.
#include "allnorm/halves.hpp"
#include "allnorm/norm.hpp"
#include "src/norm_impl.hpp"
#include "src/operations.hpp"

namespace allnorm {

namespace {

constexpr std::pair<std::string_view, std::span<const double> Frame::*> statistics[] = {
    {"mean", &Frame::mean}, {"var", &Frame::var}, {"rstd", &Frame::rstd},  {"std", &Frame::sigma},
    {"r", &Frame::r},       {"d", &Frame::d},     {"share", &Frame::share}};

struct SavedNorm final : SavedCall {
  bool training() const noexcept override { return saved.training(); }
  std::span<const double> statistic(std::string_view name) const noexcept override {
    for (const auto& [own, values] : statistics)
      if (own == name) return saved.frame().*values;
    return {};
  }
  Saved saved;
};

const Saved& own(const SavedCall& call) {
  const auto* found = dynamic_cast<const SavedNorm*>(&call);
  expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
  return found->saved;
}

class NormOperation final : public Operation {
 public:
  explicit NormOperation(Norm norm) : norm_(std::move(norm)) {}

  const Layer& layer() const noexcept override { return norm_.layer(); }
  const std::string& name() const noexcept override { return norm_.name(); }
  Communicator& group() const noexcept override { return norm_.group(); }
  void set_training(bool training) noexcept override { norm_.set_training(training); }
  Norm* norm() noexcept override { return &norm_; }

  NonFiniteCalls nonfinite() const override { return norm_.nonfinite(); }
  void check() override {
    Operation::check();
    norm_.check();
  }

  State state(Queue& queue) const override {
    return norm_.has_running() ? named_state(layer(), norm_.running(queue)) : State{};
  }
  void set_state(const State& given, Queue& queue) override {
    RunningStatistics running = norm_.running(queue);
    take_named_state(layer(), given, running);
    if (!given.entries.empty()) norm_.set_running(running, queue);
  }

  State save(Queue& queue) const override { return norm_.save(queue); }
  void load(const State& state, Queue& queue, const LoadOptions& options) override {
    norm_.load(state, queue, options);
  }

 private:
  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    auto made = tell_others(exchanges(false), group(), [] { return std::make_unique<SavedNorm>(); });
    made->saved = norm_.forward(forward_inputs(inputs), outputs["output"], queue);
    return made;
  }
  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    auto made = std::make_unique<SavedNorm>();
    made->saved = norm_.replay(own(earlier), forward_inputs(inputs), outputs["output"], queue);
    return made;
  }
  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    norm_.backward(own(saved), backward_inputs(inputs), backward_outputs(gradients), queue);
  }
  void run_infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    norm_.infer(forward_inputs(inputs), outputs["output"], queue);
  }

  Norm norm_;
};

}  // namespace

ForwardInputs forward_inputs(const InputSlots& slots) {
  ForwardInputs made;
  made.input = slots["input"];
  for (const InputSlot& slot : input_slots)
    if (const ConstTensorView view = slots[slot.name]; view.given()) made.*slot.view = view;
  return made;
}

BackwardInputs backward_inputs(const InputSlots& slots) {
  BackwardInputs made{.output = slots["grad_output"]};
  for (const BackwardSlot& slot : backward_slots) made.*slot.view = slots[slot.name];
  return made;
}

BackwardOutputs backward_outputs(const OutputSlots& slots) {
  BackwardOutputs made;
  made.input = slots["grad_input"];
  for (const GradientSlot& slot : gradient_slots)
    if (const TensorView view = slots[slot.name]; view.given()) made.*slot.view = view;
  return made;
}

std::unique_ptr<Operation> make_norm_operation(const Layer& layer, std::int64_t channels,
                                               std::shared_ptr<Communicator> group, Queue& queue, std::string name) {
  return std::make_unique<NormOperation>(Norm(layer, channels, std::move(group), queue, std::move(name)));
}

}  // namespace allnorm
