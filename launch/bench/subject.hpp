// A layer of any row with all that its calls are given, to be called again and again.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/operation.hpp"

namespace allnorm::launch::bench {

/// Whether ranks have values of their own in it: samples, and what belongs to them. Everything else is the same on all.
bool is_of_samples(const TensorSpec& tensor) noexcept;

/// Values that do not depend on the machine: normal ones of mean 0.5 by name and rank.
class Subject {
 public:
  /// `shape` is this rank's. Throws as make_operation.
  Subject(const Layer& layer, const Shape& shape, DType dtype, Order order, std::shared_ptr<Communicator> group,
          int rank, Queue& queue);

  void forward() { saved_ = operation_->forward(inputs_, {{"output", output_}}, *queue_); }
  void backward() { operation_->backward(*saved_, {{"grad_output", grad_output_}}, gradients_, *queue_); }

  Communicator& group() const noexcept { return operation_->group(); }
  const Layer& layer() const noexcept { return layer_; }
  const InputSlots& inputs() const noexcept { return inputs_; }
  const ConstTensorView& grad_output() const noexcept { return grad_output_; }
  const TensorView& output() const noexcept { return output_; }
  const OutputSlots& gradients() const noexcept { return gradients_; }

 private:
  Shape shape_of(const TensorSpec& tensor) const;
  TensorView room(const Shape& shape, DType dtype, Order order);
  ConstTensorView fill(std::string_view name, int rank, const Shape& shape, DType dtype, Order order);
  ConstTensorView labels();

  Layer layer_;
  Shape shape_;
  DType dtype_;
  Order order_;
  int rank_;
  Queue* queue_;
  std::deque<std::vector<std::byte>> memory_{};  // they stay where they are
  std::unique_ptr<Operation> operation_;
  InputSlots inputs_;
  ConstTensorView grad_output_;
  TensorView output_;
  OutputSlots gradients_;
  std::unique_ptr<SavedCall> saved_;
};

}  // namespace allnorm::launch::bench
