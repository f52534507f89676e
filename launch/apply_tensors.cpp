// `allnorm apply`: the tensors of one step, from files to what the library takes.
#include "launch/apply_tensors.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "allnorm/sizes.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/npy.hpp"
#include "launch/files/npy_convert.hpp"

namespace allnorm::launch {

namespace {

// Shaped (N, C or Ci, some space...), in the order of --layout and the type of --dtype.
bool is_activation(TensorRole role) {
  return role == TensorRole::activation || role == TensorRole::conv_input || role == TensorRole::style;
}

DType own_dtype(const NpyArray& array) {
  switch (array.type) {
    case NpyType::f64:
      return DType::f64;
    case NpyType::f32:
      return DType::f32;
    case NpyType::f16:
      return DType::f16;
    default:
      break;
  }
  bad_file(array.file,
           "has the type " + std::string(to_string(array.type)) + ", must be f64, f32 or f16, or --dtype be given");
}

// The first of the trailing axes of an input with so many axes.
int first_trailing(const ApplyPlan& plan, int axes) {
  const auto given = static_cast<int>(plan.layer.options.normalized_shape.size());
  return given > 0 ? axes - given : 1;
}

// The axis of an input with so many axes that --split cuts.
int cut_axis_of_input(const ApplyPlan& plan, int axes) {
  const bool last = plan.order == Order::channels_last;
  if (plan.split == Split::batch) return 0;
  if (plan.split == Split::channels) return last ? axes - 1 : 1;
  if (plan.layer.row->by_trailing()) return first_trailing(plan, axes);
  return last ? 1 : 2;
}

// The axis of the file that --split cuts, if it cuts this tensor. `input`: a shape with its axes.
std::optional<int> cut_axis(const ApplyPlan& plan, const TensorSpec& spec, const NpyArray& array, const Shape& input) {
  const TensorRole role = spec.role;
  const int axes = array.shape.rank();
  const bool rows = plan.layer.row->by_trailing();
  if (role == TensorRole::parameter && spec.axes.has(Axis::row)) {  // (rows), or like the input
    const int axis = plan.split == Split::batch ? 0 : 1;
    if (plan.split == Split::none || plan.layer.row_axis(input) != axis) return std::nullopt;
    return axes == 1 ? 0 : axis;
  }
  if (plan.split != Split::none && spec.axes.has(Axis::trailing) && !spec.axes.has(Axis::leading)) {
    const int axis = cut_axis_of_input(plan, input.rank()) - first_trailing(plan, input.rank());
    return axis >= 0 ? std::optional(axis) : std::nullopt;
  }
  switch (plan.split) {
    case Split::none:
      break;
    case Split::batch:
      if (spec.axes.has(Axis::sample)) return 0;
      break;
    case Split::space:
      if (!is_activation(role)) return spec.axes.has(Axis::space) && axes >= 3 ? std::optional(2) : std::nullopt;
      expect(rows || axes >= 3, Code::invalid_argument,
             [&] { return "--split is space, must be batch or channels: " + array.file + " has no space axis"; });
      return cut_axis_of_input(plan, axes);
    case Split::channels:
      if (role == TensorRole::activation || role == TensorRole::style) return cut_axis_of_input(plan, axes);
      if (role == TensorRole::table) return axes - 1;
      if (role != TensorRole::conv_input && spec.axes.has(Axis::channel)) return spec.axes.has(Axis::sample) ? 1 : 0;
      break;
  }
  return std::nullopt;
}

void cut(NpyArray& array, int axis, int rank, int ranks) {
  if (axis < 0 || axis >= array.shape.rank())
    bad_file(array.file, "has the shape " + to_string(array.shape) + ", must have the axis that --split cuts");
  const Slice slice = slice_of(array.shape[axis], rank, ranks);
  const auto outer = static_cast<std::size_t>(array.shape.product(0, axis));
  const auto inner =
      static_cast<std::size_t>(array.shape.product(axis + 1, array.shape.rank())) * size_of(array.type);  // bytes
  const auto from = static_cast<std::size_t>(array.shape[axis]) * inner;
  const auto to = static_cast<std::size_t>(slice.end - slice.begin) * inner;
  for (std::size_t i = 0; i < outer && to > 0; ++i)
    std::memmove(array.data.data() + i * to,
                 array.data.data() + i * from + static_cast<std::size_t>(slice.begin) * inner, to);
  array.data.resize(outer * to);
  std::vector<std::int64_t> extents(array.shape.begin(), array.shape.end());
  extents[static_cast<std::size_t>(axis)] = slice.end - slice.begin;
  array.shape = Shape(extents);
}

// (N, space..., C) -> (N, C, space...)
Shape channels_second(const Shape& shape) {
  std::vector<std::int64_t> extents(shape.begin(), shape.end());
  if (extents.size() > 2) std::rotate(extents.begin() + 1, extents.end() - 1, extents.end());
  return Shape(extents);
}

void expect_shape(const LoadedTensor& tensor, std::string_view name, const Shape& shape, const Shape& must,
                  std::string_view what) {
  if (shape == must) return;
  bad_file(tensor.file, std::string(name) + " has the shape " + to_string(shape) + ", must have " + to_string(must) +
                            ", " + std::string(what));
}

// Of a state tensor.
std::vector<double> values_of(const LoadedTensor& tensor) {
  std::vector<double> values(static_cast<std::size_t>(tensor.shape.elements()));
  if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

void check_values(const TensorSpec& spec, const LoadedTensor& tensor) {
  const bool signless = spec.bound != Bound::none, positive = spec.bound == Bound::positive;
  for (const double value : values_of(tensor))
    if (!std::isfinite(value) || (signless && value < 0) || (positive && value == 0))
      bad_file(tensor.file, std::string(spec.name) + " has the value " + std::to_string(value) + ", must be finite" +
                                (positive   ? " and more than 0"
                                 : signless ? " and at least 0"
                                            : ""));
}

}  // namespace

Slice slice_of(std::int64_t extent, int rank, int ranks) noexcept {
  const std::int64_t each = extent / ranks, more = extent % ranks;
  const auto begin = [&](std::int64_t r) { return r * each + std::min(r, more); };
  return {begin(rank), begin(rank + 1)};
}

StepTensors::StepTensors(const ApplyPlan& plan, int rank, int ranks)
    : plan_(&plan), layer_(plan.layer), rank_(rank), ranks_(ranks) {}

// Attributes are those of the whole input: this rank's part of it has some of the groups, or of normalized_shape.
void StepTensors::cut_layer(const Shape& whole) {
  const Row& row = *plan_->layer.row;
  const int axes = whole.rank(), axis = cut_axis_of_input(*plan_, axes);
  const bool grouped = row.statistics.has(Axis::group) && plan_->split == Split::channels;
  if (axis >= axes || !(grouped || row.statistics.has(Axis::leading))) return;
  layer_ = plan_->layer;
  layer_.shape_of({}, plan_->order == Order::channels_last && grouped ? channels_second(whole) : whole);
  const Slice own = slice_of(whole[axis], rank_, ranks_);
  if (!grouped) {
    const int first = first_trailing(*plan_, axes);
    expect(axis >= first || layer_.options.sync.ranks == Sync::none, Code::invalid_argument, [&] {
      return "--split cuts axis " + std::to_string(axis) + " of input, must cut an axis that " + std::string(row.name) +
             " reduces over, from " + std::to_string(first) + " on, or sync be none";
    });
    if (auto& extents = layer_.options.normalized_shape; axis >= first && !extents.empty())
      extents[static_cast<std::size_t>(axis - first)] = own.end - own.begin;
    return;
  }
  const std::int64_t each = std::max<std::int64_t>(1, whole[axis] / layer_.options.groups);
  const auto has_whole = [&](const Slice& part) { return part.begin % each == 0 && part.end % each == 0; };
  for (int rank = 0; rank < ranks_; ++rank) {  // all ranks tell the same
    const Slice part = slice_of(whole[axis], rank, ranks_);
    const bool fits = part.begin == part.end || has_whole(part) || (part.end - 1) / each == part.begin / each;
    expect(fits, Code::invalid_argument, [&] {
      return "--split is channels, must leave every rank whole groups or a part of one: rank " + std::to_string(rank) +
             " has channels " + std::to_string(part.begin) + " to " + std::to_string(part.end - 1) + ", a group has " +
             std::to_string(each);
    });
  }
  if (own.begin == own.end) return;  // told by check()
  group_ = own.begin / each;
  layer_.options.groups = has_whole(own) ? (own.end - own.begin) / each : 1;
}

LoadedTensor StepTensors::load(const TensorSpec& spec, std::int64_t step, DType dtype) {
  NpyArray array = read_npy(expand(plan_->tensors.find(spec.name)->second, rank_, step));
  if (array.type == NpyType::b1) bad_file(array.file, "has the type b1, must be a floating-point or integer type");
  if (spec.name == "input" && !plan_->dtype) dtype = own_dtype(array);
  const Shape& like = spec.name == "input" ? array.shape : input().file_shape;
  if (spec.name == "input" && plan_->split != Split::none) cut_layer(array.shape);
  if (const auto axis = cut_axis(*plan_, spec, array, like)) cut(array, *axis, rank_, ranks_);

  LoadedTensor tensor{array.file, array.shape, array.shape, Order::channels_first, dtype};
  if (is_activation(spec.role) && plan_->order == Order::channels_last && !plan_->layer.row->by_trailing()) {
    tensor.shape = channels_second(array.shape);
    tensor.order = Order::channels_last;
  }
  if (spec.role == TensorRole::labels || (spec.role == TensorRole::mixture && array.shape.rank() < 2)) {
    if (!is_integer(array.type))
      bad_file(array.file, std::string(spec.name) + " has the type " + std::string(to_string(array.type)) +
                               ", must be an integer type");
    const std::vector<std::int64_t> labels = to_int64(array);
    tensor.dtype = DType::i64;
    tensor.data.resize(labels.size() * sizeof(std::int64_t));
    if (!labels.empty()) std::memcpy(tensor.data.data(), labels.data(), tensor.data.size());
    return tensor;
  }
  if (spec.is_state())
    tensor.dtype = DType::f64;
  else if (!is_activation(spec.role) && spec.role != TensorRole::map)
    tensor.dtype = dtype == DType::f64 ? DType::f64 : DType::f32;
  tensor.data = to_dtype(array, tensor.dtype);
  if (spec.role == TensorRole::gradient && leaves_gradients())
    std::fill(tensor.data.begin(), tensor.data.end(), std::byte{});
  return tensor;
}

void StepTensors::read(std::int64_t step) {
  for (const TensorSpec& spec : tensors_of(*plan_->layer.row)) {  // input, whose type others take, is the first
    const auto file = plan_->tensors.find(spec.name);
    if (file == plan_->tensors.end()) continue;
    if (step > 0 && (spec.is_state() || !mentions(file->second, "{step}"))) continue;
    if (spec.role == TensorRole::counter) {
      const NpyArray array = read_npy(expand(file->second, rank_, step));
      if (array.shape.elements() != 1)
        bad_file(array.file,
                 std::string(spec.name) + " has the shape " + to_string(array.shape) + ", must be a scalar");
      const std::int64_t value = to_int64(array)[0];
      if (value < 0 || value > std::int64_t{1} << 62)
        bad_file(array.file, std::string(spec.name) + " is " + std::to_string(value) + ", must be from 0 to 2^62");
      counters_[std::string(spec.name)] = value;
      continue;
    }
    const DType dtype = plan_->dtype ? *plan_->dtype : spec.name == "input" ? DType::f32 : input().dtype;
    tensors_.insert_or_assign(std::string(spec.name), load(spec, step, dtype));
  }
  // A file that all steps share was converted for step 0's type.
  if (step == 0) dtype_ = input().dtype;
  if (input().dtype != dtype_)
    bad_file(input().file, "has the type " + std::string(to_string(input().dtype)) + ", must have " +
                               std::string(to_string(dtype_)) + " as at step 0, or --dtype be given");
  check();
  if (step == 0) channels_ = channels();
}

void StepTensors::check() const {
  const Row& row = *plan_->layer.row;
  const LoadedTensor& x = input();
  const int least = row.by_trailing() ? 1 : 2;
  if (x.shape.rank() < least)
    bad_file(x.file, "input has the shape " + to_string(x.file_shape) + ", must have at least " +
                         std::to_string(least) + (least == 1 ? " axis" : " axes"));
  if (row.vectors() != nullptr && (x.shape.rank() != 2 || x.shape[1] == 0))
    bad_file(x.file, "input has the shape " + to_string(x.file_shape) + ", must have 2 axes (N,K), K at least 1");
  if (!row.by_trailing()) {
    expect(plan_->split != Split::channels || channels() > 0, Code::invalid_argument,
           "--split is channels, must leave every rank a channel: there are more ranks than channels");
    if (channels() == 0) bad_file(x.file, "input has 0 channels, must have at least 1");
    if (!product({channels(), 1024}))  // bytes of state, frame and message
      bad_file(x.file, "input has " + std::to_string(channels()) + " channels, must have fewer than 2^53");
    if (channels_ >= 0 && channels() != channels_)
      bad_file(x.file, "input has " + std::to_string(channels()) + " channels, must have the " +
                           std::to_string(channels_) + " of step 0");
  }
  layer_.shape_of({}, x.shape);  // groups, normalized_shape
  for (const TensorSpec& spec : tensors_of(row))
    if (const LoadedTensor* tensor = find(spec.name)) check_shape(spec, *tensor);
}

void StepTensors::check_shape(const TensorSpec& spec, const LoadedTensor& tensor) const {
  const LoadedTensor& x = input();
  switch (spec.role) {
    case TensorRole::activation:
      if (spec.name == "grad_output" && layer_.row->vectors() != nullptr)
        return expect_shape(tensor, spec.name, tensor.shape, output_shape(*layer_.row, inputs()), "as the output");
      return expect_shape(tensor, spec.name, tensor.file_shape, x.file_shape, "as input");
    case TensorRole::parameter:
    case TensorRole::map:
    case TensorRole::gradient:
      if (layer_.fits(spec.axes, tensor.shape, x.shape)) return;
      return expect_shape(tensor, spec.name, tensor.shape, layer_.shape_of(spec.axes, x.shape), shape_text(spec));
    case TensorRole::state:
      expect_shape(tensor, spec.name, tensor.shape, layer_.shape_of(spec.axes, x.shape), shape_text(spec));
      return check_values(spec, tensor);
    case TensorRole::vectors:
      if (tensor.shape.rank() != 2 || tensor.shape[1] != x.shape[1])
        bad_file(tensor.file, std::string(spec.name) + " has the shape " + to_string(tensor.shape) +
                                  ", must have 2 axes (M,K), K = " + std::to_string(x.shape[1]) + " as input");
      return;
    case TensorRole::conv_input: {
      const bool fits = tensor.shape.rank() == x.shape.rank() && tensor.shape[0] == x.shape[0];
      if (!fits)
        bad_file(tensor.file, std::string(spec.name) + " has the shape " + to_string(tensor.file_shape) +
                                  ", must have as many axes and samples as input, " + to_string(x.file_shape));
      return;
    }
    case TensorRole::conv_weight:
      if (tensor.shape.rank() != x.shape.rank() || tensor.shape[0] != channels())
        bad_file(tensor.file, std::string(spec.name) + " has the shape " + to_string(tensor.shape) + ", must have " +
                                  std::to_string(x.shape.rank()) +
                                  " axes, the first of C = " + std::to_string(channels()));
      // Beyond a kernel of one tap, a slice of the input needs its neighbours' borders.
      expect(plan_->split != Split::space || ranks_ == 1 || !plan_->compensates() ||
                 tensor.shape.product(2, tensor.shape.rank()) == 1,
             Code::invalid_argument, "--split is space, must be batch for a convolution with more than one tap");
      return;
    case TensorRole::labels:
    case TensorRole::mixture:
    case TensorRole::style:
    case TensorRole::table:  // whose rows they name: the operation looks at them together
    case TensorRole::counter:
      return;
  }
}

const LoadedTensor* StepTensors::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

InputSlots StepTensors::inputs() const {
  InputSlots inputs{{"input", input().view()}};
  for (const TensorSpec& spec : layer_.row->tensors)
    if (const LoadedTensor* tensor = find(spec.name); tensor != nullptr && spec.is_of_forward())
      inputs.add(spec.name, tensor->view());
  return inputs;
}

InputSlots StepTensors::gradients() const {
  InputSlots inputs;
  if (const LoadedTensor* tensor = find("grad_output")) inputs.add("grad_output", tensor->view());
  for (const TensorSpec& spec : layer_.row->tensors)
    if (const LoadedTensor* tensor = find(spec.name); tensor != nullptr && spec.role == TensorRole::gradient)
      inputs.add(spec.name, tensor->view());
  return inputs;
}

bool StepTensors::leaves_gradients() const {
  const std::int64_t sync = layer_.options.sync.ranks;
  return plan_->split == Split::channels && sync != Sync::none && (sync == Sync::world ? rank_ : rank_ % sync) > 0;
}

std::int64_t StepTensors::channels() const {
  const Shape& shape = input().shape;
  return shape.rank() > 1 ? shape[1] : 1;
}

State StepTensors::state() const {
  State state;
  for (const TensorSpec& spec : layer_.row->tensors) {
    const std::string name(spec.name);
    if (const LoadedTensor* tensor = find(name); tensor != nullptr && spec.is_state())
      state.add(name, values_of(*tensor).data(), tensor->shape);
    if (const auto counter = counters_.find(name); counter != counters_.end()) state.add(name, counter->second);
  }
  return state;
}

}  // namespace allnorm::launch
