#include "launch/verify/script.hpp"

#include <algorithm>
#include <cmath>

#include "launch/random.hpp"

namespace allnorm::launch::verify {

namespace {

using Extents = std::vector<std::int64_t>;

// Planes of two vectors of any width and one value more, and channels that are no whole vector; the second has more
// channels than a vector has values.
const Extents shapes[] = {{5, 6, 3, 11}, {4, 18, 5}}, shapes_of_rows[] = {{9, 37}, {4, 5}};
constexpr std::int64_t kernel = 3, fan = 2;          // of a convolution: taps along an axis, inputs of a channel
constexpr std::int64_t table_rows = 3, vectors = 7;  // of parameters that are no array over the input's axes

Shape shape_of(const Extents& extents) { return Shape(std::span(extents)); }
std::int64_t space_of(const Extents& shape) { return reference::elements({shape.begin() + 2, shape.end()}); }

bool has_mixture(const Row& row) {
  return std::any_of(row.tensors.begin(), row.tensors.end(),
                     [](const TensorSpec& tensor) { return tensor.role == TensorRole::mixture; });
}

double held(double value, DType dtype) {
  return visit(dtype, [&]<class T>(std::type_identity<T>) {
    return static_cast<double>(load(store<T>(static_cast<compute_t<T>>(value))));
  });
}

// The tensors of one step.
class Draw {
 public:
  Draw(const Trial& trial, DType dtype, std::uint64_t step)
      : trial_(trial), dtype_(dtype), random_(Purpose::verify, {step + (trial.draws.number << 32)}) {}

  Tensors tensors() {
    const Layer& layer = trial_.layer;
    Tensors made;
    if (layer.options.compensates()) convolved(made);
    if (made.count("input") == 0) made["input"] = input();
    for (const TensorSpec& tensor : layer.row->tensors) {
      const bool must = tensor.required != nullptr && tensor.required(layer.options);
      if (tensor.is_state() || !layer.has(tensor) || made.count(tensor.name) > 0) continue;
      if (tensor.role == TensorRole::conv_input || tensor.role == TensorRole::conv_weight) continue;
      if (must || trial_.given != Given::required) made[std::string(tensor.name)] = drawn(tensor);
    }
    const Array* to = layer.row->vectors() == nullptr ? nullptr : &made[std::string(layer.row->vectors()->name)];
    made["grad_output"] = normal(to == nullptr ? trial_.shape : Extents{trial_.shape[0], to->shape[0]}, dtype_);
    return made;
  }

 private:
  Array normal(const Extents& shape, DType dtype, double mean = 0, double std = 1) {
    Array made = reference::zeros(shape);
    for (double& v : made.v) v = held(mean + std * random_.normal(), dtype);
    return made;
  }
  // Each channel with a mean and a deviation of its own, and correlated with the one before it.
  Array input() {
    Array x = reference::zeros(trial_.shape);
    const auto S = static_cast<std::size_t>(x.shape.size() < 2 ? 1 : space_of(x.shape));
    const std::size_t C = x.shape.size() < 2 ? 1 : static_cast<std::size_t>(x.shape[1]);
    for (std::size_t i = 0; i < x.v.size(); ++i) {
      const std::size_t c = i / S % C;
      x.v[i] = 0.4 * static_cast<double>(c % 4) + (0.5 + 0.25 * static_cast<double>(c % 3)) * random_.normal();
      if (c > 0) x.v[i] += 0.4 * x.v[i - S];
    }
    for (double& v : x.v) v = held(trial_.draws.scale * v, dtype_);
    return x;
  }
  // The weights move a little from step to step, so that past statistics have a way to go.
  void convolved(Tensors& made) {
    const Convolution& conv = trial_.layer.options.convolution;
    const Extents& shape = trial_.shape;
    Extents in{shape[0], fan * conv.groups}, weight{shape[1], fan};
    for (std::size_t axis = 2; axis < shape.size(); ++axis) {
      in.push_back((shape[axis] - 1) * conv.stride[0] + conv.dilation[0] * (kernel - 1) + 1 - 2 * conv.padding[0]);
      weight.push_back(kernel);
    }
    Random first(Purpose::verify, {(1u << 20) + (trial_.draws.number << 32)});
    Array theta = reference::zeros(weight);
    for (double& v : theta.v) v = held(0.4 * first.normal() + 0.05 * random_.normal(), compute_type(dtype_));
    made["conv_input"] = normal(in, dtype_, 0.3 * trial_.draws.scale, trial_.draws.scale);
    made["conv_weight"] = theta;
    Array x = reference::convolve(made["conv_input"], theta, conv);
    for (double& v : x.v) v = held(v, dtype_);
    made["input"] = x;
  }
  Array drawn(const TensorSpec& tensor) {
    const Extents& x = trial_.shape;
    const auto chosen = [&](const Extents& shape) {  // rows of a table
      Array made = reference::zeros(shape);
      for (double& v : made.v) v = static_cast<double>(random_.below(table_rows));
      return made;
    };
    switch (tensor.role) {
      case TensorRole::labels:
        return chosen({x[0]});
      case TensorRole::mixture:
        return trial_.given == Given::all ? normal({x[0], table_rows}, compute_type(dtype_)) : chosen({x[0]});
      case TensorRole::style:
        return normal({x[0], x[1], 2, 7}, dtype_, -1, 2);
      case TensorRole::table:
        return parameters({table_rows, x[1]});
      case TensorRole::vectors:
        return normal({vectors, x[1]}, compute_type(dtype_), -0.2, 0.6);
      case TensorRole::parameter:
        return parameters(over(tensor));
      case TensorRole::gradient:
        return normal(over(tensor), compute_type(dtype_));
      default:
        return normal(tensor.role == TensorRole::activation ? x : over(tensor), dtype_);
    }
  }
  Extents over(const TensorSpec& tensor) const {
    const Shape made = trial_.layer.shape_of(tensor.axes, shape_of(trial_.shape));
    return {made.begin(), made.end()};
  }
  // None is so small that what it multiplies vanishes.
  Array parameters(const Extents& shape) {
    Array made = reference::zeros(shape);
    for (double& v : made.v)
      v = held(random_.uniform(0.5, 1.5) * (random_.below(4) == 0 ? -1 : 1), compute_type(dtype_));
    return made;
  }

  const Trial& trial_;
  DType dtype_;
  Random random_;
};

// Where rounding decides on which side of a threshold a value is, it has no gradient here.
void keep_away(const reference::Doubles& distances, const reference::Doubles& tolerances, Array& grad_output) {
  for (std::size_t i = 0; i < distances.size(); ++i)
    if (distances[i] <= tolerances[i]) grad_output.v[i] = 0;
}

}  // namespace

std::vector<Trial> trials_of(const Row& row, const reference::Defined& defined, const Draws& draws) {
  std::vector<Trial> all;
  const Extents* const of_row = row.vectors() == nullptr ? shapes : shapes_of_rows;
  for (const std::string_view variant : defined.variants) {
    const Layer layer = parse_layer(std::string(row.name) + (variant.empty() ? "" : ":") + std::string(variant));
    const auto add = [&](int shape, Given given) {
      all.push_back({&defined, std::string(variant), layer, of_row[shape], given, draws});
    };
    add(0, Given::all);
    add(1, Given::required);
    if (has_mixture(row)) add(1, Given::integers);
  }
  return all;
}

std::vector<Step> script_of(const Trial& trial, DType dtype) {
  const NormOptions& o = trial.layer.options;
  const bool state = trial.layer.has_state();
  const auto calls = state ? std::max(o.window, o.minibatches) + 1 : 1;
  const auto definition = trial.defined->make(o, trial.shape.size() < 2 ? 1 : trial.shape[1]);
  std::vector<Step> steps;
  for (std::int64_t call = 0; call < calls + (state ? 1 : 0); ++call) {
    Step step{call < calls, Draw(trial, dtype, static_cast<std::uint64_t>(call)).tensors(), {}};
    step.answers = definition->forward(step.given, step.training);
    keep_away(definition->distances(), tolerances_of(step.answers["output"], dtype, reference::short_sums),
              step.given["grad_output"]);
    step.answers.merge(definition->backward(step.given));
    steps.push_back(std::move(step));
  }
  return steps;
}

TensorSpec spec_of(const Row& row, std::string_view name) {
  const TensorSpec* found = row.tensor(name);
  return found != nullptr ? *found : TensorSpec{name, TensorRole::activation, every_axis, ""};
}

bool lies_as_input(const TensorSpec& tensor) {
  return tensor.role == TensorRole::activation || tensor.role == TensorRole::style ||
         tensor.role == TensorRole::conv_input;
}

DType type_of(const TensorSpec& tensor, const Array& values, DType dtype) {
  if (lies_as_input(tensor) || tensor.role == TensorRole::map) return dtype;
  const bool labels = tensor.role == TensorRole::labels || tensor.role == TensorRole::mixture;
  return labels && values.shape.size() == 1 ? DType::i64 : compute_type(dtype);
}

Cut::Cut(const Trial& trial, int rank, int ranks) : layer_(trial.layer), rank_(rank) {
  const Axes statistics = layer_.statistics();
  if (ranks == 1 || layer_.row->attribute("sync") == nullptr) return;
  layer_.set("sync", "world");
  const auto trailing = static_cast<int>(layer_.options.normalized_shape.size());
  if (statistics.has(Axis::leading))
    axis_ = trailing == 0 ? 1 : static_cast<int>(trial.shape.size()) - trailing;
  else
    axis_ = !statistics.has(Axis::sample) ? 0 : !statistics.has(Axis::space) ? 2 : 1;
  // Uneven parts, of three and more ranks one without any; but no rank without a channel.
  const std::int64_t extent = trial.shape[static_cast<std::size_t>(*axis_)];
  const bool by_channels = !layer_.row->by_trailing() && *axis_ == 1;
  std::vector<std::int64_t> ends{0};
  for (int r = 0; r < ranks; ++r) ends.push_back(ends.back() + (r == 1 && ranks > 2 && !by_channels ? 0 : 1 + r % 2));
  const auto cut = [&](int r) { return ends[static_cast<std::size_t>(r)] * extent / ends.back(); };
  begin_ = cut(rank);
  end_ = cut(rank + 1);
  if (trailing > 0) layer_.options.normalized_shape[0] = end_ - begin_;
}

std::optional<int> Cut::axis_of(const TensorSpec& tensor) const {
  if (!axis_) return {};
  switch (tensor.role) {
    case TensorRole::activation:
    case TensorRole::conv_input:
      return axis_;
    case TensorRole::labels:
    case TensorRole::mixture:
      return *axis_ == 0 ? axis_ : std::nullopt;
    case TensorRole::parameter:
    case TensorRole::map:
    case TensorRole::gradient:
      if (tensor.axes.has(Axis::trailing)) return 0;
      if (*axis_ == 0 && tensor.axes.has(Axis::sample)) return 0;
      if (*axis_ == 2 && tensor.axes.has(Axis::space)) return 2;
      return {};
    default:
      return {};
  }
}

Array Cut::part(const TensorSpec& tensor, const Array& whole) const {
  const auto axis = axis_of(tensor);
  if (!axis) return whole;
  Array made{whole.shape, {}};
  std::int64_t& extent = made.shape[static_cast<std::size_t>(*axis)];
  const std::int64_t inner = reference::elements({whole.shape.begin() + *axis + 1, whole.shape.end()});
  for (std::size_t i = 0; i < whole.v.size(); ++i)
    if (const auto at = static_cast<std::int64_t>(i) / inner % extent; at >= begin_ && at < end_)
      made.v.push_back(whole.v[i]);
  extent = end_ - begin_;
  return made;
}

Tensors Cut::part(const Tensors& whole) const {
  Tensors made;
  for (const auto& [name, values] : whole) {
    const TensorSpec spec = spec_of(*layer_.row, name);
    Array& own = made[name] = part(spec, values);
    if (cuts() && rank_ > 0 && spec.role == TensorRole::gradient && !axis_of(spec)) own = reference::zeros(own.shape);
  }
  return made;
}

}  // namespace allnorm::launch::verify
