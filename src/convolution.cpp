#include "src/convolution.hpp"

#include <algorithm>
#include <string>

#include "kernels/ops.hpp"
#include "src/parameters.hpp"

namespace allnorm {

namespace {

std::string given(const ConstTensorView& view) { return to_string(view.shape); }

// One value for every space axis, or one each.
std::int64_t along(const std::vector<std::int64_t>& values, int axis, int axes, const char* name) {
  expect(values.size() == 1 || values.size() == static_cast<std::size_t>(axes), Code::invalid_argument, [&] {
    return std::string("attribute ") + name + " has " + std::to_string(values.size()) + " values, must have 1 or " +
           std::to_string(axes) + ", one per space axis";
  });
  const std::int64_t value = values.size() == 1 ? values[0] : values[static_cast<std::size_t>(axis)];
  expect(value < std::int64_t{1} << 31, Code::invalid_argument, [&] {
    return std::string("attribute ") + name + " is " + std::to_string(value) + ", must be less than 2^31";
  });
  return value;
}

PatchSumsArgs geometry(const ForwardInputs& in, const Convolution& conv) {
  const ConstTensorView &x = in.input, &a = in.conv_input, &w = in.conv_weight;
  const int axes = x.shape.rank() - 2;
  expect(axes <= 3, Code::invalid_argument,
         [&] { return "input has shape " + given(x) + ", must have at most 3 space axes where compensate=true"; });
  expect(a.shape.rank() == x.shape.rank(), Code::invalid_input, [&] {
    return "conv_input has shape " + given(a) + ", must have as many axes as input, whose shape is " + given(x);
  });
  expect(a.dtype == x.dtype && a.order == x.order, Code::invalid_argument,
         "conv_input must have input's dtype and order of axes");
  expect(a.shape[0] == x.shape[0], Code::invalid_input, [&] {
    return "conv_input has " + std::to_string(a.shape[0]) + " samples, must have " + std::to_string(x.shape[0]) +
           " as input";
  });
  expect(w.shape.rank() == x.shape.rank() && w.shape[0] == x.shape[1], Code::invalid_input, [&] {
    return "conv_weight has shape " + given(w) + ", must have " + std::to_string(x.shape.rank()) + " axes, the first " +
           std::to_string(x.shape[1]) + " as input's channels";
  });
  PatchSumsArgs args{a.data,     x.data,      x.dtype,   x.order,   x.shape[0], a.shape[1],
                     x.shape[1], conv.groups, {1, 1, 1}, {1, 1, 1}, {1, 1, 1},  {1, 1, 1},
                     {0, 0, 0},  {1, 1, 1},   nullptr,   nullptr,   nullptr};
  const std::int64_t g = conv.groups;
  expect(args.in_channels % g == 0 && args.channels % g == 0 && w.shape[1] == args.in_channels / g,
         Code::invalid_argument, [&] {
           return "attribute conv_groups is " + std::to_string(g) + ", must divide conv_input's " +
                  std::to_string(args.in_channels) + " and input's " + std::to_string(args.channels) +
                  " channels, with conv_weight of shape (C,Ci/groups,k...), which is " + given(w);
         });
  constexpr std::int64_t longest = std::int64_t{1} << 62;  // leaves room for padding
  expect(std::all_of(a.shape.begin(), a.shape.end(), [](std::int64_t extent) { return extent < longest; }),
         Code::invalid_input,
         [&] { return "conv_input has shape " + given(a) + ", must have fewer than 2^62 along every axis"; });
  for (int axis = 0; axis < axes; ++axis) {
    const int at = 3 - axes + axis;
    args.in[at] = a.shape[2 + axis];
    args.out[at] = x.shape[2 + axis];
    args.kernel[at] = w.shape[2 + axis];
    args.stride[at] = along(conv.stride, axis, axes, "conv_stride");
    args.padding[at] = along(conv.padding, axis, axes, "conv_padding");
    args.dilation[at] = along(conv.dilation, axis, axes, "conv_dilation");
    expect(args.kernel[at] >= 1 && args.kernel[at] < std::int64_t{1} << 31, Code::invalid_input, [&] {
      return "conv_weight has shape " + given(w) + ", must have a kernel of 1 to 2^31-1 along every space axis";
    });
    const auto room = args.in[at] + 2 * args.padding[at] - args.dilation[at] * (args.kernel[at] - 1) - 1;
    const auto made = room < 0 ? 0 : room / args.stride[at] + 1;
    expect(made == args.out[at], Code::invalid_argument, [&] {
      return "attributes conv_stride, conv_padding and conv_dilation make " + std::to_string(made) +
             " outputs of conv_input " + given(a) + " and conv_weight " + given(w) + " along space axis " +
             std::to_string(axis) + ", must make input's " + std::to_string(args.out[at]);
    });
  }
  return args;
}

}  // namespace

DerivativeSource derivative_source(const ForwardInputs& in, const Convolution& convolution, const Queue& queue) {
  expect(in.conv_weight.given(), Code::invalid_argument,
         "conv_weight is missing, must be given where window is over 1 and compensate=true");
  expect(in.conv_input.given(), Code::invalid_argument,
         "conv_input is missing, must be given where window is over 1 and compensate=true");
  DerivativeSource source;
  const PatchSumsArgs& patch = source.args.patch = geometry(in, convolution);
  source.shape = {patch.channels, in.conv_weight.shape.product(1, in.conv_weight.shape.rank()), patch.groups};
  expect_floats(in.conv_weight, "conv_weight");
  expect_memory(in.conv_weight.data, queue, "conv_weight");
  expect_memory(in.conv_input.data, queue, "conv_input");
  source.args.theta = parameter(in.conv_weight, 0);
  source.wide = in.input.dtype == DType::f64 || in.conv_weight.dtype == DType::f64;
  return source;
}

}  // namespace allnorm
