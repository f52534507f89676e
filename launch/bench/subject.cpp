#include "launch/bench/subject.hpp"

#include <algorithm>
#include <random>
#include <utility>

namespace allnorm::launch::bench {

namespace {

constexpr std::int64_t classes = 10;  // rows of a table of labels or styles

// Shaped (N, C or Ci, some space...), in the order and type of the input.
bool is_activation(TensorRole role) {
  return role == TensorRole::activation || role == TensorRole::conv_input || role == TensorRole::style;
}

// What a call of the layer is given: all but what it can do without and few have.
bool is_given(const Layer& layer, const TensorSpec& tensor) {
  const bool required = tensor.required != nullptr && tensor.required(layer.options);
  const bool optional = tensor.role == TensorRole::activation || tensor.role == TensorRole::conv_input ||
                        tensor.role == TensorRole::conv_weight;
  return tensor.is_of_forward() && layer.has(tensor) && (required || !optional);
}

}  // namespace

bool is_of_samples(const TensorSpec& tensor) noexcept {
  return is_activation(tensor.role) || tensor.role == TensorRole::labels || tensor.role == TensorRole::mixture ||
         tensor.axes.has(Axis::sample);
}

Subject::Subject(const Layer& layer, const Shape& shape, DType dtype, Order order, std::shared_ptr<Communicator> group,
                 int rank, Queue& queue)
    : layer_(layer),
      shape_(shape),
      dtype_(dtype),
      order_(layer.row->by_trailing() ? Order::channels_first : order),
      rank_(rank),
      queue_(&queue),
      operation_(make_operation(layer, shape.rank() > 1 ? shape[1] : 1, std::move(group), queue)) {
  const Row& row = *layer_.row;
  const DType parameters = dtype_ == DType::f64 ? DType::f64 : DType::f32;
  const auto type_of = [&](const TensorSpec& tensor) {
    return is_activation(tensor.role) || tensor.role == TensorRole::map ? dtype_ : parameters;
  };
  const auto order_of = [&](const TensorSpec& tensor) {
    return is_activation(tensor.role) ? order_ : Order::channels_first;
  };
  inputs_.add("input", fill("input", rank_, shape_, dtype_, order_));
  gradients_.add("grad_input", room(shape_, dtype_, order_));
  for (const TensorSpec& tensor : row.tensors) {
    if (!is_given(layer_, tensor)) continue;
    if (tensor.role == TensorRole::labels || tensor.role == TensorRole::mixture) {
      inputs_.add(tensor.name, labels());
      continue;
    }
    inputs_.add(tensor.name, fill(tensor.name, is_of_samples(tensor) ? rank_ : 0, shape_of(tensor), type_of(tensor),
                                  order_of(tensor)));
    for (const OutputSpec& output : row.outputs)
      if (row.gradient(output.name) == &tensor && layer_.has(output))
        gradients_.add(output.name, room(shape_of(tensor), type_of(tensor), order_of(tensor)));
  }
  const Shape made = output_shape(row, inputs_);
  output_ = room(made, dtype_, order_);
  grad_output_ = fill("grad_output", rank_, made, dtype_, order_);
}

// A convolution has as many input channels as outputs, and a kernel that its padding is half of.
Shape Subject::shape_of(const TensorSpec& tensor) const {
  switch (tensor.role) {
    case TensorRole::activation:
    case TensorRole::style:
      return shape_;
    case TensorRole::table:
      return {classes, shape_[1]};
    case TensorRole::vectors:
      return {shape_[1], shape_[1]};
    case TensorRole::conv_input:
    case TensorRole::conv_weight:
      break;
    default:
      return layer_.shape_of(tensor.axes, shape_);
  }
  const Convolution& conv = layer_.options.convolution;
  const bool of_input = tensor.role == TensorRole::conv_input;
  std::vector<std::int64_t> extents{of_input ? shape_[0] : shape_[1], of_input ? shape_[1] : shape_[1] / conv.groups};
  for (int axis = 2; axis < shape_.rank(); ++axis) {
    const auto along = [axis](const std::vector<std::int64_t>& each) {
      return each.size() == 1 ? each[0] : each.at(static_cast<std::size_t>(axis - 2));
    };
    const std::int64_t padding = along(conv.padding), kernel = 2 * padding + 1;
    const std::int64_t read = (shape_[axis] - 1) * along(conv.stride) + along(conv.dilation) * (kernel - 1) + 1;
    extents.push_back(of_input ? read - 2 * padding : kernel);
  }
  return Shape(extents);
}

TensorView Subject::room(const Shape& shape, DType dtype, Order order) {
  auto& bytes = memory_.emplace_back(static_cast<std::size_t>(shape.elements()) * size_of(dtype));
  return {bytes.data(), dtype, queue_->device(), shape, order};
}

ConstTensorView Subject::fill(std::string_view name, int rank, const Shape& shape, DType dtype, Order order) {
  const TensorView made = room(shape, dtype, order);
  const std::string seed_text = std::string(name) + std::to_string(rank);
  std::seed_seq seed(seed_text.begin(), seed_text.end());
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.5f, name == "input" ? 2.0f : 1.0f);
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    auto* const values = static_cast<T*>(made.data);
    std::generate_n(values, shape.elements(), [&] { return store<T>(static_cast<compute_t<T>>(normal(engine))); });
  });
  return made;
}

ConstTensorView Subject::labels() {
  const TensorView made = room({shape_[0]}, DType::i64, Order::channels_first);
  auto* const values = static_cast<std::int64_t*>(made.data);
  for (std::int64_t i = 0; i < shape_[0]; ++i) values[i] = (i + rank_) % classes;
  return made;
}

}  // namespace allnorm::launch::bench
