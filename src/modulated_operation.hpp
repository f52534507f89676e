// Operations that are a norm whose gamma and beta are made anew for every call: by sample, from tables, or as maps.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/operations.hpp"

namespace allnorm {

class ModulatedOperation : public Operation {
 public:
  const Layer& layer() const noexcept override { return layer_; }
  const std::string& name() const noexcept override { return norm_->name(); }
  Communicator& group() const noexcept override { return norm_->group(); }
  void set_training(bool training) noexcept override;
  Norm* norm() noexcept override { return norm_->norm(); }
  void check() override { norm_->check(); }
  NonFiniteCalls nonfinite() const override { return norm_->nonfinite(); }

  State state(Queue& queue) const override { return norm_->state(queue); }
  void set_state(const State& state, Queue& queue) override { norm_->set_state(state, queue); }
  State save(Queue& queue) const override { return norm_->save(queue); }
  void load(const State& state, Queue& queue, const LoadOptions& options) override;

 protected:
  /// The norm has the layer's name, attributes, state and other tensors; `statistics` and `affine`: the axes of its
  /// mean and of its gamma and beta; `added`: to every gamma.
  ModulatedOperation(const Layer& layer, Axes statistics, Axes affine, double added, std::int64_t channels,
                     std::shared_ptr<Communicator> group, Queue& queue, std::string name);

  /// Gamma and beta of a call as the norm reads them, and what backward needs to know of how they were made.
  struct Modulation {
    virtual ~Modulation() = default;
    ConstTensorView weight{}, bias{};  ///< not given: 1, 0
  };
  /// Where backward has the norm write the gradients of these two, and what it makes of them then.
  struct ModulationGrad {
    virtual ~ModulationGrad() = default;
    virtual void finish(Queue& queue) = 0;
    TensorView weight{}, bias{};  ///< not given: not asked for
  };

 private:
  /// Both check what they are given. `input` has an axis of samples and one of channels.
  virtual std::unique_ptr<Modulation> modulate(const InputSlots& inputs, const ConstTensorView& input,
                                               Queue& queue) const = 0;
  virtual std::unique_ptr<ModulationGrad> gradients_of(const Modulation& modulation, const OutputSlots& gradients,
                                                       Queue& queue) const = 0;

  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override;
  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override;
  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override;
  void run_infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override;

  struct SavedModulated;
  static const SavedModulated& own(const SavedCall& call);
  static bool is_affine(std::string_view slot) noexcept;
  std::unique_ptr<Modulation> checked(const InputSlots& inputs, Queue& queue) const;
  InputSlots of_norm(const InputSlots& inputs, const Modulation& modulation) const;

  Layer layer_;
  std::vector<TensorSpec> tensors_;  // of the norm
  std::vector<OutputSpec> outputs_;
  Row row_;
  std::unique_ptr<Operation> norm_;
};

}  // namespace allnorm
