#include "launch/bench/subject.hpp"

#include <cstring>
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
                 int rank, Queue& queue, std::size_t sets)
    : layer_(layer),
      shape_(shape),
      dtype_(dtype),
      order_(layer.row->by_trailing() ? Order::channels_first : order),
      rank_(rank),
      queue_(&queue),
      operation_(make_operation(layer, shape.rank() > 1 ? shape[1] : 1, std::move(group), queue)),
      sets_(sets) {
  const Row& row = *layer_.row;
  const DType parameters = dtype_ == DType::f64 ? DType::f64 : DType::f32;
  const auto type_of = [&](const TensorSpec& tensor) {
    return is_activation(tensor.role) || tensor.role == TensorRole::map ? dtype_ : parameters;
  };
  const auto order_of = [&](const TensorSpec& tensor) {
    return is_activation(tensor.role) ? order_ : Order::channels_first;
  };
  const auto add = [&](auto Set::*slots, std::string_view name, const Views& views) {
    for (std::size_t set = 0; set < views.size(); ++set) (sets_[set].*slots).add(name, views[set]);
  };
  add(&Set::inputs, "input", fill("input", shape_, dtype_, order_));
  add(&Set::gradients, "grad_input", room(shape_, dtype_, order_));
  for (const TensorSpec& tensor : row.tensors) {
    if (!is_given(layer_, tensor)) continue;
    if (tensor.role == TensorRole::labels || tensor.role == TensorRole::mixture) {
      add(&Set::inputs, tensor.name, labels());
      continue;
    }
    add(&Set::inputs, tensor.name,
        fill(tensor.name, shape_of(tensor), type_of(tensor), order_of(tensor), !is_of_samples(tensor)));
    for (const OutputSpec& output : row.outputs)
      if (row.gradient(output.name) == &tensor && layer_.has(output))
        add(&Set::gradients, output.name, room(shape_of(tensor), type_of(tensor), order_of(tensor)));
  }
  const Shape made = output_shape(row, inputs());
  const Views outputs = room(made, dtype_, order_), grad_outputs = fill("grad_output", made, dtype_, order_);
  for (std::size_t set = 0; set < sets; ++set) {
    sets_[set].output = outputs[set];
    sets_[set].grad_output = grad_outputs[set];
  }
}

void Subject::forward(std::size_t set) {
  Set& of = sets_[set];
  of.saved = operation_->forward(of.inputs, {{"output", of.output}}, *queue_);
}

void Subject::backward(std::size_t set) {
  const Set& of = sets_[set];
  operation_->backward(*of.saved, {{"grad_output", of.grad_output}}, of.gradients, *queue_);
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

Subject::Views Subject::room(const Shape& shape, DType dtype, Order order, bool shared) {
  constexpr std::size_t line = 256;  // that CUDA aligns memory to
  const std::size_t bytes = static_cast<std::size_t>(shape.elements()) * size_of(dtype);
  const std::size_t apart = shared ? 0 : (bytes + line - 1) / line * line;
  auto& memory = memory_.emplace_back((sets_.size() - 1) * apart + bytes, *queue_);
  Views views;
  for (std::size_t set = 0; set < sets_.size(); ++set)
    views.push_back({memory.data() + set * apart, dtype, queue_->device(), shape, order});
  return views;
}

Subject::Views Subject::copies(const std::vector<std::byte>& values, Views room) {
  copy_to_device(room[0].data, values.data(), values.size(), *queue_);
  for (const TensorView& view : room)
    if (view.data != room[0].data) copy_on_device(view.data, room[0].data, values.size(), *queue_);
  return room;
}

Subject::Views Subject::fill(std::string_view name, const Shape& shape, DType dtype, Order order, bool shared) {
  const std::string seed_text = std::string(name) + std::to_string(shared ? 0 : rank_);
  std::seed_seq seed(seed_text.begin(), seed_text.end());
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.5f, name == "input" ? 2.0f : 1.0f);
  std::vector<std::byte> bytes(static_cast<std::size_t>(shape.elements()) * size_of(dtype));
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(T)) {
      const T value = store<T>(static_cast<compute_t<T>>(normal(engine)));
      std::memcpy(bytes.data() + at, &value, sizeof value);
    }
  });
  return copies(bytes, room(shape, dtype, order, shared));
}

Subject::Views Subject::labels() {
  std::vector<std::byte> bytes(static_cast<std::size_t>(shape_[0]) * sizeof(std::int64_t));
  for (std::int64_t i = 0; i < shape_[0]; ++i) {
    const std::int64_t label = (i + rank_) % classes;
    std::memcpy(bytes.data() + static_cast<std::size_t>(i) * sizeof label, &label, sizeof label);
  }
  return copies(bytes, room({shape_[0]}, DType::i64, Order::channels_first));
}

}  // namespace allnorm::launch::bench
