// The reference's common parts: arrays, the naive convolution with its patch sums.
#include "launch/reference/reference.hpp"

#include <array>
#include <stdexcept>
#include <utility>

namespace reference {

using Extents = std::vector<Int>;

Int elements(const Extents& shape) {
  Int n = 1;
  for (const Int e : shape) n *= e;
  return n;
}

Array zeros(Extents shape) {
  const auto n = static_cast<std::size_t>(elements(shape));
  return {std::move(shape), Doubles(n, 0.0)};
}

Array concatenate(const Ranks& parts) {
  Array whole = parts.at(0);
  for (std::size_t k = 1; k < parts.size(); ++k) {
    whole.shape[0] += parts[k].shape[0];
    whole.v.insert(whole.v.end(), parts[k].v.begin(), parts[k].v.end());
  }
  return whole;
}

namespace {

/// A convolution with exactly three space axes; missing ones have extent 1 in front.
struct Geometry {
  Int inputs = 0, outputs = 0, groups = 1;  // channels Ci and C, groups
  std::array<Int, 3> in{1, 1, 1};           // input extents
  std::array<Int, 3> kernel{1, 1, 1};       // taps per axis
  std::array<Int, 3> out{1, 1, 1};          // output extents
  std::array<Int, 3> stride{1, 1, 1}, padding{0, 0, 0}, dilation{1, 1, 1};

  Int group_inputs() const { return inputs / groups; }
  Int taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  Int fan_in() const { return group_inputs() * taps(); }
  Int positions() const { return out[0] * out[1] * out[2]; }

  /// Element f of the patch that output channel c sees at a position of sample n; 0 in the padding.
  double patch(const Array& input, Int n, Int c, Int f, Int position) const {
    const Int channel = c / (outputs / groups) * group_inputs() + f / taps();
    const Int tap = f % taps();
    const std::array<Int, 3> k{tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1], tap % kernel[2]};
    const std::array<Int, 3> o{position / (out[1] * out[2]), position / out[2] % out[1], position % out[2]};
    Int offset = n * inputs + channel;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      const Int i = o[axis] * stride[axis] - padding[axis] + k[axis] * dilation[axis];
      if (i < 0 || i >= in[axis]) return 0;
      offset = offset * in[axis] + i;
    }
    return input.v[static_cast<std::size_t>(offset)];
  }
};

Int per_axis(const Extents& values, std::size_t axis) { return values.size() == 1 ? values[0] : values.at(axis); }

Geometry geometry(const Extents& input, const Extents& weight, const Conv& conv) {
  if (input.size() != weight.size() || input.size() < 2 || input.size() > 5 || weight[1] * conv.groups != input[1] ||
      weight[0] % conv.groups != 0)
    throw std::invalid_argument("convolution: input and weight do not fit");
  Geometry g;
  g.inputs = input[1];
  g.outputs = weight[0];
  g.groups = conv.groups;
  const std::size_t axes = input.size() - 2;
  for (std::size_t axis = 0; axis < axes; ++axis) {
    const std::size_t to = 3 - axes + axis;
    g.in[to] = input[2 + axis];
    g.kernel[to] = weight[2 + axis];
    g.stride[to] = per_axis(conv.stride, axis);
    g.padding[to] = per_axis(conv.padding, axis);
    g.dilation[to] = per_axis(conv.dilation, axis);
    const Int reach = g.dilation[to] * (g.kernel[to] - 1) + 1;
    g.out[to] = (g.in[to] + 2 * g.padding[to] - reach) / g.stride[to] + 1;
    if (g.in[to] + 2 * g.padding[to] < reach) throw std::invalid_argument("convolution: kernel exceeds the input");
  }
  return g;
}

}  // namespace

Array convolve(const Array& input, const Array& weight, const Conv& conv) {
  const Geometry g = geometry(input.shape, weight.shape, conv);
  Extents shape{input.shape[0], g.outputs};
  for (std::size_t axis = 5 - input.shape.size(); axis < 3; ++axis) shape.push_back(g.out[axis]);
  Array output = zeros(shape);
  std::size_t i = 0;
  for (Int n = 0; n < input.shape[0]; ++n)
    for (Int c = 0; c < g.outputs; ++c)
      for (Int position = 0; position < g.positions(); ++position) {
        Real sum = 0;
        for (Int f = 0; f < g.fan_in(); ++f)
          sum += Real(weight.v[static_cast<std::size_t>(c * g.fan_in() + f)]) * g.patch(input, n, c, f, position);
        output.v[i++] = static_cast<double>(sum);
      }
  return output;
}

void add_patch_sums(const Array& input, const Array& x, const Extents& weight_shape, const Conv& conv, Reals& sum_p,
                    Reals& sum_xp) {
  const Geometry g = geometry(input.shape, weight_shape, conv);
  if (x.shape[0] != input.shape[0] || x.shape[1] != g.outputs ||
      elements(x.shape) != x.shape[0] * g.outputs * g.positions())
    throw std::invalid_argument("patch sums: x is not the output of this convolution");
  for (Int n = 0; n < x.shape[0]; ++n)
    for (Int c = 0; c < g.outputs; ++c)
      for (Int position = 0; position < g.positions(); ++position) {
        const Real xc = x.v[static_cast<std::size_t>((n * g.outputs + c) * g.positions() + position)];
        for (Int f = 0; f < g.fan_in(); ++f) {
          const auto at = static_cast<std::size_t>(c * g.fan_in() + f);
          const Real p = g.patch(input, n, c, f, position);
          sum_p[at] += p;
          sum_xp[at] += xc * p;
        }
      }
}

}  // namespace reference
