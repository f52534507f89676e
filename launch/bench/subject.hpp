// A layer of any row with all that its calls are given, to be called again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/operation.hpp"

namespace allnorm::launch::bench {

/// Whether ranks have values of their own in it: samples, and what belongs to them. Everything else is the same on all.
bool is_of_samples(const TensorSpec& tensor) noexcept;

/// Values that do not depend on the machine: normal ones of mean 0.5 by name and rank, in memory of the queue's device.
class Subject {
 public:
  /// `shape` is this rank's. `sets`: of tensors, with equal values, each in memory of its own but for what belongs to
  /// no sample. Throws as make_operation.
  Subject(const Layer& layer, const Shape& shape, DType dtype, Order order, std::shared_ptr<Communicator> group,
          int rank, Queue& queue, std::size_t sets = 1);

  void forward(std::size_t set = 0);
  /// Behind a forward call of this set.
  void backward(std::size_t set = 0);

  Operation& operation() const noexcept { return *operation_; }
  Communicator& group() const noexcept { return operation_->group(); }
  Queue& queue() const noexcept { return *queue_; }
  const Layer& layer() const noexcept { return layer_; }
  // Of the first set.
  const InputSlots& inputs() const noexcept { return sets_[0].inputs; }
  const ConstTensorView& grad_output() const noexcept { return sets_[0].grad_output; }
  const TensorView& output() const noexcept { return sets_[0].output; }
  const OutputSlots& gradients() const noexcept { return sets_[0].gradients; }

 private:
  struct Set {
    InputSlots inputs{};
    ConstTensorView grad_output{};
    TensorView output{};
    OutputSlots gradients{};
    std::unique_ptr<SavedCall> saved{};
  };
  using Views = std::vector<TensorView>;  // [set]

  Shape shape_of(const TensorSpec& tensor) const;
  // `shared`: belongs to no sample, is the same on all ranks and for all sets.
  Views room(const Shape& shape, DType dtype, Order order, bool shared = false);
  Views copies(const std::vector<std::byte>& values, Views room);
  Views fill(std::string_view name, const Shape& shape, DType dtype, Order order, bool shared = false);
  Views labels();

  Layer layer_;
  Shape shape_;
  DType dtype_;
  Order order_;
  int rank_;
  Queue* queue_;
  std::vector<Buffer<std::byte>> memory_{};
  std::unique_ptr<Operation> operation_;
  std::vector<Set> sets_;
};

}  // namespace allnorm::launch::bench
